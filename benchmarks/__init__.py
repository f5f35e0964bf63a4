"""Measurements; a package so that no other one of that name is found first."""
