"""Listens to what payment and the orchestrator announce, and takes it in for the merchants."""

from __future__ import annotations

from collections.abc import Sequence

from services.edge.service.telling import told_of
from services.edge.webhooks import Webhooks
from services.kit.db import Transaction
from services.kit.events import Apply, Received


def taking(webhooks: Webhooks, source: str) -> Apply:
    """What is done with a set of events of a source: it is taken in, in the transaction that moves the inbox."""

    async def apply(tx: Transaction, received: Sequence[Received]) -> None:
        # Most merchants have no endpoint: of what happens to them nothing more is read.
        merchants = await webhooks.listening(tx, {one.event.merchant_id for one in received})
        if merchants:
            told = [
                told_of(source, event.position, event.merchant_id, event.announced_at_ms, message)
                for event, message, *_ in received
                if event.merchant_id in merchants
            ]
            await webhooks.take(tx, told)

    return apply
