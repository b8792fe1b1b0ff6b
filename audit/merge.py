"""A merge join over any number of sorted streams, from any number of databases, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias

from audit.report import AuditError
from audit.snapshot import Row, Snapshot

Key: TypeAlias = tuple[str, str]
"""(merchant, identifier): the first two columns of every stream."""


class Stream:
    """The rows of a query that is sorted by its first two columns, with a view to the next one."""

    def __init__(self, snapshot: Snapshot, query: str) -> None:
        self._service = snapshot.service
        self._batches = snapshot.batches(query)
        self._rows: Sequence[Row] = ()
        self._place = 0
        self.head: Key | None = None
        """Key of the next row; None behind the last."""

    async def open(self) -> None:
        """Go to the first row."""
        await self._fill()

    async def take(self, key: Key) -> list[Row]:
        """All rows with `key`, which is the head's or before it."""
        taken: list[Row] = []
        while self.head == key:
            taken.append(self._rows[self._place])
            self._place += 1
            if self._place < len(self._rows):
                row = self._rows[self._place]
                self.head = (row[0], row[1])
            else:
                await self._fill()
        if self.head is not None and self.head < key:
            raise AuditError(
                f"the database of {self._service} sorts {self.head} behind {key}: not the order of bytes"
            )
        return taken

    async def close(self) -> None:
        """Let go of the cursor."""
        await self._batches.aclose()  # type: ignore[attr-defined]  # a generator

    async def _fill(self) -> None:
        try:
            self._rows = await anext(self._batches)
        except StopAsyncIteration:
            self._rows = ()
        self._place = 0
        self.head = (self._rows[0][0], self._rows[0][1]) if self._rows else None


async def merge(streams: Sequence[Stream]) -> AsyncIterator[tuple[Key, list[list[Row]]]]:
    """Every key that any stream has, ascending, each once, with its rows per stream."""
    for stream in streams:
        await stream.open()
    try:
        while heads := [stream.head for stream in streams if stream.head is not None]:
            key = min(heads)
            yield key, [await stream.take(key) for stream in streams]
    finally:
        for stream in streams:
            await stream.close()
