"""What every service shares. Kit knows no service's name.

The pure half (no I/O, usable by every `domain.py`): `errors`, `money`, `ids`, `checks`, `deadline`, `backoff`.
The other half talks to the world: `config`, `db`, `migrate`, `idempotency`, `outbox`, `sets`, `coalescer`,
`telemetry`, `logs`, `process` and the folders `rpc` and `events`.
"""
