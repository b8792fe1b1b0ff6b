"""Messages, deliveries and attempts.

Whoever attempts a delivery holds a lease on it: `leased`, with `due_at` as its end. It is written before the request is
made and committed, so of several who look for work one attempts it; if that one dies, it is due again by then. What an
attempt came to is written under its number, and counts only while nobody has begun another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.edge.domain.webhooks import DeliveryState, Failure, GivenUp, Next, Outcome
from services.edge.store.endpoints import EndpointKey
from services.kit.db import Database, Transaction

_MS = "(extract(epoch FROM {0}) * 1000)::bigint"
_DELIVERY = f"""d.merchant_id, d.delivery_id, d.endpoint_id, d.message_id, m.type, d.state, d.reason, d.attempts,
    {_MS.format("d.due_at")}, {_MS.format("d.created_at")}, {_MS.format("d.ended_at")}, m.body"""


class Message(NamedTuple):
    """An event as a merchant reads it."""

    merchant_id: str
    message_id: str
    type: str
    body: bytes
    occurred_at_ms: int


class NewDelivery(NamedTuple):
    """The task of bringing a message to an endpoint."""

    merchant_id: str
    delivery_id: str
    endpoint_id: str
    message_id: str
    given_up: GivenUp | None
    """Why it is not even begun, for one of a disabled endpoint: it can be sent again."""


class Delivery(NamedTuple):
    """A delivery as it stands."""

    merchant_id: str
    delivery_id: str
    endpoint_id: str
    message_id: str
    type: str
    state: DeliveryState
    reason: str
    attempts: int
    due_at_ms: int
    """When the next attempt is due; of one that is being attempted, when it will be again if that is never heard of."""
    created_at_ms: int
    ended_at_ms: int | None
    body: bytes


class Attempt(NamedTuple):
    """One request of a delivery."""

    number: int
    started_at_ms: int
    ended_at_ms: int | None
    """None while it is under way, or when whoever made it has died."""
    failure: Failure | None
    status: int | None
    detail: str
    duration_ms: int | None


class Claimed(NamedTuple):
    """A delivery that is to be attempted now, by us."""

    merchant_id: str
    delivery_id: str
    endpoint_id: str
    number: int
    failures: int
    """Failed attempts so far, since it was begun or sent again."""
    retry_until_ms: int
    url: str
    message_id: str
    type: str
    body: bytes
    occurred_at_ms: int


class Ended(NamedTuple):
    """An attempt that has ended, and what becomes of its delivery."""

    claimed: Claimed
    outcome: Outcome
    then: Next


def insert_messages(tx: Transaction, messages: Sequence[Message]) -> None:
    """Messages that are to be told; one that is there already stays as it was first told."""
    tx.later(
        """
        INSERT INTO webhook_messages (merchant_id, message_id, type, body, occurred_at)
        SELECT merchant_id, message_id, type, body, timestamptz 'epoch' + occurred * interval '1 millisecond'
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(types)s::text[], %(bodies)s::bytea[],
                    %(occurred)s::bigint[]) AS new (merchant_id, message_id, type, body, occurred)
        ON CONFLICT DO NOTHING
        """,
        {
            "merchants": [m.merchant_id for m in messages],
            "ids": [m.message_id for m in messages],
            "types": [m.type for m in messages],
            "bodies": [m.body for m in messages],
            "occurred": [m.occurred_at_ms for m in messages],
        },
    )


async def insert_deliveries(tx: Transaction, new: Sequence[NewDelivery], retry_seconds: float) -> int:
    """Deliveries, due at once; those of a message that an endpoint has been told of already are left out. Returns how
    many are new."""
    return await tx.execute(
        """
        INSERT INTO webhook_deliveries (merchant_id, delivery_id, endpoint_id, message_id, state, reason, ended_at,
                                        retry_until)
        SELECT merchant_id, delivery_id, endpoint_id, message_id,
               CASE reason WHEN '' THEN 'PENDING' ELSE 'GIVEN_UP' END, reason, CASE WHEN reason <> '' THEN now() END,
               now() + make_interval(secs => %(seconds)s)
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(endpoints)s::text[], %(messages)s::text[],
                    %(reasons)s::text[]) AS new (merchant_id, delivery_id, endpoint_id, message_id, reason)
        ON CONFLICT DO NOTHING
        """,
        {
            "merchants": [d.merchant_id for d in new],
            "ids": [d.delivery_id for d in new],
            "endpoints": [d.endpoint_id for d in new],
            "messages": [d.message_id for d in new],
            "reasons": [str(d.given_up or "") for d in new],
            "seconds": retry_seconds,
        },
    )


class Ready(NamedTuple):
    """An endpoint for which something is due."""

    merchant_id: str
    endpoint_id: str
    failing: bool
    """Whether its last attempts have failed."""


async def lock_ready(tx: Transaction, limit: int) -> list[Ready]:
    """Endpoints for which something is due, in no particular order, locked; those that somebody else holds are left
    out."""
    rows = await tx.fetch(
        """
        SELECT e.merchant_id, e.endpoint_id, e.failing_since IS NOT NULL FROM webhook_endpoints AS e
        WHERE e.state = 'ENABLED' AND EXISTS (
            SELECT FROM webhook_deliveries AS d
            WHERE d.merchant_id = e.merchant_id AND d.endpoint_id = e.endpoint_id AND d.state = 'PENDING'
              AND d.due_at <= now())
        ORDER BY random() LIMIT %(limit)s::int
        FOR NO KEY UPDATE OF e SKIP LOCKED
        """,
        {"limit": limit},
    )
    return [Ready(*row) for row in rows]


async def claim_deliveries(
    tx: Transaction, ready: Sequence[Ready], *, each: int, limit: int, lease_seconds: float
) -> list[Claimed]:
    """Take a lease on due deliveries of endpoints that are locked: at most `limit`, and of an endpoint no more than
    make `each` with those that are being attempted already, or one while it fails."""
    rows = await tx.fetch(
        f"""
        WITH chosen AS MATERIALIZED (
            SELECT due.merchant_id, due.delivery_id
            FROM unnest(%(merchants)s::text[], %(endpoints)s::text[], %(each)s::int[])
                 AS e (merchant_id, endpoint_id, at_once)
            CROSS JOIN LATERAL (
                SELECT d.merchant_id, d.delivery_id FROM webhook_deliveries AS d
                WHERE d.merchant_id = e.merchant_id AND d.endpoint_id = e.endpoint_id AND d.state = 'PENDING'
                  AND d.due_at <= now()
                ORDER BY d.due_at
                LIMIT greatest(0, e.at_once - (
                    SELECT count(*) FROM webhook_deliveries AS b
                    WHERE b.merchant_id = e.merchant_id AND b.endpoint_id = e.endpoint_id AND b.leased
                      AND b.due_at > now()))
                FOR NO KEY UPDATE SKIP LOCKED
            ) AS due
            LIMIT %(limit)s::int
        )
        UPDATE webhook_deliveries AS d
        SET attempts = d.attempts + 1, leased = true, due_at = now() + make_interval(secs => %(lease)s)
        FROM chosen AS c, webhook_messages AS m, webhook_endpoints AS e
        WHERE d.merchant_id = c.merchant_id AND d.delivery_id = c.delivery_id
          AND m.merchant_id = d.merchant_id AND m.message_id = d.message_id
          AND e.merchant_id = d.merchant_id AND e.endpoint_id = d.endpoint_id
        RETURNING d.merchant_id, d.delivery_id, d.endpoint_id, d.attempts, d.failures, {_MS.format("d.retry_until")},
                  e.url, d.message_id, m.type, m.body, {_MS.format("m.occurred_at")}
        """,
        {
            "merchants": [one.merchant_id for one in ready],
            "endpoints": [one.endpoint_id for one in ready],
            "each": [1 if one.failing else each for one in ready],
            "limit": limit,
            "lease": lease_seconds,
        },
    )
    claimed = [Claimed(*row) for row in rows]
    if claimed:
        _insert_attempts(tx, claimed)
    return claimed


def _insert_attempts(tx: Transaction, claimed: Sequence[Claimed]) -> None:
    params = {
        "merchants": [c.merchant_id for c in claimed],
        "ids": [c.delivery_id for c in claimed],
        "numbers": [c.number for c in claimed],
        "interrupted": str(Failure.INTERRUPTED),
    }
    tx.later(
        """
        UPDATE webhook_attempts AS a SET failure = %(interrupted)s, ended_at = now()
        FROM unnest(%(merchants)s::text[], %(ids)s::text[]) AS n (merchant_id, delivery_id)
        WHERE a.merchant_id = n.merchant_id AND a.delivery_id = n.delivery_id AND a.ended_at IS NULL
        """,
        params,
    )
    tx.later(
        """
        INSERT INTO webhook_attempts (merchant_id, delivery_id, number)
        SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(numbers)s::int[])
        """,
        params,
    )


def save_attempts(tx: Transaction, ended: Sequence[Ended]) -> None:
    """Write down what attempts came to, and what becomes of their deliveries: of those whose attempt is still the last,
    and which nobody has given up or sent again meanwhile. What was delivered is delivered in any case."""
    ordered = sorted(ended, key=lambda one: (one.claimed.merchant_id, one.claimed.delivery_id))
    params = {
        "merchants": [e.claimed.merchant_id for e in ordered],
        "ids": [e.claimed.delivery_id for e in ordered],
        "numbers": [e.claimed.number for e in ordered],
        "failures": [None if e.outcome.failure is None else str(e.outcome.failure) for e in ordered],
        "statuses": [e.outcome.status for e in ordered],
        "details": [e.outcome.detail for e in ordered],
        "durations": [e.outcome.duration_ms for e in ordered],
        "states": [str(e.then.state) for e in ordered],
        "reasons": [str(e.then.reason or "") for e in ordered],
        "waits": [e.then.wait_ms for e in ordered],
    }
    tx.later(
        """
        UPDATE webhook_attempts AS a
        SET ended_at = now(), failure = n.failure, status = n.status, detail = n.detail, duration_ms = n.duration_ms
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(numbers)s::int[], %(failures)s::text[],
                    %(statuses)s::int[], %(details)s::text[], %(durations)s::int[])
             AS n (merchant_id, delivery_id, number, failure, status, detail, duration_ms)
        WHERE a.merchant_id = n.merchant_id AND a.delivery_id = n.delivery_id AND a.number = n.number
        """,
        params,
    )
    tx.later(
        """
        UPDATE webhook_deliveries AS d
        SET state = n.state, reason = n.reason, leased = false, failures = d.failures + (n.state <> 'DELIVERED')::int,
            due_at = now() + n.wait_ms * interval '1 millisecond',
            ended_at = CASE WHEN n.state <> 'PENDING' THEN now() END
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(numbers)s::int[], %(states)s::text[],
                    %(reasons)s::text[], %(waits)s::bigint[])
             AS n (merchant_id, delivery_id, number, state, reason, wait_ms)
        WHERE d.merchant_id = n.merchant_id AND d.delivery_id = n.delivery_id AND d.attempts = n.number
          AND (d.leased OR n.state = 'DELIVERED')
        """,
        params,
    )


async def give_up(tx: Transaction, endpoints: Sequence[EndpointKey], reason: GivenUp) -> int:
    """Give up everything that waits for endpoints, which are locked; returns how much."""
    return await tx.execute(
        """
        UPDATE webhook_deliveries AS d SET state = 'GIVEN_UP', reason = %(reason)s, leased = false, ended_at = now()
        FROM unnest(%(merchants)s::text[], %(endpoints)s::text[]) AS e (merchant_id, endpoint_id)
        WHERE d.merchant_id = e.merchant_id AND d.endpoint_id = e.endpoint_id AND d.state = 'PENDING'
        """,
        {
            "reason": str(reason),
            "merchants": [m for m, _ in endpoints],
            "endpoints": [e for _, e in endpoints],
        },
    )


async def find_endpoint_of(tx: Transaction, merchant_id: str, delivery_id: str) -> str | None:
    """The endpoint of a delivery."""
    rows = await tx.fetch(
        """
        SELECT endpoint_id FROM webhook_deliveries WHERE merchant_id = %(merchant)s AND delivery_id = %(id)s
        """,
        {"merchant": merchant_id, "id": delivery_id},
    )
    return str(rows[0][0]) if rows else None


def send_again(tx: Transaction, merchant_id: str, delivery_ids: Sequence[str], retry_seconds: float) -> None:
    """Make deliveries due at once, with all their time before them, whatever has become of them. One that is being
    attempted is attempted again, unless that attempt delivers it."""
    tx.later(
        """
        UPDATE webhook_deliveries
        SET state = 'PENDING', reason = '', failures = 0, leased = false, due_at = now(), ended_at = NULL,
            retry_until = now() + make_interval(secs => %(seconds)s)
        WHERE merchant_id = %(merchant)s AND delivery_id = ANY(%(ids)s::text[])
        """,
        {"merchant": merchant_id, "ids": list(delivery_ids), "seconds": retry_seconds},
    )


async def list_given_up(tx: Transaction, merchant_id: str, endpoint_id: str, limit: int) -> list[str]:
    """Deliveries of an endpoint that were given up, oldest first."""
    rows = await tx.fetch(
        """
        SELECT delivery_id FROM webhook_deliveries
        WHERE merchant_id = %(merchant)s AND endpoint_id = %(endpoint)s AND state = 'GIVEN_UP'
        ORDER BY delivery_id LIMIT %(limit)s::int FOR UPDATE
        """,
        {"merchant": merchant_id, "endpoint": endpoint_id, "limit": limit},
    )
    return [str(delivery_id) for (delivery_id,) in rows]


async def list_deliveries(
    database: Database,
    merchant_id: str,
    *,
    endpoint_id: str = "",
    state: DeliveryState | None = None,
    before_id: str = "",
    limit: int,
) -> list[Delivery]:
    """A merchant's deliveries, newest first, those older than `before_id` ("" for all); of an endpoint, in a state."""
    rows = await database.fetch(
        f"""
        SELECT {_DELIVERY} FROM webhook_deliveries AS d
        JOIN webhook_messages AS m ON m.merchant_id = d.merchant_id AND m.message_id = d.message_id
        WHERE d.merchant_id = %(merchant)s AND (%(endpoint)s = '' OR d.endpoint_id = %(endpoint)s)
          AND (%(state)s = '' OR d.state = %(state)s) AND (%(before)s = '' OR d.delivery_id < %(before)s)
        ORDER BY d.delivery_id DESC LIMIT %(limit)s::int
        """,
        {
            "merchant": merchant_id,
            "endpoint": endpoint_id,
            "state": str(state or ""),
            "before": before_id,
            "limit": limit,
        },
    )
    return [_delivery(row) for row in rows]


