"""The RPCs of the orchestrator: proto in, sagas, proto out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit import telemetry
from services.kit.checks import Checks, page_size
from services.kit.clock import now_ms
from services.kit.coalescer import Limits
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import InProgress, NotFound, Overloaded, Refused
from services.kit.idempotency import begin_set, identity
from services.kit.rpc.method import SetMethod
from services.kit.sets import Answer, Command, Failed, Pending
from services.orchestrator import domain, store
from services.orchestrator.domain import Saga, SagaKey
from services.orchestrator.ownership import Ownership
from services.orchestrator.runner import Engine, Running, still_under_way
from services.orchestrator.service.messages import METHOD, PACK, STATES, order_message, saga_message
from services.orchestrator.service.requests import parse_order
from services.orchestrator.store import StoredSaga

NAME = "paymesh.orchestrator.v1.OrchestratorService"

WATCH_POLL_SECONDS = 0.25
"""How often a watched saga that another orchestrator drives is read again."""
FULL_RETRY_AFTER_MS = 1_000
WAVE_MS = 200.0
"""How long a few single orders wait while two small waves are under way: about what a wave takes."""

OrderOutcome = Answer[pb.PlaceOrderResponse] | Failed | Pending[pb.PlaceOrderResponse]


class OrchestratorService:
    """See the contract, paymesh/orchestrator/v1/orchestrator.proto."""

    def __init__(self, database: Database, engine: Engine, ownership: Ownership) -> None:
        self._database = database
        self._engine = engine
        self._ownership = ownership
        self._placing = SetMethod(
            f"{NAME}/{METHOD}",
            parse=parse_order,
            handle=self._place,
            batch_response=pb.BatchPlaceOrdersResponse,
            id_prefix="saga",
            seconds_max=30.0,
            limits=Limits(linger_ms=WAVE_MS),
            starts_traces=True,
        )
        self.PlaceOrder, self.BatchPlaceOrders = self._placing.single, self._placing.batch

    async def drain(self) -> None:
        """Wait until every order that was accepted has been begun; its end may be another orchestrator's."""
        await self._placing.drain()

    async def _place(
        self, commands: Sequence[Command[pb.PlaceOrderRequest]], deadline: Deadline
    ) -> list[OrderOutcome]:
        """Make the start of each saga durable, then hand it to the engine; the answer comes when it has ended."""
        if self._engine.full:
            error = Overloaded(
                "OVERLOADED",
                "too many orders are under way; try again later",
                retry_after_ms=FULL_RETRY_AFTER_MS,
            )
            return [Failed(error)] * len(commands)
        epoch = self._ownership.epoch
        begun: dict[str, Running] = {}

        async def begin(
            tx: Transaction, fresh: list[Command[pb.PlaceOrderRequest]]
        ) -> list[Answer[pb.PlaceOrderResponse] | Failed | None]:
            now, loop = now_ms(), asyncio.get_running_loop()
            runnings = [_running(command, epoch, now, loop.create_future()) for command in fresh]
            stored = [_stored(running, command) for running, command in zip(runnings, fresh, strict=True)]
            references = [command.request.order_reference for command in fresh]
            accepted = await store.insert_sagas(tx, stored, references)
            begun.update((r.saga.saga_id, r) for r in runnings if r.saga.saga_id in accepted)
            return [
                None if command.resource_id in accepted else Failed(_reference_exists(reference))
                for command, reference in zip(fresh, references, strict=True)
            ]

        with self._engine.starting({(c.merchant_id, c.resource_id) for c in commands}):
            outcomes = await begin_set(self._database, METHOD, commands, begin, PACK, deadline)
            return self._driven(commands, outcomes, begun)

    def _driven(
        self,
        commands: Sequence[Command[pb.PlaceOrderRequest]],
        outcomes: Sequence[Answer[pb.PlaceOrderResponse] | Failed | None],
        begun: Mapping[str, Running],
    ) -> list[OrderOutcome]:
        """Drive what was begun, each once, and tell what to wait for. `begun` is by the saga's number."""
        epoch = self._ownership.epoch
        driven = [
            running
            for command, outcome in zip(commands, outcomes, strict=True)
            if outcome is None
            and (running := begun.get(command.resource_id)) is not None
            and running.epoch == epoch
        ]
        self._engine.drive(*driven)
        results: list[OrderOutcome] = []
        for command, outcome in zip(commands, outcomes, strict=True):
            if outcome is not None:
                results.append(self._joined(command, outcome))
                continue
            own = begun.get(command.resource_id)
            running = own or _first_with_key(command, commands, begun)
            if running.epoch == epoch:
                results.append(_pending(running, replayed=own is None))
            else:
                # The lease ran out meanwhile: whoever has it now takes this saga over.
                results.append(Failed(still_under_way(running.saga.order_id)))
        return results

    def _joined(
        self, command: Command[pb.PlaceOrderRequest], outcome: Answer[pb.PlaceOrderResponse] | Failed
    ) -> OrderOutcome:
        """A repeat of an order that is driven here waits with the first call; elsewhere it is told to ask again."""
        if not (isinstance(outcome, Failed) and isinstance(outcome.error, InProgress)):
            return outcome
        saga_id = outcome.error.facts.get("resource_id", "")
        if not saga_id:
            return outcome
        running = self._engine.running((command.merchant_id, saga_id))
        if running is not None:
            return _pending(running, replayed=True)
        return Failed(still_under_way(domain.order_id_of(saga_id)))

    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.GetOrderResponse:
        saga, order, epoch = await self._find_order(request.merchant_id, request.order_id)
        return pb.GetOrderResponse(order=order_message(saga, order), saga=saga_message(saga, epoch))

    async def WatchOrder(
        self, request: pb.WatchOrderRequest, context: Any
    ) -> AsyncIterator[pb.WatchOrderResponse]:
        key = (request.merchant_id, domain.saga_id_of(request.order_id))
        last: Saga | None = None
        while last is None or not last.state.ended:
            running = self._engine.running(key)
            saga, order, epoch = await self._find_order(request.merchant_id, request.order_id)
            if saga != last:
                last = saga
                yield pb.WatchOrderResponse(order=order_message(saga, order), saga=saga_message(saga, epoch))
            elif running is not None:
                await self._engine.changed(running, WATCH_POLL_SECONDS)
            else:
                await asyncio.sleep(WATCH_POLL_SECONDS)

    async def GetSaga(self, request: pb.GetSagaRequest, context: Any) -> pb.GetSagaResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("saga_id", request.saga_id)
        checks.done()
        found = await self._find((request.merchant_id, request.saga_id))
        if found is None:
            raise NotFound("UNKNOWN_SAGA", f"there is no saga {request.saga_id!r}")
        saga, _, epoch = found
        return pb.GetSagaResponse(saga=saga_message(saga, epoch))

    async def ListSagas(self, request: pb.ListSagasRequest, context: Any) -> pb.ListSagasResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("page_token", request.page_token, optional=True)
        by_number = {number: state for state, number in STATES.items()}
        for place, number in enumerate(request.states):
            if number not in by_number:
                checks.fail(f"states[{place}]", f"{number} is not a state of a saga")
        checks.done()
        size = page_size(request.page_size)
        states = [by_number[number] for number in request.states]
        page = await store.list_sagas(
            self._database, request.merchant_id, states, request.page_token, size + 1
        )
        more = page[size - 1].saga.saga_id if len(page) > size else ""
        sagas = [saga_message(s.saga, s.owner_epoch, history=False) for s in page[:size]]
        return pb.ListSagasResponse(sagas=sagas, next_page_token=more)

    async def _find_order(self, merchant_id: str, order_id: str) -> tuple[Saga, pb.PlaceOrderRequest, int]:
        checks = Checks()
        checks.text("merchant_id", merchant_id)
        checks.text("order_id", order_id)
        checks.done()
        found = await self._find((merchant_id, domain.saga_id_of(order_id)))
        if found is None or found[0].order_id != order_id:
            raise NotFound("UNKNOWN_ORDER", f"there is no order {order_id!r}")
        return found

    async def _find(self, key: SagaKey) -> tuple[Saga, pb.PlaceOrderRequest, int] | None:
        """The saga from memory if it is driven here, for that is ahead of the row."""
        running = self._engine.running(key)
        if running is not None:
            return running.durable, running.request, running.epoch
        stored = await store.find_saga(self._database, key)
        if stored is None:
            return None
        return stored.saga, pb.PlaceOrderRequest.FromString(stored.input), stored.owner_epoch


