"""All SQL of the reconciler. Nothing is decided here."""
