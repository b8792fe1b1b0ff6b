"""All SQL of the inbox: how far a listener is with a source, and what it has set aside.

The inbox is one row per listener and source, and not one per event: a source's positions have no gaps, so that the last
one that was applied says of every event whether it has been. The row is locked and moved in the transaction that has
the events' effects, which makes each event once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from services.kit.db import Database, Transaction
from services.kit.errors import PaymeshError
from services.kit.events.log import Event

Aggregate = tuple[str, str]
"""(merchant, aggregate id)."""

_EVENT = """position, merchant_id, aggregate_id, type, payload, traceparent,
    (extract(epoch FROM announced_at) * 1000)::bigint"""


class Aside(NamedTuple):
    """An event that was set aside and is tried again."""

    event: Event
    tries: int
    """How often it was tried, this time included."""


class Place(NamedTuple):
    """Of one listener with one source; all SQL below is about one of them."""

    listener: str
    source: str


async def find_position(database: Database, place: Place) -> int | None:
    """The last position that was applied; None for a listener that has never heard of the source."""
    rows = await database.fetch(
        "SELECT position FROM inbox WHERE listener = %(listener)s AND source = %(source)s", place._asdict()
    )
    return rows[0][0] if rows else None


async def insert_position(database: Database, place: Place, position: int) -> int:
    """Begin behind a position, unless another process has begun already. Returns where."""

    async def work(tx: Transaction) -> int:
        rows = await tx.fetch(
            """
            INSERT INTO inbox (listener, source, position) VALUES (%(listener)s, %(source)s, %(position)s)
            ON CONFLICT (listener, source) DO UPDATE SET position = inbox.position
            RETURNING position
            """,
            place._asdict() | {"position": position},
        )
        return int(rows[0][0])

    return await database.transact(work)


async def lock_position(tx: Transaction, place: Place) -> int:
    """The last position that was applied, locked."""
    rows = await tx.fetch(
        "SELECT position FROM inbox WHERE listener = %(listener)s AND source = %(source)s FOR UPDATE",
        place._asdict(),
    )
    return int(rows[0][0])


def save_position(tx: Transaction, place: Place, position: int) -> None:
    """Everything up to `position` is applied or set aside."""
    tx.later(
        "UPDATE inbox SET position = %(position)s, applied_at = now()"
        " WHERE listener = %(listener)s AND source = %(source)s",
        place._asdict() | {"position": position},
    )


async def find_waiting(
    reader: Database | Transaction, place: Place, aggregates: Collection[Aggregate]
) -> set[Aggregate]:
    """Those that have an event set aside: what comes of them now has to wait behind it."""
    ordered = sorted(aggregates)
    rows = await reader.fetch(
        """
        SELECT DISTINCT merchant_id, aggregate_id FROM events_set_aside
        WHERE listener = %(listener)s AND source = %(source)s
          AND (merchant_id, aggregate_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        """,
        place._asdict() | {"merchants": [m for m, _ in ordered], "ids": [a for _, a in ordered]},
    )
    return {(merchant, aggregate) for merchant, aggregate in rows}


def set_aside(
    tx: Transaction,
    place: Place,
    events: Sequence[Event],
    errors: Mapping[int, PaymeshError],
    delays_ms: Sequence[int],
    parked: Collection[int] = (),
) -> None:
    """Keep events for later: those with an error, by position, were tried once; the others wait behind one of their
    aggregate. Those in `parked` wait for a person."""
    if not events:
        return
    tx.later(
        """
        INSERT INTO events_set_aside (merchant_id, listener, source, position, aggregate_id, type, payload, traceparent,
                                      announced_at, tries, reason, message, due_at, parked_at)
        SELECT merchant_id, %(listener)s, %(source)s, position, aggregate_id, type, payload, traceparent,
               timestamptz 'epoch' + announced_at_ms * interval '1 millisecond', tries, reason, message,
               now() + delay_ms * interval '1 millisecond', CASE WHEN parked THEN now() END
        FROM unnest(%(merchants)s::text[], %(positions)s::bigint[], %(aggregates)s::text[], %(types)s::text[],
                    %(payloads)s::bytea[], %(traceparents)s::text[], %(announced)s::bigint[], %(tries)s::int[],
                    %(reasons)s::text[], %(messages)s::text[], %(delays)s::bigint[], %(parked)s::bool[])
             AS n (merchant_id, position, aggregate_id, type, payload, traceparent, announced_at_ms, tries, reason,
                   message, delay_ms, parked)
        """,
        place._asdict()
        | {
            "merchants": [e.merchant_id for e in events],
            "positions": [e.position for e in events],
            "aggregates": [e.aggregate_id for e in events],
            "types": [e.type for e in events],
            "payloads": [e.payload for e in events],
            "traceparents": [e.traceparent for e in events],
            "announced": [e.announced_at_ms for e in events],
            "tries": [1 if e.position in errors else 0 for e in events],
            "reasons": [errors[e.position].reason if e.position in errors else "" for e in events],
            "messages": [_cut(errors[e.position].message) if e.position in errors else "" for e in events],
            "delays": list(delays_ms),
            "parked": [e.position in parked for e in events],
        },
    )


MESSAGE_LENGTH_MAX = 2_000


def _cut(message: str) -> str:
    return message.replace("\x00", "")[:MESSAGE_LENGTH_MAX]


async def take_aside(database: Database, place: Place, limit: int, lease_seconds: float) -> list[Aside]:
    """Events set aside that are due, of each aggregate only the oldest, and none behind one that waits for a person.
    Nobody else gets them for `lease_seconds`."""

    async def work(tx: Transaction) -> list[Aside]:
        rows = await tx.fetch(
            f"""
            WITH due AS MATERIALIZED (
                SELECT merchant_id AS due_merchant_id, position AS due_position FROM events_set_aside AS one
                WHERE listener = %(listener)s AND source = %(source)s AND parked_at IS NULL AND due_at <= now()
                  AND NOT EXISTS (
                      SELECT FROM events_set_aside AS older
                      WHERE older.merchant_id = one.merchant_id AND older.listener = one.listener
                        AND older.source = one.source AND older.aggregate_id = one.aggregate_id
                        AND older.position < one.position
                  )
                ORDER BY due_at LIMIT %(limit)s
                FOR UPDATE SKIP LOCKED
            )
            UPDATE events_set_aside SET due_at = now() + make_interval(secs => %(lease)s), tries = tries + 1
            FROM due
            WHERE merchant_id = due_merchant_id AND listener = %(listener)s AND source = %(source)s
              AND position = due_position
            RETURNING {_EVENT}, tries
            """,
            place._asdict() | {"limit": limit, "lease": lease_seconds},
        )
        return sorted(Aside(Event(*row[:-1]), row[-1]) for row in rows)

    return await database.transact(work, plan_anew=True)


async def delete_aside(tx: Transaction, place: Place, events: Sequence[Event]) -> set[int]:
    """Events set aside are applied now. Returns the positions of those that were still there, which are locked."""
    rows = await tx.fetch(
        """
        DELETE FROM events_set_aside
        WHERE listener = %(listener)s AND source = %(source)s
          AND (merchant_id, position) IN (SELECT * FROM unnest(%(merchants)s::text[], %(positions)s::bigint[]))
        RETURNING position
        """,
        place._asdict()
        | {"merchants": [e.merchant_id for e in events], "positions": [e.position for e in events]},
    )
    return {row[0] for row in rows}


def save_failures(
    tx: Transaction,
    place: Place,
    events: Sequence[Event],
    errors: Mapping[int, PaymeshError],
    delays_ms: Sequence[int],
    parked: Collection[int],
) -> None:
    """Events set aside that could not be applied this time either: tried again after a while, or parked."""
    if not events:
        return
    tx.later(
        """
        UPDATE events_set_aside AS one
        SET reason = n.reason, message = n.message, due_at = now() + n.delay_ms * interval '1 millisecond',
            parked_at = CASE WHEN n.parked THEN now() END
        FROM unnest(%(merchants)s::text[], %(positions)s::bigint[], %(reasons)s::text[], %(messages)s::text[],
                    %(delays)s::bigint[], %(parked)s::bool[])
             AS n (merchant_id, position, reason, message, delay_ms, parked)
        WHERE one.merchant_id = n.merchant_id AND one.listener = %(listener)s AND one.source = %(source)s
          AND one.position = n.position
        """,
        place._asdict()
        | {
            "merchants": [e.merchant_id for e in events],
            "positions": [e.position for e in events],
            "reasons": [errors[e.position].reason for e in events],
            "messages": [_cut(errors[e.position].message) for e in events],
            "delays": list(delays_ms),
            "parked": [e.position in parked for e in events],
        },
    )


class AsideCount(NamedTuple):
    """How many events are set aside."""

    waiting: int
    """For another try."""
    due: int
    """Of these, for one now, if none of the same aggregate stands before them."""
    parked: int


async def count_aside(database: Database, place: Place) -> AsideCount:
    """What is set aside."""
    rows = await database.fetch(
        """
        SELECT count(*) FILTER (WHERE parked_at IS NULL),
               count(*) FILTER (WHERE parked_at IS NULL AND due_at <= now()), count(parked_at)
        FROM events_set_aside WHERE listener = %(listener)s AND source = %(source)s
        """,
        place._asdict(),
    )
    return AsideCount(*rows[0])


class Parked(NamedTuple):
    """An event that waits for a person."""

    place: Place
    event: Event
    tries: int
    reason: str
    message: str
    parked_at: datetime
    behind: int
    """How many events of the same aggregate wait behind it."""


async def list_positions(database: Database) -> list[tuple[Place, int, int, int]]:
    """How far each listener is: (place, position, events set aside, of these parked)."""
    rows = await database.fetch(
        """
        SELECT i.listener, i.source, i.position, count(a.position), count(a.parked_at)
        FROM inbox AS i LEFT JOIN events_set_aside AS a USING (listener, source)
        GROUP BY 1, 2, 3 ORDER BY 1, 2
        """
    )
    return [(Place(row[0], row[1]), row[2], row[3], row[4]) for row in rows]


async def list_parked(database: Database, limit: int) -> list[Parked]:
    """Events that wait for a person, those that wait longest first."""
    rows = await database.fetch(
        f"""
        SELECT listener, source, {_EVENT}, tries, reason, message, parked_at, (
            SELECT count(*) FROM events_set_aside AS b
            WHERE b.merchant_id = a.merchant_id AND b.listener = a.listener AND b.source = a.source
              AND b.aggregate_id = a.aggregate_id AND b.position > a.position
        )
        FROM events_set_aside AS a WHERE parked_at IS NOT NULL ORDER BY parked_at LIMIT %(limit)s
        """,
        {"limit": limit},
    )
    return [Parked(Place(row[0], row[1]), Event(*row[2:9]), *row[9:]) for row in rows]


async def retry_parked(database: Database, source: str, position: int) -> int:
    """Have parked events tried again, as if for the first time: the one at a position of a source (0 for all of it), of
    all sources if `source` is empty. Returns how many."""

    async def work(tx: Transaction) -> int:
        return await tx.execute(
            """
            UPDATE events_set_aside SET parked_at = NULL, due_at = now(), tries = 0
            WHERE parked_at IS NOT NULL AND %(source)s::text IN ('', source)
              AND %(position)s::bigint IN (0, position)
            """,
            {"source": source, "position": position},
        )

    return await database.transact(work)
