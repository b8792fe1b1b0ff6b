"""Matches what the bank's statements say against what our books say; see README.md."""
