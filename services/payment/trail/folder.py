"""Checkpoints as files: `00000001.checkpoint` and so on, in a folder outside of the database.

A file appears whole or not at all, and is never replaced: it is written aside, synced, and linked to its name, which
fails when that is taken. So of two sealers who make the same number one wins, and the other finds out. An object store
can do the same (`If-None-Match: *`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from services.payment.trail.checkpoint import Entry, Header, NoCheckpoint, read_entry, read_header

_NAME = re.compile(r"(\d{8,})\.checkpoint")
DRAFT_SECONDS = 600.0
"""A draft that is older was left behind; to write one takes a second."""
WRITE_LINES = 1_000
"""Lines that are written at once."""


class NumberTaken(Exception):
    """A checkpoint of that number is there already."""


class CheckpointFolder:
    """The checkpoints of one mesh."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, number: int) -> Path:
        """Where a checkpoint is, or would be."""
        return self.path / f"{number:08}.checkpoint"

    def numbers(self) -> list[int]:
        """Of the checkpoints that are there, ascending. Raises FileNotFoundError for a folder that is not."""
        found = [_NAME.fullmatch(entry.name) for entry in os.scandir(self.path)]
        return sorted(int(match.group(1)) for match in found if match)

    def header(self, number: int) -> Header:
        """Raises NoCheckpoint."""
        with self.file(number).open("rb") as file:
            return read_header(file.readline().rstrip(b"\n"))

    def lines(self, number: int) -> Iterator[bytes]:
        """The entries' lines, in their order."""
        with self.file(number).open("rb") as file:
            file.readline()
            for line in file:
                yield line.rstrip(b"\n")

    def entries(self, number: int) -> Iterator[Entry]:
        """The entries, in their order. Raises NoCheckpoint."""
        return map(read_entry, self.lines(number))

    def write(self, header: Header, lines: Sequence[bytes]) -> None:
        """Add a checkpoint; when this returns it is on disk. Raises NumberTaken."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{header.number:08}.{os.urandom(6).hex()}.draft"
        try:
            with draft.open("wb") as file:
                file.write(header.line() + b"\n")
                for first in range(0, len(lines), WRITE_LINES):
                    file.write(b"\n".join(lines[first : first + WRITE_LINES]) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, self.file(header.number))
        except FileExistsError as error:
            raise NumberTaken(header.number) from error
        finally:
            draft.unlink(missing_ok=True)
        self._sync()

    def clean(self) -> None:
        """Take away what was never finished: its writer was killed."""
        for draft in self.path.glob(".*.draft"):
            with suppress(FileNotFoundError):  # its writer was only slow
                if time.time() - draft.stat().st_mtime > DRAFT_SECONDS:
                    draft.unlink()

    def _sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


__all__ = ["CheckpointFolder", "NoCheckpoint", "NumberTaken"]