def _pending(running: Running, *, replayed: bool) -> Pending[pb.PlaceOrderResponse]:
    return Pending(running.ended, {"order_id": running.saga.order_id}, replayed)


def _first_with_key(
    command: Command[pb.PlaceOrderRequest],
    commands: Sequence[Command[pb.PlaceOrderRequest]],
    begun: Mapping[str, Running],
) -> Running:
    """The saga that was begun for the key of a command that was not the first of its set to have it."""
    key = identity(command)
    return next(
        begun[other.resource_id]
        for other in commands
        if other.resource_id in begun and identity(other) == key
    )


def _running(
    command: Command[pb.PlaceOrderRequest],
    epoch: int,
    now: int,
    ended: asyncio.Future[Answer[pb.PlaceOrderResponse] | Failed],
) -> Running:
    saga_id = command.resource_id
    order_id = domain.order_id_of(saga_id)
    saga = domain.begin(domain.PLACE, command.merchant_id, saga_id, order_id, now)
    span = command.span
    if span is not None:
        attributes = {"saga.id": saga_id, "saga.order_id": order_id}
        span = telemetry.start_child(span, f"saga {saga.kind}", attributes)
    return Running(saga, command.request, epoch, span, ended)


def _stored(running: Running, command: Command[pb.PlaceOrderRequest]) -> StoredSaga:
    return StoredSaga(
        running.saga,
        running.request.SerializeToString(),
        command.caller,
        command.key,
        telemetry.traceparent_of(running.span) if running.span else "",
        running.epoch,
    )


def _reference_exists(reference: str) -> Refused:
    return Refused(
        "ORDER_REFERENCE_EXISTS", f"another order is called {reference!r}", facts={"reference": reference}
    )
