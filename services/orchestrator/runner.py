"""The engine: drives sagas in waves.

What is authoritative: the sagas table. A saga in memory is a copy with a head start; when the process dies, its next
owner begins again from the row, and every repeated call is recognized by its key.

What is durable, and when: the start before the first call (`service`), the decision to turn back before the first undo,
and the end before the caller is answered. Nothing has to be for a pivot: should it be passed and its answer lost, the
next owner comes to it again by its key. Results of steps ride on the next of these writes.

The domain decides, the lanes do. `_advance` asks the domain what sagas that stand at one position do now, and puts them
into lanes. Sagas due for the same step go out as one batch call, so a refused order costs its neighbours nothing: it
merely continues in another lane.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from opentelemetry.trace import Span
from prometheus_client import Counter

from services.kit import telemetry
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import InProgress
from services.kit.outbox import Announcement, Packed, announce
from services.kit.sets import Answer, Failed, M
from services.orchestrator import domain, store
from services.orchestrator.clients import Participant, Wave
from services.orchestrator.domain import (
    Attempt,
    Call,
    Direction,
    Finish,
    Outcome,
    Park,
    Position,
    Saga,
    SagaKey,
    State,
    Turn,
    Wait,
)
from services.orchestrator.lane import Lane

log = logging.getLogger(__name__)

SAGAS = Counter("paymesh_sagas_total", "Sagas that have ended here, by the state they ended in.", ("state",))


@dataclass(frozen=True, slots=True)
class Contract(Generic[M]):
    """What the engine has to know of the wire, for one kind of saga: it carries requests and answers without looking
    into them."""

    read: Callable[[bytes], Any]
    """The request as it is stored with the saga."""
    answer: Callable[[Saga, Any], Answer[M]]
    """What the caller is told at the end; takes the request."""
    event: Callable[[Saga, M], Packed]
    """What is announced at the end."""


@dataclass(slots=True, eq=False)
class Running:
    """A saga that this orchestrator drives."""

    saga: Saga
    request: Any
    """What it was begun with."""
    epoch: int
    span: Span | None
    ended: asyncio.Future[Answer[Any] | Failed]
    undecided: Saga | None = None
    """The saga before a decision that is being made durable: until it is, nothing new is begun, and this is what others
    are told."""
    abandoned: bool = False
    """Another orchestrator owns it now."""
    watchers: tuple[asyncio.Future[None], ...] = ()

    @property
    def durable(self) -> Saga:
        """The saga as it may be told."""
        return self.undecided or self.saga


class Engine:
    """Holds the sagas under way and the lanes that move them."""

    def __init__(
        self,
        database: Database,
        contracts: Mapping[str, Contract[Any]],
        participants: Mapping[str, Participant],
        active_max: int,
    ) -> None:
        self._database = database
        self._contracts = contracts
        self._participants = participants
        self._active_max = active_max
        self._active: dict[SagaKey, Running] = {}
        self._starting: set[SagaKey] = set()
        self._saves: Lane[Running] = Lane("save", self._save)
        self._lanes = {
            Call(step.name, direction): self._lane(step.name, direction, step.seconds)
            for plan in domain.PLANS.values()
            for step in plan.steps
            for direction in Direction
            if direction is Direction.DO or step.undo is not None
        }

    def read(self, kind: str, stored: bytes) -> Any:
        """The request that is stored with a saga of this kind."""
        return self._contracts[kind].read(stored)

    def full(self, watched: int) -> bool:
        """Whether new sagas must be shed; so many more are only watched."""
        return len(self._active) + watched >= self._active_max

    def running(self, key: SagaKey) -> Running | None:
        """The saga if it is driven here."""
        return self._active.get(key)

    def keys(self) -> set[SagaKey]:
        """The sagas that are driven here, or about to be."""
        return self._active.keys() | self._starting

    @contextlib.contextmanager
    def starting(self, keys: Collection[SagaKey]) -> Iterator[None]:
        """Inside, sagas that are not durable yet, or that are and not driven yet, are nobody else's business."""
        self._starting.update(keys)
        try:
            yield
        finally:
            self._starting.difference_update(keys)

    def drive(self, *runnings: Running) -> None:
        """Begin, or go on, with sagas that are durable and ours. No saga is driven twice: one that is driven already
        stays with the driver of the newer epoch."""
        for running in runnings:
            driven = self._active.get(running.saga.key)
            if driven is not None and driven.epoch >= running.epoch:
                self._abandon(running)
                continue
            if driven is not None:
                self._abandon(driven)
            self._active[running.saga.key] = running
        self._advance(runnings)

    def dismiss(self, keys: Iterable[SagaKey]) -> None:
        """Forget sagas whose ends are durable, should that not have come round here yet."""
        for key in keys:
            if (ended := self._active.get(key)) is not None:
                self._abandon(ended)

    def abandon_all(self) -> None:
        """Forget every saga: the lease has run out and others may own them. Callers are told to ask again."""
        for running in list(self._active.values()):
            self._abandon(running)

    async def changed(self, running: Running, seconds: float) -> None:
        """Wait until something has happened to the saga, at most so long."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        running.watchers = (*running.watchers, watcher)
        try:
            await asyncio.wait((watcher,), timeout=seconds)
        finally:
            running.watchers = tuple(other for other in running.watchers if other is not watcher)

    def _advance(self, runnings: Iterable[Running]) -> None:
        """Do what is to be done now, with all sagas that stand at the same position at once."""
        standing: dict[tuple[str, Position], list[Running]] = {}
        for running in runnings:
            if not (running.undecided or running.abandoned):
                saga = running.saga
                standing.setdefault((saga.kind, saga.position), []).append(running)
        for group in standing.values():
            calls, position, then = domain.onward(group[0].saga)
            if calls:
                for running in group:
                    running.saga = domain.at(running.saga, position)
                for call in calls:
                    self._lanes[call].put(*group)
            if not isinstance(then, Wait):
                self._decide(group, then)

    def _decide(self, group: Sequence[Running], decision: Turn | Finish | Park) -> None:
        """Turned back, or ended: nothing new is begun until that is durable."""
        now = now_ms()
        for running in group:
            before = running.saga
            running.saga = (
                domain.turned(before, decision)
                if isinstance(decision, Turn)
                else domain.ended(before, decision, now)
            )
            running.undecided = before
        self._saves.put(*group)

    def _lane(self, step: str, direction: Direction, seconds: float) -> Lane[Running]:
        async def work(taken: list[Running]) -> None:
            await self._take(step, direction, [r for r in taken if not r.abandoned], seconds)

        return Lane(f"{step}/{direction}", work)

    async def _take(
        self, step: str, direction: Direction, runnings: Sequence[Running], seconds: float
    ) -> None:
        """One wave: one batch call for all sagas due for this step."""
        if not runnings:
            return
        started_at_ms = now_ms()
        sagas = [running.saga for running in runnings]
        spans = [_step_span(running, step, direction) if running.span else None for running in runnings]
        wave = Wave(step, sagas, [running.request for running in runnings], spans)
        participant = self._participants[step]
        ask = participant.do if direction is Direction.DO else participant.undo
        results = await ask(wave, Deadline.after(seconds))
        if len(results) != len(runnings):
            raise AssertionError(f"{step}: {len(runnings)} sagas, {len(results)} answers")
        ended_at_ms = now_ms()
        moved: list[Running] = []
        position: Position | None = None
        number = 0
        for running, span, result in zip(runnings, spans, results, strict=True):
            saga = running.saga
            if saga.position is not position:  # mostly they share one
                position, number = saga.position, domain.attempt_number(saga, step)
            outcome, reason, message, facts, retry_after_ms = result
            if span is not None:
                telemetry.end(span, reason or outcome, failed=outcome is not Outcome.DONE)
            attempt = Attempt(
                step,
                direction,
                number,
                outcome,
                reason,
                message,
                facts,
                started_at_ms,
                ended_at_ms,
                retry_after_ms,
            )
            running.saga, wait_ms = domain.attempted(saga, attempt)
            if wait_ms is None:
                moved.append(running)
            else:
                lane = self._lanes[Call(step, direction)]
                asyncio.get_running_loop().call_later(wait_ms / 1000, lane.put, running)
        self._advance(moved)
        for running in runnings:
            if running.watchers:
                _notify(running)

    async def _save(self, taken: list[Running]) -> None:
        """Make decisions durable: turned back, or ended. The end is announced, and the caller told after that."""
        by_epoch: dict[int, list[Running]] = {}
        for running in taken:
            if not running.abandoned:
                by_epoch.setdefault(running.epoch, []).append(running)
        for epoch, group in by_epoch.items():
            ends = {
                r.saga.saga_id: self._contracts[r.saga.kind].answer(r.saga, r.request)
                for r in group
                if r.saga.state.ended
            }
            owned = await self._write(group, epoch, ends)
            ended: list[Running] = []
            turned: list[Running] = []
            for running in group:
                saga_id = running.saga.saga_id
                if saga_id not in owned:
                    log.warning("saga %s has another owner now", saga_id)
                    self._abandon(running)
                elif saga_id in ends:
                    ended.append(running)
                else:
                    running.undecided = None
                    turned.append(running)
            self._finish(ended, ends)
            self._advance(turned)

    async def _write(self, group: Sequence[Running], epoch: int, ends: Mapping[str, Answer[Any]]) -> set[str]:
        """One transaction; returns the ids of the sagas that are still ours."""
        announcements = {
            r.saga.saga_id: Announcement(
                r.saga.merchant_id,
                r.saga.order_id,
                self._contracts[r.saga.kind].event(r.saga, ends[r.saga.saga_id].message),
                telemetry.traceparent_of(r.span) if r.span else "",
            )
            for r in group
            if r.saga.saga_id in ends
        }

        async def work(tx: Transaction) -> set[str]:
            owned = await store.save_sagas(tx, [r.saga for r in group], epoch)
            announce(tx, [a for saga_id, a in announcements.items() if saga_id in owned])
            return owned

        return await self._database.transact(work)

    def _finish(self, runnings: Sequence[Running], ends: Mapping[str, Answer[Any]]) -> None:
        """Their ends are durable: tell whoever waits for them."""
        counts: collections.Counter[State] = collections.Counter()
        for running in runnings:
            saga = running.saga
            state = saga.state
            counts[state] += 1
            self._forget(running)
            if running.span is not None:
                telemetry.end(running.span, state, failed=state is not State.COMPLETED)
            if state is State.PARKED:
                log.error("saga %s is parked: %s", saga.saga_id, saga.reason)
            if not running.ended.done():
                running.ended.set_result(ends[saga.saga_id])
            if running.watchers:
                _notify(running)
        for state, count in counts.items():
            SAGAS.labels(state.value).inc(count)

    def _forget(self, running: Running) -> None:
        if self._active.get(running.saga.key) is running:
            del self._active[running.saga.key]

    def _abandon(self, running: Running) -> None:
        running.abandoned = True
        self._forget(running)
        telemetry.end(running.span, "ABANDONED", failed=True)
        if not running.ended.done():
            running.ended.set_result(Failed(still_under_way(running.saga.order_id)))
        _notify(running)


def still_under_way(order_id: str) -> InProgress:
    """The order has not ended yet."""
    return InProgress(
        "IN_PROGRESS",
        f"order {order_id} is under way; ask again with the same key",
        facts={"order_id": order_id},
        retry_after_ms=200,
    )


def _step_span(running: Running, step: str, direction: Direction) -> Span | None:
    if running.span is None:
        return None
    attributes: dict[str, str | int] = {
        "saga.id": running.saga.saga_id,
        "saga.step": step,
        "saga.direction": direction.value,
        "saga.attempt": domain.attempt_number(running.saga, step),
    }
    name = f"{step}" if direction is Direction.DO else f"undo {step}"
    return telemetry.start_child(running.span, name, attributes)


def _notify(running: Running) -> None:
    watchers, running.watchers = running.watchers, ()
    for watcher in watchers:
        if not watcher.done():
            watcher.set_result(None)
