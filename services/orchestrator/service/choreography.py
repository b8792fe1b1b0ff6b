"""The orchestrator's part in a choreographed order: it accepts it, watches how it fares, tells the caller, and has it
undone when no end comes in time. It calls nobody.

What is authoritative: the saga's row, as for any other saga. It is moved by what the participants announce
(`Observer`), in the transaction that moves the inbox, and by the clock (`Observer.watch_the_clock`), both under the
lock on the row. Its owner is `store.NOBODY`, so no orchestrator takes it over; any of them may hear of its end. Who
waits for it here is told by the event, or finds it in the row a moment later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from paymesh.choreography.v1 import choreography_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit import telemetry
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.errors import PaymeshError
from services.kit.events import Received
from services.kit.outbox import Announcement, Packed, announce
from services.kit.rpc.values import write_timestamp
from services.kit.sets import Answer
from services.orchestrator import domain, store
from services.orchestrator.config import OrchestratorConfig
from services.orchestrator.domain import Attempt, Direction, Outcome, Saga, SagaKey, State
from services.orchestrator.runner import SAGAS, Running
from services.orchestrator.service.messages import CONTRACTS
from services.orchestrator.store import StoredSaga

log = logging.getLogger(__name__)

BY_INVENTORY = (choreography_pb2.StepRefused, choreography_pb2.StepUndone)
BY_PAYMENT = (choreography_pb2.StepRefused, choreography_pb2.StepUndone)
BY_SHIPPING = (choreography_pb2.StepDone, choreography_pb2.StepRefused, choreography_pb2.StepUndone)
CALLER = "orchestrator"
"""In whose name the steps are taken, whoever leads: their keys are those of an orchestrated order."""
CLOCK_SECONDS = 1.0
OVERDUE_MAX = 200
"""Sagas that are turned back in one transaction."""
LOOK_SECONDS = 0.25
"""How often the rows of sagas are read whose callers wait here: their end may have been heard by another process."""

_CONTRACT = CONTRACTS[domain.PLACE.kind]
_DIRECTIONS = {pb.DIRECTION_DO: Direction.DO, pb.DIRECTION_UNDO: Direction.UNDO}
_WIRE = {direction: number for number, direction in _DIRECTIONS.items()}


def is_choreographed(request: pb.PlaceOrderRequest) -> bool:
    """Whether the services are to place the order by themselves."""
    return request.coordination == pb.COORDINATION_CHOREOGRAPHED


def begun(running: Running, traceparent: str) -> Announcement:
    """What starts the dance."""
    slip = _slip(running.saga, running.request)
    event = choreography_pb2.SagaBegun(slip=slip)
    return Announcement(running.saga.merchant_id, running.saga.saga_id, event, traceparent)


class Observer:
    """Of one process."""

    def __init__(self, database: Database, config: OrchestratorConfig) -> None:
        self._database = database
        self._turn_seconds = config.choreography_seconds
        self._park_seconds = config.choreography_undo_seconds
        self._awaited: dict[SagaKey, tuple[Running, float]] = {}
        self._ends: dict[SagaKey, tuple[Saga, Answer[Any]]] = {}

    def __len__(self) -> int:
        return len(self._awaited)

    def expect(self, running: Running) -> None:
        """Somebody waits here for the end of this saga."""
        self._awaited[running.saga.key] = (running, time.monotonic())

    def running(self, key: SagaKey) -> Running | None:
        """The saga if somebody waits for it here."""
        found = self._awaited.get(key)
        return found[0] if found else None

    async def apply(self, tx: Transaction, received: Sequence[Received]) -> None:
        """For a `Listener`: what has become known of sagas."""
        slips: dict[SagaKey, list[choreography_pb2.Slip]] = {}
        for one in received:
            slip = one.message.slip
            slips.setdefault((slip.merchant_id, slip.saga_id), []).append(slip)
        now = now_ms()
        stored = await store.lock_sagas(tx, list(slips))
        moved: list[tuple[Saga, StoredSaga]] = []
        for key, before in stored.items():
            if before.owner_epoch != store.NOBODY or before.saga.state.ended:
                continue
            after = domain.observed(_begin_again(before.saga), _attempts(slips[key]), now)
            if len(after.history) > len(before.saga.history):
                moved.append((after, before))
        await self._save(tx, moved)

    def applied(self, received: Sequence[Received]) -> None:
        """For a `Listener`: that is committed now."""
        for one in received:
            slip = one.message.slip
            end = self._ends.pop((slip.merchant_id, slip.saga_id), None)
            if end is not None:
                self._tell(*end)

    async def watch_the_clock(self) -> None:
        """Turn back, for ever, what has taken too long, and call a person for what cannot be undone either."""
        while True:
            turned, parked = await self._database.transact(self._end_what_is_overdue)
            for saga, answer in parked:
                self._ends.pop(saga.key, None)
                log.error("saga %s is parked: %s", saga.saga_id, saga.reason)
                self._tell(saga, answer)
            if turned < OVERDUE_MAX and len(parked) < OVERDUE_MAX:
                await asyncio.sleep(CLOCK_SECONDS)

    async def look(self) -> None:
        """Find, for ever, the ends of sagas that are waited for here and that another process has heard of."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            since = time.monotonic() - LOOK_SECONDS
            keys = [key for key, (_, at) in self._awaited.items() if at < since]
            if not keys:
                continue
            try:
                found = await self._database.transact(lambda tx, keys=keys: store.find_sagas(tx, keys))  # type: ignore[misc]
            except PaymeshError as error:
                log.warning("sagas that are waited for cannot be read: %s", error)
                continue
            for one in found:
                if one.saga.state.ended:
                    self._answer(one.saga, _answer(one.saga, one.input))

    async def _end_what_is_overdue(self, tx: Transaction) -> tuple[int, list[tuple[Saga, Answer[Any]]]]:
        return await self._turn_back(tx), await self._park(tx)

    async def _turn_back(self, tx: Transaction) -> int:
        overdue = await store.lock_overdue(tx, State.RUNNING, self._turn_seconds, OVERDUE_MAX)
        now = now_ms()
        moved = [(domain.timed_out(_begin_again(one.saga), now), one) for one in overdue]
        await self._save(tx, moved)
        announce(tx, [_timed_out(one) for one in overdue])
        if overdue:
            log.warning("turned back %d choreographed sagas that took too long", len(overdue))
        return len(overdue)

    async def _park(self, tx: Transaction) -> list[tuple[Saga, Answer[Any]]]:
        overdue = await store.lock_overdue(tx, State.COMPENSATING, self._park_seconds, OVERDUE_MAX)
        now = now_ms()
        return await self._save(tx, [(domain.given_up(one.saga, now), one) for one in overdue])

    async def _save(
        self, tx: Transaction, moved: Sequence[tuple[Saga, StoredSaga]]
    ) -> list[tuple[Saga, Answer[Any]]]:
        """Write down locked sagas and announce the ends. Returns what their callers are to be told after the commit."""
        if not moved:
            return []
        await store.save_sagas(tx, [saga for saga, _ in moved], store.NOBODY)
        ends: list[tuple[Saga, Answer[Any]]] = []
        announcements: list[Announcement] = []
        for saga, before in moved:
            if saga.state.ended:
                answer = _answer(saga, before.input)
                ends.append((saga, answer))
                self._ends[saga.key] = (saga, answer)
                event: Packed = _CONTRACT.event(saga, answer.message)
                announcements.append(Announcement(saga.merchant_id, saga.order_id, event, before.traceparent))
        announce(tx, announcements)
        return ends

    def _tell(self, saga: Saga, answer: Answer[Any]) -> None:
        SAGAS.labels(saga.state.value).inc()
        self._answer(saga, answer)

    def _answer(self, saga: Saga, answer: Answer[Any]) -> None:
        found = self._awaited.pop(saga.key, None)
        if found is not None and not found[0].ended.done():
            telemetry.end(found[0].span, saga.state, failed=saga.state is not State.COMPLETED)
            found[0].ended.set_result(answer)


