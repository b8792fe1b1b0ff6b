"""All SQL of the event log: the positions that announcements are given, and reading them back.

`number` is where the order of events is made. Whoever holds the lease looks, in one statement and so in one snapshot,
for announcements that have no position, and gives them the next ones in the order of their outbox_id. That order is
right for each aggregate: its second announcement is made under a lock that the first one's transaction has held until
its commit, so it has the larger id, and is never visible without the first.

An id that is missing below the largest one is a *hole*: its transaction has not committed yet, or has rolled back.
Holes are looked at again until no transaction can be left that might fill them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.kit.db import Database, Transaction
from services.kit.statements import Row

HOLE_SECONDS = 120
"""How long a hole is looked at. A transaction lives for some ten seconds at most (`db`); counted is from one round of
the relay that was committed to another, so that a commit which waits for a standby cannot outlast it either."""


SHARED_SECONDS = 10.0
"""How long one that stands by is believed to be there."""


class Head(NamedTuple):
    """How far the log is."""

    position: int
    sent: int
    seen_id: int
    holes: tuple[int, ...]
    noticed_at: tuple[int, ...]
    swept_at: int


class Event(NamedTuple):
    """An event of a log."""

    position: int
    merchant_id: str
    aggregate_id: str
    type: str
    payload: bytes
    traceparent: str
    announced_at_ms: int


class Numbered(NamedTuple):
    """What a round has come to."""

    head: Head
    """As it is now."""
    events: list[Event]
    """What has got a position."""
    more: bool
    """Whether there was more."""


class Span(NamedTuple):
    """Which positions a log has."""

    oldest: int
    newest: int


_ANNOUNCED = """merchant_id, aggregate_id, type, payload, traceparent,
    (extract(epoch FROM created_at) * 1000)::bigint AS announced_at_ms"""

_HEAD = "position, sent_position, seen_id, holes, noticed_at, extract(epoch FROM swept_at)::bigint"

_TAKE = f"""
UPDATE event_log SET relay = %(relay)s, lease_until = now() + make_interval(secs => %(seconds)s) WHERE name IN (
    SELECT name FROM event_log
    WHERE name = 'outbox' AND (relay = %(relay)s OR lease_until < now()) FOR UPDATE SKIP LOCKED
)
RETURNING {_HEAD}
"""

# Waits for the row: who has the lease keeps it, and only looks at it for a moment do those who stand by.
_RENEW = f"""
UPDATE event_log SET lease_until = now() + make_interval(secs => %(seconds)s),
                     sent_position = greatest(sent_position, %(sent)s)
WHERE name = 'outbox' AND relay = %(relay)s
RETURNING {_HEAD}, standby_at > now() - make_interval(secs => %(shared)s)
"""

_STAND_BY = """
UPDATE event_log SET standby_at = now() WHERE name IN (
    SELECT name FROM event_log WHERE name = 'outbox' FOR UPDATE SKIP LOCKED
)
"""

_LOCK = f"""
SELECT {_HEAD}, extract(epoch FROM now())::bigint FROM event_log
WHERE name = 'outbox' AND relay = %(relay)s AND lease_until > now() FOR UPDATE
"""

# Of what is new, and of what was not there before: in one statement, for in two snapshots an aggregate's second
# announcement might be seen without the first.
_NEW = f"""
SELECT outbox_id, {_ANNOUNCED}, there FROM (
    SELECT *, count(*) OVER () AS there, row_number() OVER in_order AS place,
           sum(octet_length(payload)) OVER in_order AS bytes
    FROM (SELECT * FROM outbox WHERE outbox_id > %(seen)s ORDER BY outbox_id LIMIT %(limit)s) AS found
    WINDOW in_order AS (ORDER BY outbox_id)
) AS new
WHERE bytes <= %(bytes)s::bigint OR place = 1
UNION ALL
SELECT outbox_id, {_ANNOUNCED}, 0 FROM outbox WHERE outbox_id = ANY (%(holes)s::bigint[])
ORDER BY outbox_id
"""

_SAVE = """
UPDATE event_log
SET position = %(position)s, sent_position = greatest(sent_position, %(sent)s), seen_id = %(seen)s,
    holes = %(holes)s::bigint[], noticed_at = %(noticed)s::bigint[], swept_at = now(),
    lease_until = now() + make_interval(secs => %(seconds)s)
