"""What a service announces, written in the transaction that makes it true, so that nothing is announced that did not
happen and nothing that happened goes unannounced. `events` carries it to the other services.

Of one aggregate the second announcement must be made under a lock that the first one's transaction has held to its end,
or by somebody who knows that the first is committed: that is what keeps them in order."""

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


class Packed(NamedTuple):
    """An event whose bytes were there already."""

    type: str
    """Full name of the message."""
    payload: bytes


class Announcement(NamedTuple):
    """One event for other services. Its type on the wire is the full name of the message."""

    merchant_id: str
    aggregate_id: str
    event: Message | Packed
    traceparent: str = ""


def announce(tx: Transaction, announcements: Sequence[Announcement], *, urgent: bool = False) -> None:
    """Append to the outbox, in order. `urgent` is for what somebody waits for: it is not held back to gather
    company."""
    if not announcements:
        return
    events = [_packed(a.event) for a in announcements]
    tx.announces = True
    tx.urgent = tx.urgent or urgent
    tx.later(
        _APPEND,
        {
            "merchants": [a.merchant_id for a in announcements],
            "aggregates": [a.aggregate_id for a in announcements],
            "types": [event.type for event in events],
            "payloads": [event.payload for event in events],
            "traceparents": [a.traceparent for a in announcements],
        },
    )


def _packed(event: Message | Packed) -> Packed:
    return (
        event if isinstance(event, Packed) else Packed(event.DESCRIPTOR.full_name, event.SerializeToString())
    )
