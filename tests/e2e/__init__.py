"""The whole mesh."""
