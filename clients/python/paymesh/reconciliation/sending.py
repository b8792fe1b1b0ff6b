"""One run of the reconciler as a caller sees it: files go up in pieces, progress and differences come back."""

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from paymesh.reconciler.v1 import reconciler_pb2 as pb
from paymesh.reconciler.v1 import reconciler_pb2_grpc

CHUNK_BYTES = 512 * 1024
RUN_SECONDS_MAX = 6 * 3600.0
"""A statement may have millions of lines; a run that takes longer than this hangs."""


class Watcher(Protocol):
    """Is told where a run is."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class StatementFile:
    """A statement on this machine."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(slots=True)
class Findings:
    """What a run has found."""

    summary: pb.Summary = field(default_factory=pb.Summary)
    differences: list[pb.ReconcileResponse.Difference] = field(default_factory=list)

    @property
    def standing(self) -> int:
        """Differences that are not closed."""
        return sum(count.standing for count in self.summary.differences)


def examine(path: Path, told: Callable[[int], None] = lambda _: None) -> StatementFile:
    """Read a file once to know its hash and size. `told` hears how many bytes were read. Raises OSError."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
            size_bytes += len(data)
            told(len(data))
    return StatementFile(path, digest.hexdigest(), size_bytes)


async def reconcile(
    stub: reconciler_pb2_grpc.ReconcilerServiceStub,
    begin: pb.ReconcileRequest.Begin,
    files: Sequence[StatementFile],
    watch: Watcher,
) -> Findings:
    """Send the files and wait for what comes of them."""
    findings = Findings()
    call = stub.Reconcile(_requests(begin, files, watch), timeout=RUN_SECONDS_MAX)
    async for response in call:
        part = response.WhichOneof("part")
        if part == "progress":
            watch(response.progress.phase, response.progress.done, response.progress.total)
        elif part == "difference":
            findings.differences.append(response.difference)
        elif part == "done":
            findings.summary = response.done
    return findings


async def _requests(
    begin: pb.ReconcileRequest.Begin, files: Sequence[StatementFile], watch: Watcher
) -> AsyncIterator[pb.ReconcileRequest]:
    yield pb.ReconcileRequest(begin=begin)
    total, sent = sum(file.size_bytes for file in files), 0
    for file in files:
        header = pb.ReconcileRequest.File(name=file.path.name, sha256=file.sha256, size_bytes=file.size_bytes)
        yield pb.ReconcileRequest(file=header)
        with file.path.open("rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                yield pb.ReconcileRequest(chunk=data)
                sent += len(data)
                watch("sending", sent, total)