WHERE name = 'outbox'
"""

# Batches follow each other without a gap, so the first to look into is the last that begins in time.
_READ = """
SELECT position, merchant_id, aggregate_id, type, payload, traceparent, announced_at_ms FROM (
    SELECT b.first_position + one.place - 1 AS position, o.merchant_id, o.aggregate_id, o.type, o.payload,
           o.traceparent, (extract(epoch FROM o.created_at) * 1000)::bigint AS announced_at_ms,
           sum(octet_length(o.payload)) OVER (ORDER BY b.first_position + one.place) AS bytes
    FROM event_batches AS b
    CROSS JOIN unnest(b.outbox_ids) WITH ORDINALITY AS one (outbox_id, place)
    JOIN outbox AS o ON o.outbox_id = one.outbox_id
    WHERE b.first_position >= coalesce((
          SELECT max(first_position) FROM event_batches WHERE first_position <= %(after)s::bigint + 1
      ), 0)
      AND b.first_position <= %(after)s::bigint + %(limit)s::bigint
      AND b.first_position + one.place - 1 > %(after)s::bigint
      AND b.first_position + one.place - 1 <= %(after)s::bigint + %(limit)s::bigint
) AS found
WHERE bytes <= %(bytes)s::bigint OR position = %(after)s::bigint + 1
ORDER BY position
"""


def _head(row: Row) -> Head:
    return Head(row[0], row[1], row[2], tuple(row[3]), tuple(row[4]), row[5])


async def take_lease(database: Database, relay: str, seconds: float) -> Head | None:
    """Become the one who gives positions. None while another relay has the lease, who then knows that this one stands
    by."""

    async def work(tx: Transaction) -> Head | None:
        rows = await tx.fetch(_TAKE, {"relay": relay, "seconds": seconds})
        if rows:
            return _head(rows[0])
        tx.later(_STAND_BY)
        return None

    return await database.transact(work)


async def renew_lease(database: Database, relay: str, seconds: float, sent: int) -> tuple[Head, bool] | None:
    """Stay the one who gives positions, and write down how far the bus is. Tells also whether another relay stands by,
    whose process announces, too. None when another relay has the lease."""

    async def work(tx: Transaction) -> tuple[Head, bool] | None:
        params = {"relay": relay, "seconds": seconds, "sent": sent, "shared": SHARED_SECONDS}
        rows = await tx.fetch(_RENEW, params)
        return (_head(rows[0]), rows[0][-1]) if rows else None

    return await database.transact(work)


async def give_lease(database: Database, relay: str, sent: int) -> None:
    """Let another relay take the lease at once."""

    async def work(tx: Transaction) -> None:
        tx.later(
            "UPDATE event_log SET lease_until = 'epoch', sent_position = greatest(sent_position, %(sent)s)"
            " WHERE name = 'outbox' AND relay = %(relay)s",
            {"relay": relay, "sent": sent},
        )

    await database.transact(work)


async def anything_new(database: Database, head: Head) -> bool:
    """Whether there is something to number."""
    rows = await database.fetch(
        "SELECT EXISTS (SELECT FROM outbox WHERE outbox_id > %(seen)s)"
        " OR EXISTS (SELECT FROM outbox WHERE outbox_id = ANY (%(holes)s::bigint[]))",
        {"seen": head.seen_id, "holes": list(head.holes)},
    )
    return bool(rows[0][0])


async def number(
    database: Database, relay: str, head: Head, lease_seconds: float, limit: int, bytes_max: int
) -> Numbered | None:
    """Give positions to what has none, at most so many announcements and about so many bytes of those that are new.
    `head` is what this relay believes. None when the lease is gone."""

    async def work(tx: Transaction) -> Numbered | None:
        locked = tx.later(_LOCK, {"relay": relay})
        new = {"seen": head.seen_id, "holes": list(head.holes), "limit": limit, "bytes": bytes_max}
        found = tx.later(_NEW, new)
        rows = await locked
        if not rows:
            return None
        true, now = _head(rows[0]), rows[0][-1]
        if true[2:5] != head[2:5]:
            # What was looked for is not what had to be looked for; the next round does.
            return Numbered(true, [], more=True)
        announced = await found
        ids = [row[0] for row in announced]
        after = numbered(true, ids, head.sent, now)
        if ids:
            tx.later(
                "INSERT INTO event_batches (first_position, last_position, outbox_ids)"
                " VALUES (%(first)s, %(last)s, %(ids)s::bigint[])",
                {"first": true.position + 1, "last": after.position, "ids": ids},
            )
        params = {
            "position": after.position,
            "sent": after.sent,
            "seen": after.seen_id,
            "holes": list(after.holes),
            "noticed": list(after.noticed_at),
            "seconds": lease_seconds,
        }
        tx.later(_SAVE, params)
        events = [Event(position, *row[1:-1]) for position, row in enumerate(announced, true.position + 1)]
        there = announced[-1][-1] if announced else 0  # what is new comes last
        new = sum(one > true.seen_id for one in ids)
        return Numbered(after, events, more=new < there or there >= limit)

    return await database.transact(work, plan_anew=True)


def numbered(head: Head, ids: Sequence[int], sent: int, now: int) -> Head:
    """The head after announcements with these ids, ascending, were given the next positions. A hole is forgotten when
    it was looked at, in vain, in a round that came long enough after it was noticed and is itself over."""
    there = set(ids)
    holes = {
        hole: noticed
        for hole, noticed in zip(head.holes, head.noticed_at, strict=True)
        if hole not in there and head.swept_at - noticed < HOLE_SECONDS
    }
    seen_id = max(head.seen_id, ids[-1]) if ids else head.seen_id
    if seen_id - head.seen_id > sum(one > head.seen_id for one in ids):
        holes |= {one: now for one in range(head.seen_id + 1, seen_id) if one not in there}
    return Head(
        head.position + len(ids),
        max(head.sent, sent),
        seen_id,
        tuple(holes),
        tuple(holes.values()),
        now,
    )


async def read(database: Database, after: int, limit: int, bytes_max: int) -> list[Event]:
    """The events behind a position, at most so many and about so many bytes, at least one if there is one."""
    rows = await database.fetch(_READ, {"after": after, "limit": limit, "bytes": bytes_max})
    return [Event(*row) for row in rows]


async def span(database: Database) -> Span:
    """Which positions there are."""
    rows = await database.fetch(
        "SELECT position, coalesce((SELECT min(first_position) FROM event_batches), position + 1)"
        " FROM event_log WHERE name = 'outbox'"
    )
    return Span(rows[0][1], rows[0][0])


async def backlog(database: Database, head: Head, count_max: int) -> tuple[int, float]:
    """How many announcements the bus does not have yet (those without a position are counted up to `count_max`), and
    how old the oldest of them is, in seconds."""
    rows = await database.fetch(
        """
        SELECT count(*), extract(epoch FROM now() - min(created_at))::float8,
               (SELECT extract(epoch FROM now() - numbered_at)::float8 FROM event_batches
                WHERE first_position <= %(unsent)s ORDER BY first_position DESC LIMIT 1)
        FROM (SELECT created_at FROM outbox WHERE outbox_id > %(seen)s ORDER BY outbox_id LIMIT %(limit)s) AS waiting
        """,
        {"seen": head.seen_id, "limit": count_max, "unsent": head.sent + 1},
    )
    count, waiting_seconds, unsent_seconds = rows[0]
    unsent = head.position - head.sent
    ages = (waiting_seconds or 0.0, (unsent_seconds or 0.0) if unsent else 0.0)
    return count + unsent, max(0.0, *ages)


async def forget(database: Database, keep_seconds: float, batches_max: int) -> int:
    """Delete the oldest batches that were numbered so long ago, with their announcements, at most so many batches.
    Returns how many announcements. What the bus has not got yet is kept."""

    async def work(tx: Transaction) -> int:
        rows = await tx.fetch(
            """
            DELETE FROM event_batches WHERE first_position IN (
                SELECT first_position FROM event_batches
                WHERE numbered_at < now() - make_interval(secs => %(seconds)s)
                  AND last_position <= (SELECT sent_position FROM event_log WHERE name = 'outbox')
                ORDER BY first_position LIMIT %(limit)s
            )
            RETURNING outbox_ids
            """,
            {"seconds": keep_seconds, "limit": batches_max},
        )
        ids = [one for row in rows for one in row[0]]
        if ids:
            tx.later("DELETE FROM outbox WHERE outbox_id = ANY (%(ids)s::bigint[])", {"ids": ids})
        return len(ids)

    return await database.transact(work, plan_anew=True)
