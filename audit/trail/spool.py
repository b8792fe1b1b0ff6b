"""Compares two heaps of entries that do not fit into memory: what was sealed, and what there is.

Both are thrown into files by payment, so that what belongs together lies together; then file by file is compared in
memory. That is an external hash join.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self
from zlib import crc32

from services.payment.trail.checkpoint import Entry, read_entry

PART_ENTRIES = 40_000
"""Entries of a part, as planned: some 20 MB while it is compared."""
PARTS_MAX = 256
"""Two files each. Beyond ten million entries parts grow."""


class Apart(NamedTuple):
    """Something that only one side has, or that both have and differently."""

    sealed: Entry | None
    number: int
    """Of the checkpoint; 0 when it is not sealed."""
    present: Entry | None


class Spool:
    """The two heaps."""

    def __init__(self, entries: int) -> None:
        self._count = min(PARTS_MAX, 1 + entries // PART_ENTRIES)
        self._open = ExitStack()
        self.twice = 0
        """Entries that are sealed more than once."""

    def __enter__(self) -> Self:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="paymesh-verify-")))
        self._sealed = [self._file(folder / f"sealed-{part}") for part in range(self._count)]
        self._present = [self._file(folder / f"present-{part}") for part in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _file(self, path: Path) -> BinaryIO:
        return self._open.enter_context(path.open("w+b"))

    def put_sealed(self, payment_id: str, line: bytes, number: int) -> None:
        """A checkpoint has this entry."""
        self._sealed[crc32(payment_id.encode()) % self._count].write(b"%b\t%d\n" % (line, number))

    def put_present(self, payment_id: str, lines: bytes) -> None:
        """The database has these entries of a payment, each with a line's end."""
        self._present[crc32(payment_id.encode()) % self._count].write(lines)

    def compare(self) -> Iterator[Apart]:
        """Everything in which the sides differ."""
        for sealed_file, present_file in zip(self._sealed, self._present, strict=True):
            sealed: dict[bytes, int] = {}
            sealed_file.seek(0)
            for record in sealed_file:
                line, _, number = record.rpartition(b"\t")
                self.twice += line in sealed
                sealed[line] = int(number)
            present_file.seek(0)
            present = set(present_file.read().splitlines())
            yield from _apart(sealed, present)


def _apart(sealed: dict[bytes, int], present: set[bytes]) -> Iterator[Apart]:
    if sealed.keys() == present:
        return
    gone = {}
    for line in sealed.keys() - present:
        entry = read_entry(line)
        gone[entry[1:4]] = (entry, sealed[line])
    for line in sorted(present - sealed.keys()):
        found = read_entry(line)
        other = gone.pop(found[1:4], None)
        yield Apart(other[0], other[1], found) if other else Apart(None, 0, found)
    for entry, number in sorted(gone.values()):
        yield Apart(entry, number, None)
