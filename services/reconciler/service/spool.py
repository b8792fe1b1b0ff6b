"""What a caller of Reconcile sends, checked as it comes and put on disk: a run begins when every file is whole."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from paymesh.reconciler.v1 import reconciler_pb2 as pb
from services.kit.checks import Checks
from services.kit.errors import Invalid
from services.reconciler.reconciliation import Job, StatementFile
from services.reconciler.service.messages import day_of

CHUNK_BYTES_MAX = 1_048_576
"""Bytes of a statement in one message."""
FILES_MAX = 1_000
"""Statements of one run: three years of daily ones."""
FILE_NAME_LENGTH_MAX = 200
DIFFERENCES_MAX = 10_000
"""Differences that are listed of one run: a few megabytes. ListCases has them all."""

_SHA256_HEX = frozenset("0123456789abcdef")


@dataclass
class _Arriving:
    """A file whose bytes are coming."""

    name: str
    sha256: bytes
    size_bytes: int
    path: Path
    file: BinaryIO
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    received: int = 0


class Spool:
    """Receives a run's files into a folder of its own, which goes with it."""

    def __init__(self, folder: str, file_bytes_max: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="paymesh-statements-", dir=folder or None)
        self._file_bytes_max = file_bytes_max
        self._files: list[StatementFile] = []
        self._arriving: _Arriving | None = None

    def close(self) -> None:
        """Remove what was received."""
        if self._arriving is not None:
            self._arriving.file.close()
        self._folder.cleanup()

    async def receive(self, requests: AsyncIterator[pb.ReconcileRequest]) -> Job:
        """Everything that a caller has to send. Raises Invalid."""
        begin: pb.ReconcileRequest.Begin | None = None
        async for request in requests:
            part = request.WhichOneof("part")
            if begin is None:
                if part != "begin":
                    raise Invalid.field("begin", "must be the first message")
                begin = request.begin
                _check_begin(begin)
            elif part == "file":
                self._end_file()
                self._begin_file(request.file)
            elif part == "chunk":
                self._take(request.chunk)
            else:
                raise Invalid.field("begin" if part == "begin" else "part", "is not expected here")
        if begin is None:
            raise Invalid.field("begin", "is required: the first message")
        self._end_file()
        until = day_of(begin.date)
        assert until is not None, "it was checked"
        return Job(
            merchant_id=begin.merchant_id,
            until=until,
            files=self._files,
            keep=not begin.dry_run,
            differences_max=begin.differences_max,
            accept_unproved=begin.accept_unproved,
        )

    def _begin_file(self, file: pb.ReconcileRequest.File) -> None:
        checks = Checks()
        checks.text("file.name", file.name, max_length=FILE_NAME_LENGTH_MAX)
        if len(file.sha256) != 64 or not set(file.sha256) <= _SHA256_HEX:
            checks.fail("file.sha256", "must be 64 hexadecimal digits in lower case")
        checks.number("file.size_bytes", file.size_bytes, at_least=0, at_most=self._file_bytes_max)
        if len(self._files) >= FILES_MAX:
            checks.fail("file", f"is one too many: a run takes at most {FILES_MAX:,} statements")
        checks.done()
        path = Path(self._folder.name) / str(len(self._files))
        self._arriving = _Arriving(
            file.name, bytes.fromhex(file.sha256), file.size_bytes, path, path.open("wb")
        )

    def _take(self, chunk: bytes) -> None:
        arriving = self._arriving
        if arriving is None:
            raise Invalid.field("chunk", "belongs to no file: `file` comes first")
        if len(chunk) > CHUNK_BYTES_MAX:
            raise Invalid.field("chunk", f"has {len(chunk):,} bytes; at most {CHUNK_BYTES_MAX:,} are allowed")
        arriving.received += len(chunk)
        if arriving.received > arriving.size_bytes:
            raise Invalid.field("chunk", f"is more than the {arriving.size_bytes:,} bytes of {arriving.name}")
        arriving.digest.update(chunk)
        arriving.file.write(chunk)

    def _end_file(self) -> None:
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return
        arriving.file.close()
        if not arriving.received and arriving.size_bytes:
            # Its sender believes that we have it.
            self._files.append(StatementFile(arriving.name, None, arriving.sha256, arriving.size_bytes))
            return
        if arriving.received != arriving.size_bytes or arriving.digest.digest() != arriving.sha256:
            raise Invalid.field(
                arriving.name,
                f"did not arrive whole: {arriving.received:,} of {arriving.size_bytes:,} bytes came, or other bytes"
                " than its hash says",
            )
        self._files.append(StatementFile(arriving.name, arriving.path, arriving.sha256, arriving.size_bytes))


def _check_begin(begin: pb.ReconcileRequest.Begin) -> None:
    checks = Checks()
    checks.text("begin.merchant_id", begin.merchant_id)
    if day_of(begin.date) is None:
        checks.fail("begin.date", "is not a day such as '2026-11-25'")
    checks.number("begin.differences_max", begin.differences_max, at_least=0, at_most=DIFFERENCES_MAX)
    checks.done()
