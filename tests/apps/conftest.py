"""The folders beside this file are Flower apps that tests run; nothing in them is a test."""

collect_ignore_glob = ["*/*"]
