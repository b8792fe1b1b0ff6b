"""Sends statements to the reconciler and shows what it has found: as text, JSON, CSV and a page."""
