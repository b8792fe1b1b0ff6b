"""The files of an archive: Parquet, written and read in pieces, so that memory does not grow with the month."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from audit.report import AuditError
from audit.snapshot import Row
from audit.trail.payments import EPOCH_US

EVENTS, ENTRIES, CHECKPOINTS, MANIFEST = "events.parquet", "entries.parquet", "checkpoints", "manifest.json"
GROUP_ROWS = 50_000
"""Rows of one piece: some 20 MB while it is in memory."""
READ_ROWS = 2_000
HASH_BYTES = 1024 * 1024

_TIME = pa.timestamp("us", tz="UTC")
EVENTS_SCHEMA = pa.schema(
    [
        pa.field("merchant_id", pa.string(), nullable=False),
        pa.field("payment_id", pa.string(), nullable=False),
        pa.field("version", pa.int32(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("data", pa.string(), nullable=False),
        pa.field("recorded_at", _TIME, nullable=False),
        # Null on rows from before there was a chain.
        pa.field("hash", pa.binary(32)),
    ]
)
ENTRIES_SCHEMA = pa.schema(
    [
        pa.field("merchant_id", pa.string(), nullable=False),
        pa.field("journal_id", pa.string(), nullable=False),
        pa.field("line", pa.int16(), nullable=False),
        pa.field("account", pa.string(), nullable=False),
        pa.field("currency", pa.string(), nullable=False),
        pa.field("amount_minor", pa.int64(), nullable=False),
        pa.field("posted_at", _TIME, nullable=False),
    ]
)


class Writer:
    """Writes rows of a schema into a new file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[Sequence[Any]] = []
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows."""
        self._rows += rows
        self.count += len(rows)
        if len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)
            ]
            self._file.write_table(pa.table(arrays, schema=self._schema))
            self._rows = []


async def event_batches(path: Path) -> AsyncIterator[list[Row]]:
    """The events of an archive, as `audit.trail.payments.EVENTS` has them. Raises AuditError."""
    for merchants, payments, versions, types, data, times, hashes in _columns(path, EVENTS_SCHEMA):
        sent = [(us - EPOCH_US).to_bytes(8, "big", signed=True) for us in times]
        yield list(zip(merchants, payments, versions, types, data, sent, hashes, strict=True))


def entry_rows(path: Path) -> Iterator[Row]:
    """The ledger entries of an archive, as its schema has them. Raises AuditError."""
    for columns in _columns(path, ENTRIES_SCHEMA):
        yield from zip(*columns, strict=True)


def _columns(path: Path, schema: pa.Schema) -> Iterator[list[list[Any]]]:
    """Columns as lists, piece by piece; times as microseconds since 1970."""
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema):
                raise AuditError(f"{path} has other columns than an archive")
            for batch in file.iter_batches(READ_ROWS):
                yield [
                    (column.cast(pa.int64()) if column.type == _TIME else column).to_pylist()
                    for column in batch.columns
                ]
    except (pa.ArrowException, OSError) as error:
        raise AuditError(f"{path} cannot be read: {_line(error)}") from error


def find_events(path: Path, merchant_id: str, payment_id: str) -> list[Row]:
    """The events of one payment: version, type, data, microseconds since 1970, hash. Raises AuditError."""
    wanted = [("merchant_id", "=", merchant_id), ("payment_id", "=", payment_id)]
    try:
        table = pq.read_table(path, schema=EVENTS_SCHEMA, filters=wanted)
    except (pa.ArrowException, OSError) as error:
        raise AuditError(f"{path} cannot be read: {_line(error)}") from error
    times = table.column("recorded_at").cast(pa.int64()).to_pylist()
    told = [table.column(name).to_pylist() for name in ("version", "type", "data", "hash")]
    return [(*row[:3], us, row[3]) for row, us in zip(zip(*told, strict=True), times, strict=True)]


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_BYTES):
            hashed.update(piece)
    return hashed.hexdigest()


def files_of(archive: Path) -> list[str]:
    """Every file of an archive but its manifest, by its path in it."""
    return sorted(
        path.relative_to(archive).as_posix()
        for path in archive.rglob("*")
        if path.is_file() and path != archive / MANIFEST
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
