"""What checkpoints have sealed of a month."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.archive.month import Month
from audit.trail.spool import Spool
from services.payment.trail.checkpoint import Header, NoCheckpoint, faults_of
from services.payment.trail.folder import CheckpointFolder
from services.payment.trail.merkle import leaf_hash, root_of

Offend = Callable[[int, str], None]
"""Told the number of a checkpoint, and what is wrong with it."""


def read_sealed(
    folder: CheckpointFolder,
    numbers: Sequence[int],
    keys: Mapping[str, Ed25519PublicKey],
    month: Month,
    spool: Spool,
    offend: Offend,
) -> Iterator[tuple[int, int]]:
    """Check checkpoints, and put what they have sealed of a month into the spool. Yields each number with how many
    events that were."""
    first, following = month.first_id.encode(), month.following.first_id.encode()
    before: Header | None = None
    for number in numbers:
        try:
            header = folder.header(number)
            lines = list(folder.lines(number))
        except (NoCheckpoint, OSError) as error:
            offend(number, str(error))
            before = None
            continue
        behind = before if before is not None and before.number == number - 1 else None
        for what in faults_of(header, behind, keys):
            offend(number, what)
        if header.number != number:
            offend(number, f"has the name of another: it is checkpoint {header.number}")
        before = header
        if len(lines) != header.events or root_of([leaf_hash(line) for line in lines]).hex() != header.root:
            offend(number, "has entries that are not those that were signed")
            continue
        try:
            wanted = [line for line in lines if first <= line.split(b'"', 4)[3] < following]
            spool.put_sealed(number, wanted)
        except (IndexError, NoCheckpoint):
            offend(number, "has a line that is no entry")
            continue
        yield number, len(wanted)
