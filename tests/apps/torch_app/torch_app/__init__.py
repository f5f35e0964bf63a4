"""Personalised digits with PyTorch: mods, state, lifespans and a loop of its own."""
