"""What a service announces, written in the transaction that makes it true, so that nothing is announced that did not
happen and nothing that happened goes unannounced. A relay carries it to the other services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import Message

from services.kit.db import Transaction

_APPEND = """
INSERT INTO outbox (merchant_id, aggregate_id, type, payload, traceparent)
SELECT * FROM unnest(%(merchants)s::text[], %(aggregates)s::text[], %(types)s::text[], %(payloads)s::bytea[],
                     %(traceparents)s::text[])
"""


class Announcement(NamedTuple):
    """One event for other services. Its type on the wire is the full name of the message."""

    merchant_id: str
    aggregate_id: str
    event: Message
    traceparent: str = ""


def announce(tx: Transaction, announcements: Sequence[Announcement]) -> None:
    """Append to the outbox, in order."""
    if not announcements:
        return
    tx.later(
        _APPEND,
        {
            "merchants": [a.merchant_id for a in announcements],
            "aggregates": [a.aggregate_id for a in announcements],
            "types": [a.event.DESCRIPTOR.full_name for a in announcements],
            "payloads": [a.event.SerializeToString() for a in announcements],
            "traceparents": [a.traceparent for a in announcements],
        },
    )
