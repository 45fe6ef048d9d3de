"""Hostile clients at a real process, beside honest ones."""
