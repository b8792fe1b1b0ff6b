"""Begins sagas that place orders."""

from __future__ import annotations

from collections.abc import Sequence

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.clock import now_ms
from services.kit.db import Transaction
from services.kit.errors import PaymeshError, Refused
from services.kit.outbox import announce
from services.kit.sets import Command
from services.orchestrator import domain, store
from services.orchestrator.runner import Running
from services.orchestrator.service.choreography import begun, is_choreographed
from services.orchestrator.service.starting import running_saga, stored_saga


async def begin_placing(
    tx: Transaction, fresh: list[Command[pb.PlaceOrderRequest]], epoch: int
) -> Sequence[Running | PaymeshError]:
    """An order for each, unless its reference is taken."""
    now = now_ms()
    runnings = [
        running_saga(
            c,
            domain.PLACE,
            domain.order_id_of(c.resource_id),
            c.request,
            store.NOBODY if is_choreographed(c.request) else epoch,
            now,
        )
        for c in fresh
    ]
    stored = [stored_saga(running, command) for running, command in zip(runnings, fresh, strict=True)]
    references = [command.request.order_reference for command in fresh]
    accepted = await store.insert_sagas(tx, stored, references)
    announce(
        tx,
        [
            begun(running, row.traceparent)
            for running, row in zip(runnings, stored, strict=True)
            if running.epoch == store.NOBODY and running.saga.saga_id in accepted
        ],
        urgent=True,
    )
    return [
        running if running.saga.saga_id in accepted else _reference_exists(reference)
        for running, reference in zip(runnings, references, strict=True)
    ]


def _reference_exists(reference: str) -> Refused:
    return Refused(
        "ORDER_REFERENCE_EXISTS", f"another order is called {reference!r}", facts={"reference": reference}
    )