async def find_delivery(database: Database, merchant_id: str, delivery_id: str) -> Delivery | None:
    """One delivery."""
    rows = await database.fetch(
        f"""
        SELECT {_DELIVERY} FROM webhook_deliveries AS d
        JOIN webhook_messages AS m ON m.merchant_id = d.merchant_id AND m.message_id = d.message_id
        WHERE d.merchant_id = %(merchant)s AND d.delivery_id = %(id)s
        """,
        {"merchant": merchant_id, "id": delivery_id},
    )
    return _delivery(rows[0]) if rows else None


async def list_attempts(database: Database, merchant_id: str, delivery_id: str) -> list[Attempt]:
    """The attempts at a delivery, oldest first."""
    rows = await database.fetch(
        f"""
        SELECT number, {_MS.format("started_at")}, {_MS.format("ended_at")}, failure, status, detail, duration_ms
        FROM webhook_attempts WHERE merchant_id = %(merchant)s AND delivery_id = %(id)s ORDER BY number
        """,
        {"merchant": merchant_id, "id": delivery_id},
    )
    return [
        Attempt(
            number, started, ended, None if failure is None else Failure(failure), status, detail, duration
        )
        for number, started, ended, failure, status, detail, duration in rows
    ]


async def count_overdue(database: Database, older_than_seconds: float, limit: int) -> int:
    """Deliveries of enabled endpoints that have been due for so long, up to `limit`."""
    rows = await database.fetch(
        """
        SELECT count(*) FROM (
            SELECT FROM webhook_deliveries AS d
            JOIN webhook_endpoints AS e ON e.merchant_id = d.merchant_id AND e.endpoint_id = d.endpoint_id
            WHERE d.state = 'PENDING' AND d.due_at < now() - make_interval(secs => %(seconds)s) AND e.state = 'ENABLED'
            LIMIT %(limit)s::int
        ) AS overdue
        """,
        {"seconds": older_than_seconds, "limit": limit},
    )
    return int(rows[0][0])


