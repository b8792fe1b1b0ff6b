"""Judges payments before they are authorized, by rules that are data."""
