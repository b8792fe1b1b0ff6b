"""The floor: what this PostgreSQL takes of plain inserts, in sets, each committed to disk.

Rows of about a hundred bytes, one table, no index but its primary key: no service on the same server could write its
first row any faster. What the mesh does per second divided by this is a figure that survives a change of machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psycopg

from bench.phases import Task
from bench.tally import Tally

TABLE = "floor_rows"
NOTE = "a plain row, about as long as the row of a small payment"

CREATE_TABLE = f"""
CREATE TABLE {TABLE} (
    id text PRIMARY KEY, merchant_id text NOT NULL, amount_minor bigint NOT NULL, note text NOT NULL
)
"""
_INSERT = f"""
INSERT INTO {TABLE} (id, merchant_id, amount_minor, note)
SELECT id, merchant_id, amount_minor, note
FROM unnest(%(ids)b::text[], %(merchant_ids)b::text[], %(amounts)b::bigint[], %(notes)b::text[])
    AS row (id, merchant_id, amount_minor, note)
"""  # noqa: S608 - constants


class Writers:
    """One connection per caller, each inserting one set after the other."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._connections: list[psycopg.AsyncConnection[tuple[object, ...]]] = []
        self._written = [0] * task.callers

    async def open(self) -> None:
        """Connect, and create the table."""
        for _ in range(self._task.callers):
            self._connections.append(
                await psycopg.AsyncConnection.connect(self._task.target, autocommit=True, prepare_threshold=0)
            )
        await self._connections[0].execute(CREATE_TABLE)

    async def close(self) -> None:
        """Give the connections back."""
        for connection in self._connections:
            await connection.close()

    async def run(self, tally: Tally, merchants: Sequence[str], until: float) -> None:
        """Insert until then; each statement is a transaction, and its latency that of its commit."""
        await asyncio.gather(
            *(self._write(number, tally, merchants, until) for number in range(self._task.callers))
        )

    async def _write(self, number: int, tally: Tally, merchants: Sequence[str], until: float) -> None:
        size = self._task.batch_size
        connection = self._connections[number]
        merchant_ids = [merchants[place % len(merchants)] for place in range(size)]
        notes = [NOTE] * size
        amounts = [1_000 + place for place in range(size)]
        while time.perf_counter() < until:
            first = self._written[number]
            self._written[number] += size
            rows = {
                "ids": [f"row_{number:02d}_{row:016d}" for row in range(first, first + size)],
                "merchant_ids": merchant_ids,
                "amounts": amounts,
                "notes": notes,
            }
            began = time.perf_counter()
            await connection.execute(_INSERT, rows)
            tally.calls += 1
            tally.succeed(time.perf_counter() - began, size)
