"""Compares two heaps of entries that do not fit into memory: what was sealed, and what there is.

Both are thrown into files by payment, so that what belongs together lies together; then file by file is compared in
memory. That is an external hash join.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self
from zlib import crc32

from services.payment.trail.checkpoint import Entry, NoCheckpoint, read_entry

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

    def put_sealed(self, number: int, lines: Sequence[bytes]) -> None:
        """A checkpoint has these entries. Raises NoCheckpoint."""
        heaps: list[list[bytes]] = [[b"#%d" % number] for _ in range(self._count)]
        try:
            for line in lines:
                heaps[crc32(line.split(b'"', 4)[3]) % self._count].append(line)
        except IndexError as error:
            raise NoCheckpoint("has a line that is no entry") from error
        for file, heap in zip(self._sealed, heaps, strict=True):
            if len(heap) > 1:
                file.write(b"\n".join(heap) + b"\n")

    def put_present(self, lines: bytes) -> None:
        """The database has these entries of one payment, each with a line's end."""
        self._present[crc32(lines.split(b'"', 4)[3]) % self._count].write(lines)

    def compare(self) -> Iterator[Apart]:
        """Everything in which the sides differ. Raises NoCheckpoint for what is no entry."""
        for sealed_file, present_file in zip(self._sealed, self._present, strict=True):
            sealed_file.seek(0)
            present_file.seek(0)
            records = sealed_file.read().splitlines()
            lines = [record for record in records if record[:1] != b"#"]
            sealed = set(lines)
            self.twice += len(lines) - len(sealed)
            present = set(present_file.read().splitlines())
            if sealed != present:
                yield from _apart(_numbered(records), present)


def _numbered(records: Sequence[bytes]) -> dict[bytes, int]:
    """Lines with the checkpoints that have them."""
    numbered = {}
    number = 0
    for record in records:
        if record[:1] == b"#":
            number = int(record[1:])
        else:
            numbered[record] = number
    return numbered


def _apart(sealed: dict[bytes, int], present: set[bytes]) -> Iterator[Apart]:
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