def _answer(saga: Saga, stored: bytes) -> Answer[Any]:
    return _CONTRACT.answer(saga, _CONTRACT.read(stored))


def _begin_again(saga: Saga) -> Saga:
    """A row that was never written since its start has no steps."""
    if saga.position.steps:
        return saga
    return domain.begin(domain.PLACE, saga.merchant_id, saga.saga_id, saga.order_id, saga.created_at_ms)


def _slip(saga: Saga, request: pb.PlaceOrderRequest) -> choreography_pb2.Slip:
    slip = choreography_pb2.Slip(
        merchant_id=saga.merchant_id, saga_id=saga.saga_id, order_id=saga.order_id, caller=CALLER
    )
    slip.order.CopyFrom(request)
    return slip


def _timed_out(stored: StoredSaga) -> Announcement:
    saga = stored.saga
    slip = _slip(saga, _CONTRACT.read(stored.input))
    for attempt in saga.history:
        _write(slip.steps.add(), attempt)
    event = choreography_pb2.SagaTimedOut(slip=slip)
    return Announcement(saga.merchant_id, saga.saga_id, event, stored.traceparent)


def _attempts(slips: Sequence[choreography_pb2.Slip]) -> list[Attempt]:
    """The steps of several slips of one saga; what is known twice comes twice."""
    return [
        Attempt(
            step.name,
            _DIRECTIONS[step.direction],
            1,
            Outcome.REFUSED if step.refused else Outcome.DONE,
            step.reason,
            step.message,
            _facts(step.facts),
            step.started_at.ToMilliseconds(),
            step.ended_at.ToMilliseconds(),
        )
        for slip in slips
        for step in slip.steps
    ]


def _facts(facts: Mapping[str, str]) -> dict[str, str]:
    return dict(facts)


def _write(step: choreography_pb2.Step, attempt: Attempt) -> None:
    step.name = attempt.step
    step.direction = _WIRE[attempt.direction]
    step.refused = attempt.outcome is Outcome.REFUSED
    step.reason, step.message = attempt.reason, attempt.message
    for name, fact in attempt.facts.items():
        step.facts[name] = fact
    write_timestamp(step.started_at, attempt.started_at_ms)
    write_timestamp(step.ended_at, attempt.ended_at_ms)
