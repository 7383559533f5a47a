"""Families of guests. Each file is its difference from the others; ``linux.py`` is the first."""
