"""Carries a verification out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.snapshot import Snapshot, open_snapshot
from audit.trail.checkpoints import ON_RECORD, Checkpoints
from audit.trail.histories import read_histories
from audit.trail.payments import EVENTS, PAYMENTS, History
from audit.trail.report import CHANGED, CHECKPOINT, DELETED, UNSEALED, Fault, TrailReport
from audit.trail.spool import Apart, Spool
from services.payment.trail.folder import CheckpointFolder, NoCheckpoint

LATE_SECONDS = 600
"""An event that is so much older than the newest sealed one, and is in no checkpoint, was not there when its time was
sealed. The sealer itself finds what came late within that time."""
STEP_PAYMENTS = 500
"""Payments between two steps of the progress."""

Progress = Callable[[str, int, int], None]
"""Told what is read, how much of it has been, and how much there is."""


async def verify(
    dsn: str,
    folder: Path,
    keys: Mapping[str, Ed25519PublicKey],
    progress: Progress = lambda what, done, of: None,
) -> TrailReport:
    """Verify the history that is in payment's database at `dsn`, by the checkpoints in `folder` and the keys, by name,
    that may have signed them. Raises AuditError when the database cannot be read."""
    started = time.monotonic()
    report = TrailReport()
    checkpoints = Checkpoints(CheckpointFolder(folder), keys, report)
    # The folder first: what is sealed was in the database before, so the snapshot has it.
    due = checkpoints.list()
    async with open_snapshot("payment", dsn) as snapshot:
        ((count,),) = await snapshot.fetch("SELECT count(*) FROM payments")
        with Spool(due) as spool, _tamed_collector():
            await _read_payments(snapshot, spool, report, count, progress)
            for done in checkpoints.read(spool):
                progress("checkpoints", done, due)
            checkpoints.compare_record([(row[0], row[1]) for row in await snapshot.fetch(ON_RECORD)])
            _compare(spool, checkpoints, report)
            if spool.twice:
                report.offend("", "checkpoints", Fault(CHECKPOINT, 0, f"seal {spool.twice} events twice"))
    report.seconds = time.monotonic() - started
    return report


@contextmanager
def _tamed_collector() -> Iterator[None]:
    """Nothing that is made here refers to itself, and there is a lot of it: looking for circles after every 700 objects
    takes a quarter of the time and finds none."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _read_payments(
    snapshot: Snapshot, spool: Spool, report: TrailReport, count: int, progress: Progress
) -> None:
    shown = 0
    histories = read_histories(snapshot.batches(PAYMENTS), snapshot.batches(EVENTS))
    async for found in histories:
        for history in found:
            _read_payment(history, spool, report)
        if report.payments - shown >= STEP_PAYMENTS:
            shown = report.payments
            progress("payments", shown, count)
    progress("payments", count, count)


def _read_payment(history: History, spool: Spool, report: TrailReport) -> None:
    lines, faults = history.judge()
    if lines:
        spool.put_present(lines)
    report.payments += 1
    report.events += len(history.events)
    report.unhashed += [event.hash for event in history.events].count(None)
    for fault in faults:
        report.offend(history.merchant_id, history.payment_id, fault)


def _compare(spool: Spool, checkpoints: Checkpoints, report: TrailReport) -> None:
    try:
        due_us = checkpoints.through_us - LATE_SECONDS * 1_000_000 if checkpoints.whole else -inf
        for apart in spool.compare():
            judge_apart(apart, report, due_us)
    except NoCheckpoint as error:
        report.offend("", "checkpoints", Fault(CHECKPOINT, 0, str(error)))


def judge_apart(apart: Apart, report: TrailReport, due_us: float) -> None:
    """Something is not the same where it is kept and in the checkpoints. What was recorded before `due_us` has to be in
    one of them; what was recorded later may not be sealed yet."""
    sealed, number, present = apart
    if sealed is None:
        assert present is not None, "one of the sides has it"
        if present.recorded_us < due_us:
            what = "is in no checkpoint, though what was recorded after it is"
            report.offend(present.merchant_id, present.payment_id, Fault(UNSEALED, present.version, what))
        else:
            report.unsealed += 1
        return
    if present is None:
        fault = Fault(DELETED, sealed.version, f"was sealed by checkpoint {number} and is gone")
    elif present.hash_hex != sealed.hash_hex:
        fault = Fault(CHANGED, sealed.version, f"is not what checkpoint {number} has sealed")
    else:
        fault = Fault(CHANGED, sealed.version, f"was recorded at another time, as checkpoint {number} says")
    report.offend(sealed.merchant_id, sealed.payment_id, fault)
