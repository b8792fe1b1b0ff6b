"""What must be true of the checkpoints: their signatures, their order, and what the database has on record of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.trail.report import CHECKPOINT, Fault, TrailReport
from audit.trail.spool import Spool
from services.payment.trail.checkpoint import Header, NoCheckpoint, faults_of
from services.payment.trail.folder import CheckpointFolder
from services.payment.trail.merkle import leaf_hash, root_of

ON_RECORD = "SELECT number, header FROM event_checkpoints ORDER BY number"
GAP_NAMED_MAX = 20
"""Missing checkpoints of one gap that are named."""


class Checkpoints:
    """The checkpoints of a folder, as they are read one after the other."""

    def __init__(
        self, folder: CheckpointFolder, keys: Mapping[str, Ed25519PublicKey], report: TrailReport
    ) -> None:
        self._folder = folder
        self._keys = keys
        self._report = report
        self.whole = True
        """Whether none is missing and all could be read: only then what is in none was never sealed."""
        self.through_us = 0
        """Up to when everything is sealed."""
        self._headers: dict[int, str] = {}
        self._numbers: list[int] = []

    def list(self) -> int:
        """See what is there. Returns how many events their headers say they have."""
        try:
            self._numbers = self._folder.numbers()
        except FileNotFoundError:
            self._numbers = []
        events = 0
        for number in self._numbers:
            try:
                events += self._folder.header(number).events
            except (NoCheckpoint, TypeError):
                continue  # it is told when it is read
        return events

    def read(self, spool: Spool) -> Iterator[int]:
        """Read them all and put what they seal into the spool. Yields how many events have been read so far."""
        before: Header | None = None
        due = 1
        for number in self._numbers:
            for missing in range(due, min(number, due + GAP_NAMED_MAX)):
                self._offend(missing, "is missing between others")
            due = number + 1
            try:
                header = self._folder.header(number)
            except NoCheckpoint as error:
                self._offend(number, str(error))
                before = None
                continue
            self._report.checkpoints += 1
            self._headers[number] = header.line().decode()
            behind = before if before is not None and before.number == number - 1 else None
            if header.number != number:
                self._offend(number, f"has the name of another: it is checkpoint {header.number}")
            else:
                self._offend_all(number, faults_of(header, behind, self._keys))
            self._read_entries(header, number, spool)
            self.through_us = max(self.through_us, header.through[0])
            before = header
            yield self._report.sealed

    def _read_entries(self, header: Header, number: int, spool: Spool) -> None:
        lines = list(self._folder.lines(number))
        root = root_of([leaf_hash(line) for line in lines]).hex()
        if root != header.root or len(lines) != header.events:
            told = f"{len(lines)} of {header.events}" if len(lines) != header.events else f"{len(lines)}"
            self._offend(number, f"has entries ({told}) that are not those that were signed")
            return
        try:
            spool.put_sealed(number, lines)
        except NoCheckpoint as error:
            self._offend(number, str(error))
        self._report.sealed += len(lines)

    def compare_record(self, rows: Sequence[tuple[int, str]]) -> None:
        """Hold them against what the database has on record."""
        on_record = dict(rows)
        for number, header in on_record.items():
            if number not in self._headers:
                if number not in self._numbers:
                    self._look_again(number)
            elif self._headers[number] != header:
                self._offend(number, "is not the one that the database has on record")
        # The newest may have been made a moment ago.
        for number in self._numbers[:-1]:
            if number not in on_record:
                self._offend(number, "is not on record in the database")

    def _look_again(self, number: int) -> None:
        """It was not there when we began; it may have been made since."""
        newest = self._numbers[-1] if self._numbers else 0
        if number < newest and number not in self._numbers:
            return  # told as missing between others
        if not self._folder.file(number).exists():
            self._offend(number, "is on record in the database and missing in the folder")

    def _offend_all(self, number: int, faults: Iterable[str]) -> None:
        for what in faults:
            self._offend(number, what)

    def _offend(self, number: int, what: str) -> None:
        self.whole = False
        self._report.offend("", f"checkpoint {number}", Fault(CHECKPOINT, 0, what))
