"""A run: import, match, look for differences. One transaction, kept or rolled back at its very end, so that a preview
does exactly what a commit does.

It runs on a thread of its own, since reading files and waiting for large joins would keep the event loop from
everybody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

from services.kit.errors import Invalid
from services.kit.ids import new_id
from services.reconciler.domain.cases import Case
from services.reconciler.domain.pairing import pair
from services.reconciler.domain.rules import Rule, Rules, Shape
from services.reconciler.domain.statement import Read, Refusal, checked
from services.reconciler.store import differences, imports, matching, reports
from services.reconciler.store.connection import Connection, Stop, run_transaction
from services.reconciler.store.imports import Imported
from services.reconciler.store.matching import Matched
from services.reconciler.store.reports import Count

Tell = Callable[[str, int, int, str], None]
"""Told where a run is: phase, done, total (0 when not known), file."""


class StatementFile(NamedTuple):
    """A file that is there, whole."""

    name: str
    path: Path | None
    """Where its bytes are; None when its sender believes it to be imported already."""
    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done."""

    merchant_id: str
    until: date
    files: Sequence[StatementFile] = ()
    keep: bool = True
    differences_max: int = 0
    items_copied: int = 0
    """Items that were copied from payment for it; for the record."""
    accept_unproved: bool = False
    """Whether a statement may pass whose balances do not prove it to be whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found."""

    job: Job
    run_id: str
    files: Sequence[Imported]
    rules: Sequence[Matched]
    counts: Sequence[Count]
    differences: Sequence[tuple[Case, bool]]
    """Each with whether it is new."""
    more_differences: bool
    lines_waiting: int
    items_waiting: int
    took_ms: int


Keep = Callable[[Connection, Report], None]
"""Writes down what a run has found, as part of it."""


class StatementRefused(Invalid):
    """A statement cannot be imported, so nothing of the run stays."""

    def __init__(self, name: str, refusal: Refusal) -> None:
        where = f"{name}, line {refusal.line:,}" if refusal.line else name
        super().__init__(Invalid.field(f"{where}, {refusal.field}", refusal.reason).violations)
        self.name = name
        self.refusal = refusal


def reconcile(dsn: str, job: Job, rules: Rules, read: Read, tell: Tell, stop: Stop, keep: Keep) -> Report:
    """Carry a job out. Raises StatementRefused, InProgress, Retryable, Unknown; then nothing stays."""
    started = time.monotonic()
    run_id = new_id("run") if job.keep else ""
    with run_transaction(dsn, job.merchant_id, stop, keep=job.keep) as connection:
        matching.copy_open(connection, job.merchant_id)
        files = [_import(connection, job, file, read, tell, stop) for file in job.files]
        matched = _Matching(connection, job, run_id, tell, stop)
        matched.apply(rules.rules)
        matched.take_nothing()
        tell("looking for differences", 0, 0, "")
        differences.find_single(connection, job.merchant_id, rules)
        matched.apply([rule for rule in rules.rules if rule.shape is Shape.MANY_TO_ONE])
        stop.check()
        differences.find_rest(connection, job.merchant_id, rules, job.until)
        stop.check()
        matching.insert_open(connection, job.merchant_id)
        differences.save_cases(connection, job.merchant_id, run_id)
        stop.check()
        report = _report(connection, job, run_id, files, matched.made(), started)
        keep(connection, report)
    return report


def _import(
    connection: Connection, job: Job, file: StatementFile, read: Read, tell: Tell, stop: Stop
) -> Imported:
    known = imports.find_file(connection, job.merchant_id, file.sha256)
    if known is not None:
        return known._replace(name=file.name)
    if file.path is None:
        raise Invalid.field(file.name, "was not imported before: send its bytes")

    with file.path.open("rb") as stream:

        def progress(_: int) -> None:
            stop.check()
            tell("importing", stream.tell(), file.size_bytes, file.name)

        try:
            events = checked(read(stream, name=file.name), accept_unproved=job.accept_unproved)
            lines = imports.insert_events(connection, events, progress)
            tell("importing", file.size_bytes, file.size_bytes, file.name)
            return imports.insert_file(
                connection, job.merchant_id, file.sha256, file.name, file.size_bytes, lines
            )
        except Refusal as refusal:
            raise StatementRefused(file.name, refusal) from refusal


class _Matching:
    """What the rules have matched so far."""

    def __init__(self, connection: Connection, job: Job, run_id: str, tell: Tell, stop: Stop) -> None:
        self._connection = connection
        self._job = job
        self._run_id = run_id
        self._tell = tell
        self._stop = stop
        self._total, self._items = matching.count_open(connection)
        self._left = self._total
        self._made: dict[str, Matched] = {}
        tell("matching", 0, self._total, "")

    def apply(self, rules: Sequence[Rule]) -> None:
        """Every rule in turn, then those with a key without a limit on the days."""
        for rule, any_day in [(r, False) for r in rules] + [(r, True) for r in rules if r.keyed]:
            if not self._left or not self._items:
                return
            self._stop.check()
            merchant_id = self._job.merchant_id
            self._note(
                matching.match(self._connection, merchant_id, self._run_id, rule, pair, any_day=any_day)
            )
            self._tell("matching", self._total - self._left, self._total, "")

    def take_nothing(self) -> None:
        """What moves nothing needs no counterpart."""
        self._note(matching.match_nothing(self._connection, self._job.merchant_id, self._run_id))

    def made(self) -> list[Matched]:
        """By rule."""
        return [matched for matched in self._made.values() if matched.matches]

    def _note(self, matched: Matched) -> None:
        before = self._made.get(matched.rule, Matched(matched.rule, 0, 0, 0))
        self._made[matched.rule] = Matched(
            matched.rule,
            before.matches + matched.matches,
            before.lines + matched.lines,
            before.items + matched.items,
        )
        self._left -= matched.lines
        self._items -= matched.items


def _report(
    connection: Connection,
    job: Job,
    run_id: str,
    files: Sequence[Imported],
    matched: Sequence[Matched],
    started: float,
) -> Report:
    listed = reports.list_differences(connection, job.differences_max)
    lines_waiting, items_waiting = reports.count_waiting(connection)
    return Report(
        job=job,
        run_id=run_id,
        files=files,
        rules=matched,
        counts=reports.count_differences(connection),
        differences=listed,
        more_differences=reports.count_touched(connection) > len(listed),
        lines_waiting=lines_waiting,
        items_waiting=items_waiting,
        took_ms=int((time.monotonic() - started) * 1000),
    )
