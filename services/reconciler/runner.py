"""What the reconciler does by itself: the run of the night, the posting of approved corrections, and the numbers that
alerts are made of."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, time
from functools import partial
from pathlib import Path

from prometheus_client import Counter, Gauge

from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.errors import InProgress, Kind, PaymeshError
from services.reconciler.config import ReconcilerConfig
from services.reconciler.domain import cases as domain
from services.reconciler.domain.cases import Case, CaseKind, Happened, State
from services.reconciler.reconciliation import Job, StatementFile, StatementRefused
from services.reconciler.runs import Runs
from services.reconciler.store import cases as store
from services.reconciler.store import statements

log = logging.getLogger(__name__)

POSTED_AT_ONCE = 20
"""Corrections that one round takes."""
WATCH_SECONDS = 5.0
HASH_BYTES = 1 << 20

CASES = Gauge("paymesh_reconciler_cases_waiting", "Cases that are not closed.", ("kind",))
CASE_SECONDS = Gauge(
    "paymesh_reconciler_case_seconds_max", "Since when the oldest case of a kind has been open.", ("kind",)
)
CORRECTION_SECONDS = Gauge(
    "paymesh_reconciler_correction_seconds_max", "How long the oldest approved correction waits for payment."
)
REFUSED = Counter("paymesh_reconciler_statements_refused_total", "Statements that a night could not import.")
NIGHTS_FAILED = Counter(
    "paymesh_reconciler_nights_failed_total", "Nightly runs of a merchant that came to nothing."
)

Announce = Callable[[Transaction, Case], None]
"""Announces, in the transaction that closes it, that a case was resolved."""


class Night:
    """Once a night: imports what lies in the folder of each merchant, and matches."""

    def __init__(self, runs: Runs, config: ReconcilerConfig) -> None:
        self._runs = runs
        self._folder = Path(config.nightly_folder)
        hours, minutes = config.nightly_at.split(":")
        self._at = time(int(hours), int(minutes))
        self._poll_seconds = config.nightly_poll_seconds
        self._done: dict[str, date] = {}

    async def run(self) -> None:
        """Reconcile every merchant once a day, for ever. After a restart it does so again, which changes nothing."""
        while True:
            now = datetime.now(UTC)
            if now.time() >= self._at:
                await self._reconcile_all(now.date())
            await asyncio.sleep(self._poll_seconds)

    async def _reconcile_all(self, today: date) -> None:
        for folder in await asyncio.to_thread(_folders, self._folder):
            if self._done.get(folder.name) != today and await self._reconcile(folder, today):
                self._done[folder.name] = today

    async def _reconcile(self, folder: Path, today: date) -> bool:
        """Whether a merchant needs no further run today. A statement that is refused is left out, so that it does not
        keep the others from being matched."""
        files = await asyncio.to_thread(_files, folder)
        while True:
            job = Job(merchant_id=folder.name, until=today, files=files)
            try:
                report = await self._runs.run(job, lambda *_: None)
            except StatementRefused as refused:
                REFUSED.inc()
                log.warning("merchant %s: a statement was refused: %s", folder.name, refused.message)
                files = [file for file in files if file.name != refused.name]
                continue
            except InProgress:
                # Somebody else is at it: they do the same.
                return False
            except PaymeshError as error:
                NIGHTS_FAILED.inc()
                log.warning("merchant %s: the nightly run failed and is tried again: %s", folder.name, error)
                return False
            standing = sum(count.standing for count in report.counts)
            log.info("merchant %s: reconciled, %d differences stand", folder.name, standing)
            return True


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _files(folder: Path) -> list[StatementFile]:
    """What lies in a merchant's folder, by name; what begins with a dot is not there yet."""
    return [
        StatementFile(path.name, path, _sha256(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(HASH_BYTES):
            digest.update(data)
    return digest.digest()


class Poster:
    """Has approved corrections posted. One loop per process; several share the work by taking disjoint cases."""

    def __init__(
        self,
        database: Database,
        post: Callable[[Case], Awaitable[str]],
        announce: Announce,
        config: ReconcilerConfig,
    ) -> None:
        self._database = database
        self._post = post
        self._announce = announce
        self._config = config

    async def run(self) -> None:
        """Post what is due, for ever."""
        while True:
            due = await self._database.transact(self._take)
            for case in due:
                await self._carry_out(case)
            if len(due) < POSTED_AT_ONCE:
                await asyncio.sleep(self._config.post_poll_seconds)

    async def _take(self, tx: Transaction) -> list[Case]:
        return await store.take_due(tx, POSTED_AT_ONCE, self._config.post_first_ms, self._config.post_max_ms)

    async def _carry_out(self, case: Case) -> None:
        """Ask payment, then write down what it said. No answer: the case is due again later, under the same key."""
        decide: Callable[[Case], tuple[Case, Happened]]
        try:
            decide = partial(domain.posted, journal_id=await self._post(case), now_ms=now_ms())
        except PaymeshError as error:
            if error.kind not in (Kind.REFUSED, Kind.INVALID):
                log.warning("%s: its correction waits for payment: %s", case.case_id, error)
                return
            decide = partial(domain.not_posted, reason=error.reason, message=error.message)
        await self._database.transact(partial(self._end, case=case, decide=decide))

    async def _end(
        self, tx: Transaction, *, case: Case, decide: Callable[[Case], tuple[Case, Happened]]
    ) -> None:
        key = (case.merchant_id, case.case_no)
        now = (await store.lock_cases(tx, [key])).get(key)
        if now is None or now.state is not State.RESOLVING:
            return  # another process was faster, with the same answer
        ended, happened = decide(now)
        store.save_cases(tx, [(ended, happened)])
        if ended.state is State.CLOSED:
            self._announce(tx, ended)


async def watch(database: Database) -> None:
    """Keep the numbers about cases up to date, for ever."""
    while True:
        standing = {row.kind: row for row in await statements.count_standing(database)}
        for kind in CaseKind:
            row = standing.get(str(kind))
            CASES.labels(str(kind)).set(row.cases if row else 0)
            CASE_SECONDS.labels(str(kind)).set(row.oldest_seconds if row else 0)
        CORRECTION_SECONDS.set(await statements.count_resolving(database))
        await asyncio.sleep(WATCH_SECONDS)
