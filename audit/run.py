"""Carries out an audit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias

from audit import queries
from audit.corrections import read_corrections, unmoved_corrections
from audit.invariants import (
    INVARIANTS,
    B,
    Book,
    Each,
    Followed,
    OfCorrections,
    OfOrders,
    OfPayments,
    OfSettlements,
    Query,
)
from audit.merge import Key
from audit.orders import read_orders, unmoved_orders
from audit.payments import read_payments, unmoved_payments
from audit.report import Line, Offence, Report
from audit.settlements import read_settlements, unmoved_settlements
from audit.snapshot import CALLERS_FIRST, Row, Snapshot, Snapshots, check_complete, connect, open_snapshots

WAIT_POLL_SECONDS = 0.2
SUSPECTS_MAX = 500
"""Suspects that are looked at again with one query."""


async def run_audit(dsns: Mapping[str, str], *, wait_seconds: float = 0.0) -> Report:
    """Check every invariant.

    `dsns` has the DSN of each database by service: edge, orchestrator, inventory, shipping, reconciler, payment, fraud,
    bank; others are ignored. `wait_seconds` is how long to wait for work under way to end before judging; what is still
    under way then is counted and not judged. Raises AuditError when a database cannot be read.
    """
    started = time.monotonic()
    check_complete(dsns)
    dsns = {name: dsns[name] for name in CALLERS_FIRST}
    if wait_seconds > 0:
        await _settle(dsns, wait_seconds)
    lines = {one.name: Line(one.number, one.name, one.sentence, one.compared) for one in INVARIANTS}
    payments = [(lines[i.name], c) for i in INVARIANTS for c in i.checks if isinstance(c, OfPayments)]
    settlements = [(lines[i.name], c) for i in INVARIANTS for c in i.checks if isinstance(c, OfSettlements)]
    orders = [(lines[i.name], c) for i in INVARIANTS for c in i.checks if isinstance(c, OfOrders)]
    corrections = [(lines[i.name], c) for i in INVARIANTS for c in i.checks if isinstance(c, OfCorrections)]
    async with open_snapshots(dsns) as snapshots:
        in_flight = {
            "sagas": (await snapshots["orchestrator"].fetch(queries.WAITING_SAGAS))[0][0],
            "payments": (await snapshots["payment"].fetch(queries.WAITING_PAYMENTS))[0][0],
            "settlements": (await snapshots["payment"].fetch(queries.OPEN_SETTLEMENTS))[0][0],
        }
        try:
            # Side by side, so that we judge the one while a database thinks about the other.
            async with asyncio.TaskGroup() as tasks:
                for snapshot in snapshots.values():
                    tasks.create_task(_query_all(snapshot, lines))
                for line, check in ((lines[i.name], c) for i in INVARIANTS for c in i.checks):
                    if isinstance(check, Followed):
                        tasks.create_task(_follow(snapshots, check, line))
                tasks.create_task(_judge_all(snapshots, read_payments(snapshots), payments, unmoved_payments))
                tasks.create_task(
                    _judge_all(snapshots, read_settlements(snapshots), settlements, unmoved_settlements)
                )
                tasks.create_task(_judge_all(snapshots, read_orders(snapshots), orders, unmoved_orders))
                tasks.create_task(
                    _judge_all(snapshots, read_corrections(snapshots), corrections, unmoved_corrections)
                )
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
    return Report(tuple(lines.values()), in_flight, time.monotonic() - started)


async def _settle(dsns: Mapping[str, str], seconds: float) -> None:
    """Return when nothing is under way, or after so long."""
    give_up_at = time.monotonic() + seconds
    async with (
        connect("orchestrator", dsns["orchestrator"]) as orders,
        connect("payment", dsns["payment"]) as payments,
    ):
        while time.monotonic() < give_up_at:
            waiting = 0
            for connection, query in (
                (orders, queries.WAITING_SAGAS),
                (payments, queries.WAITING_PAYMENTS),
                (payments, queries.OPEN_SETTLEMENTS),
            ):
                row = await (await connection.execute(query.encode())).fetchone()
                waiting += row[0] if row else 0
            if not waiting:
                return
            await asyncio.sleep(WAIT_POLL_SECONDS)


async def _query_all(snapshot: Snapshot, lines: Mapping[str, Line]) -> None:
    """All that one database says of itself."""
    for invariant in INVARIANTS:
        for check in invariant.checks:
            if isinstance(check, Query) and check.service == snapshot.service:
                await _query(snapshot, check, lines[invariant.name])


async def _follow(snapshots: Snapshots, check: Followed, line: Line) -> None:
    """A listener that is behind its source is under way; one that is ahead has applied what never was."""
    ends: dict[str, int] = {}
    for snapshot in snapshots.values():
        aside = (await snapshot.fetch(queries.ASIDE))[0][0]
        line.in_flight += aside
        for listener, source, position in await snapshot.fetch(queries.INBOXES):
            if source not in snapshots:
                continue
            if source not in ends:
                # As it is now: the snapshots are not of one moment, and logs only grow.
                ends[source] = (await snapshots[source].fetch_present(queries.COUNT_POSITIONS))[0][0]
            line.count(check.what, 1)
            line.in_flight += int(position < ends[source])
            if position > ends[source]:
                what = f"has applied events of {source} up to {position}, and there are {ends[source]}"
                line.offend([Offence("", listener, what)])


async def _query(snapshot: Snapshot, check: Query, line: Line) -> None:
    if check.counted is not None:
        what, counting = check.counted
        line.count(what, (await snapshot.fetch(counting))[0][0])
    for query in check.offending:
        if check.again_seconds:
            suspects = await snapshot.fetch(query)
            if suspects:
                await asyncio.sleep(check.again_seconds)
                still = {row[:2] for row in await snapshot.fetch_present(query)}
                line.in_flight += len(suspects) - len([row for row in suspects if row[:2] in still])
                line.offend(_offence(row) for row in suspects if row[:2] in still)
            continue
        async for rows in snapshot.batches(query):
            line.offend(_offence(row) for row in rows)
    if check.noted is not None:
        line.noted_as, noting = check.noted
        async for rows in snapshot.batches(noting):
            line.note(_offence(row) for row in rows)


def _offence(row: Row) -> Offence:
    return Offence(row[0] or "", row[1] or "", row[2])


Unmoved: TypeAlias = Callable[[Snapshots, Sequence[B]], Awaitable[set[Key]]]
"""Those books whose row at their caller is the same at present as in the snapshot."""


@dataclass(frozen=True, slots=True)
class _Suspect(Generic[B]):
    """Something that seems to break an invariant."""

    line: Line
    rule: Each[B]
    book: B
    faults: Sequence[str]


class _Suspects(Generic[B]):
    """What is to be looked at again, some at a time."""

    def __init__(self, snapshots: Snapshots, unmoved: Unmoved[B]) -> None:
        self._snapshots = snapshots
        self._unmoved = unmoved
        self._waiting: list[_Suspect[B]] = []

    async def put(self, suspect: _Suspect[B]) -> None:
        """Look at this one again, now or later."""
        self._waiting.append(suspect)
        if len(self._waiting) >= SUSPECTS_MAX:
            await self.look_again()

    async def look_again(self) -> None:
        """Those that have not moved offend; the others were in flight."""
        waiting, self._waiting = self._waiting, []
        books = {(one.book.merchant_id, one.book.id): one.book for one in waiting}
        still = await self._unmoved(self._snapshots, list(books.values())) if books else set()
        for one in waiting:
            count = one.rule.count(one.book)
            if (one.book.merchant_id, one.book.id) in still:
                one.line.count(one.rule.what, count)
                one.line.offend(_offences(one.book, one.faults))
            else:
                one.line.in_flight += count


async def _judge_all(
    snapshots: Snapshots, books: AsyncIterator[B], rules: Sequence[tuple[Line, Each[B]]], unmoved: Unmoved[B]
) -> None:
    """Judge every book by every rule."""
    suspects = _Suspects(snapshots, unmoved)
    judged = [0] * len(rules)
    async for book in books:
        waits = book.in_flight
        for place, (line, rule) in enumerate(rules):
            count = rule.count(book)
            if not count:
                continue
            if rule.across and waits:
                line.in_flight += count
                continue
            faults = list(rule.judge(book))
            if faults and rule.across:
                await suspects.put(_Suspect(line, rule, book, faults))
                continue
            judged[place] += count
            if faults:
                line.offend(_offences(book, faults))
    await suspects.look_again()
    for (line, rule), count in zip(rules, judged, strict=True):
        line.count(rule.what, count)


def _offences(book: Book, faults: Iterable[str]) -> list[Offence]:
    return [Offence(book.merchant_id, book.id, fault) for fault in faults]