async def delete_old(tx: Transaction, keep_seconds: float, limit: int) -> int:
    """Forget deliveries that ended so long ago, with their attempts, and messages that none is left of; returns how
    many deliveries."""
    count = await tx.execute(
        """
        WITH old AS MATERIALIZED (
            SELECT merchant_id, delivery_id FROM webhook_deliveries
            WHERE state <> 'PENDING' AND ended_at < now() - make_interval(secs => %(seconds)s)
            ORDER BY ended_at LIMIT %(limit)s::int FOR UPDATE SKIP LOCKED
        ), attempts AS (
            DELETE FROM webhook_attempts AS a USING old
            WHERE a.merchant_id = old.merchant_id AND a.delivery_id = old.delivery_id
        )
        DELETE FROM webhook_deliveries AS d USING old
        WHERE d.merchant_id = old.merchant_id AND d.delivery_id = old.delivery_id
        """,
        {"seconds": keep_seconds, "limit": limit},
    )
    await tx.execute(
        """
        DELETE FROM webhook_messages AS m USING (
            SELECT o.merchant_id, o.message_id FROM webhook_messages AS o
            WHERE o.created_at < now() - make_interval(secs => %(seconds)s) AND NOT EXISTS (
                SELECT FROM webhook_deliveries AS d
                WHERE d.merchant_id = o.merchant_id AND d.message_id = o.message_id)
            ORDER BY o.created_at LIMIT %(limit)s::int
        ) AS lonely
        WHERE m.merchant_id = lonely.merchant_id AND m.message_id = lonely.message_id
        """,
        {"seconds": keep_seconds, "limit": limit},
    )
    return count


def _delivery(row: Sequence[object]) -> Delivery:
    (
        merchant_id,
        delivery_id,
        endpoint_id,
        message_id,
        type_,
        state,
        reason,
        attempts,
        due,
        created,
        ended,
        body,
    ) = row
    assert isinstance(body, bytes)
    return Delivery(
        str(merchant_id),
        str(delivery_id),
        str(endpoint_id),
        str(message_id),
        str(type_),
        DeliveryState(str(state)),
        str(reason),
        int(str(attempts)),
        int(str(due)),
        int(str(created)),
        None if ended is None else int(str(ended)),
        body,
    )
