"""Readers of the formats in which banks send statements: bytes in, the events of `domain.statement` out."""
