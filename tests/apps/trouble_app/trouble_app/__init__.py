"""Goes wrong as its configuration says."""
