"""Owns payments: holds on cards, what became of them, and the ledger."""
