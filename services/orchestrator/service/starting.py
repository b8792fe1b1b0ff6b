"""How sagas are begun: claimed, decided and written down as a set, then driven; their callers wait for the ends.

Each RPC that begins sagas is one `Starts` with a `begin` of its own, which decides and writes inside the transaction
that claims the keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

from services.kit import telemetry
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import InProgress, Overloaded, PaymeshError
from services.kit.idempotency import begin_set, identity
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, M, Pending, R
from services.orchestrator import domain
from services.orchestrator.domain import Plan
from services.orchestrator.ownership import Ownership
from services.orchestrator.runner import Engine, Running, still_under_way
from services.orchestrator.service.choreography import Observer
from services.orchestrator.store import NOBODY, StoredSaga

FULL_RETRY_AFTER_MS = 1_000

Begin: TypeAlias = Callable[[Transaction, list[Command[R]], int], Awaitable[Sequence[Running | PaymeshError]]]
"""Decides and writes down the sagas of fresh commands, for the owner with this epoch."""


@dataclass(frozen=True, slots=True)
class Starts(Generic[R, M]):
    """One RPC that begins sagas."""

    database: Database
    engine: Engine
    ownership: Ownership
    observer: Observer
    method: str
    """Scope of its idempotency keys."""
    pack: Pack[M]
    begin: Begin[R]
    order_id: Callable[[Command[R], str], str]
    """The order of a command, given the saga of an earlier command with its key."""

    async def handle(
        self, commands: Sequence[Command[R]], deadline: Deadline
    ) -> list[Answer[M] | Failed | Pending[M]]:
        """Make the start of each saga durable, then hand it to the engine; the answer comes when it has ended."""
        if self.engine.full(len(self.observer)):
            error = Overloaded(
                "OVERLOADED",
                "too many orders are under way; try again later",
                retry_after_ms=FULL_RETRY_AFTER_MS,
            )
            return [Failed(error)] * len(commands)
        epoch = self.ownership.epoch
        begun: dict[str, Running] = {}

        async def begin(tx: Transaction, fresh: list[Command[R]]) -> list[Answer[M] | Failed | None]:
            outcomes: list[Answer[M] | Failed | None] = []
            for one in await self.begin(tx, fresh, epoch):
                if isinstance(one, Running):
                    begun[one.saga.saga_id] = one
                    outcomes.append(None)
                else:
                    outcomes.append(Failed(one))
            return outcomes

        with self.engine.starting({(c.merchant_id, c.resource_id) for c in commands}):
            outcomes = await begin_set(self.database, self.method, commands, begin, self.pack, deadline)
            return self._driven(commands, outcomes, begun)

    def _driven(
        self,
        commands: Sequence[Command[R]],
        outcomes: Sequence[Answer[M] | Failed | None],
        begun: Mapping[str, Running],
    ) -> list[Answer[M] | Failed | Pending[M]]:
        """Drive what was begun, each once, and tell what to wait for. `begun` is by the saga's number."""
        epoch = self.ownership.epoch
        driven = [
            running
            for command, outcome in zip(commands, outcomes, strict=True)
            if outcome is None
            and (running := begun.get(command.resource_id)) is not None
            and running.epoch == epoch
        ]
        self.engine.drive(*driven)
        for command, outcome in zip(commands, outcomes, strict=True):
            watched = begun.get(command.resource_id)
            if outcome is None and watched is not None and watched.epoch == NOBODY:
                self.observer.expect(watched)
        results: list[Answer[M] | Failed | Pending[M]] = []
        for command, outcome in zip(commands, outcomes, strict=True):
            if outcome is not None:
                results.append(self._joined(command, outcome))
                continue
            own = begun.get(command.resource_id)
            running = own or _first_with_key(command, commands, begun)
            if running.epoch in (epoch, NOBODY):
                results.append(_pending(running, replayed=own is None))
            else:
                # The lease ran out meanwhile: whoever has it now takes this saga over.
                results.append(Failed(still_under_way(running.saga.order_id)))
        return results

    def _joined(self, command: Command[R], outcome: Answer[M] | Failed) -> Answer[M] | Failed | Pending[M]:
        """A repeat whose saga is driven here waits with the first call; elsewhere it is told to ask again."""
        if not (isinstance(outcome, Failed) and isinstance(outcome.error, InProgress)):
            return outcome
        saga_id = outcome.error.facts.get("resource_id", "")
        if not saga_id:
            return outcome
        key = (command.merchant_id, saga_id)
        running = self.engine.running(key) or self.observer.running(key)
        if running is not None:
            return _pending(running, replayed=True)
        return Failed(still_under_way(self.order_id(command, saga_id)))


def running_saga(
    command: Command[Any], plan: Plan, order_id: str, request: Any, epoch: int, now: int
) -> Running:
    """A saga that a command is about to begin; `request` is what is stored with it."""
    saga = domain.begin(plan, command.merchant_id, command.resource_id, order_id, now)
    span = command.span
    if span is not None:
        attributes = {"saga.id": saga.saga_id, "saga.order_id": order_id}
        span = telemetry.start_child(span, f"saga {saga.kind}", attributes)
    return Running(saga, request, epoch, span, asyncio.get_running_loop().create_future())


def stored_saga(running: Running, command: Command[Any]) -> StoredSaga:
    """Its row."""
    return StoredSaga(
        running.saga,
        running.request.SerializeToString(),
        command.caller,
        command.key,
        telemetry.traceparent_of(running.span) if running.span else "",
        running.epoch,
    )


def _pending(running: Running, *, replayed: bool) -> Pending[Any]:
    return Pending(running.ended, {"order_id": running.saga.order_id}, replayed)


def _first_with_key(
    command: Command[R], commands: Sequence[Command[R]], begun: Mapping[str, Running]
) -> Running:
    """The saga that was begun for the key of a command that was not the first of its set to have it."""
    key = identity(command)
    return next(
        begun[other.resource_id]
        for other in commands
        if other.resource_id in begun and identity(other) == key
    )
