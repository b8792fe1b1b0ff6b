"""Orders as they stand: from memory where they are driven here, for that is ahead of the rows; else from the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.db import Database
from services.orchestrator import domain, store
from services.orchestrator.domain import Saga, SagaKey
from services.orchestrator.interventions import Intervention
from services.orchestrator.runner import Engine
from services.orchestrator.service.messages import full_order_message, later_of, order_of, saga_message
from services.orchestrator.service.placed import no_order


class Told(NamedTuple):
    """A saga as it may be told."""

    saga: Saga
    request: Any
    """What it was begun with."""
    epoch: int
    interventions: Sequence[Intervention] = ()

    def message(self) -> pb.Saga:
        """On the wire, with its history."""
        return saga_message(self.saga, self.epoch, interventions=self.interventions)


class View(NamedTuple):
    """An order with all its sagas."""

    placing: Told
    later: Sequence[Told]
    """Oldest first."""

    @property
    def under_way(self) -> Told | None:
        """The saga that has not ended; there is at most one."""
        return next((one for one in (self.placing, *self.later) if not one.saga.state.ended), None)

    def order(self) -> pb.Order:
        """On the wire."""
        saga, request = self.placing.saga, self.placing.request
        later = [later_of(one.saga, one.request) for one in self.later]
        return full_order_message(saga, request, order_of(saga, request, later))

    def sagas(self) -> list[pb.Saga]:
        """On the wire, oldest first."""
        return [one.message() for one in (self.placing, *self.later)]


class Reader:
    """Finds them."""

    def __init__(self, database: Database, engine: Engine) -> None:
        self._database = database
        self._engine = engine

    async def saga(self, key: SagaKey) -> Told | None:
        """One saga."""
        running = self._engine.running(key)
        if running is not None:
            return Told(running.durable, running.request, running.epoch)
        stored = await store.find_saga(self._database, key)
        return None if stored is None else self._told(stored)

    async def order(self, merchant_id: str, order_id: str) -> View:
        """One order. Raises NotFound."""
        placing = await self.saga((merchant_id, domain.saga_id_of(order_id)))
        if placing is None or placing.saga.order_id != order_id:
            raise no_order(order_id)
        if not placing.saga.state.ended:
            return View(placing, ())
        later = await store.find_later(self._database, merchant_id, [order_id])
        return View(placing, [self._told(one) for one in later])

    async def orders(self, merchant_id: str, reference: str, before: str, limit: int) -> list[View]:
        """A merchant's orders, newest first, those older than the order `before` ("" for all): two queries, however
        many they are."""
        before_id = domain.saga_id_of(before) if before else ""
        listed = await store.list_placing(self._database, merchant_id, reference, before_id, limit)
        placing = [self._told(one) for one in listed]
        ended = [one.saga.order_id for one in placing if one.saga.state.ended]
        later: dict[str, list[Told]] = {order_id: [] for order_id in ended}
        if ended:
            for found in await store.find_later(self._database, merchant_id, ended):
                later[found.saga.order_id].append(self._told(found))
        return [View(one, later.get(one.saga.order_id, ())) for one in placing]

    def _told(self, stored: store.StoredSaga) -> Told:
        running = self._engine.running(stored.saga.key)
        if running is not None:
            return Told(running.durable, running.request, running.epoch)
        request = self._engine.read(stored.saga.kind, stored.input)
        return Told(stored.saga, request, stored.owner_epoch, stored.interventions)
