"""Events in the order in which they are sealed, and what was sealed.

That order is the one of time, then key. `recorded_at` is when the transaction began, so of two events the older may
become visible later: only what lies behind the horizon is sealed, where no transaction is left that could add to it.
"""

from __future__ import annotations

from typing import NamedTuple

from services.kit.db import Database, Transaction
from services.kit.statements import Row
from services.payment.domain import PaymentKey
from services.payment.store.chain import find_chains

Place = tuple[int, str, str, int]
"""Of an event in the order of sealing: microseconds since 1970, merchant, payment, version."""

BEGINNING: Place = (0, "", "", 0)

_US = "(extract(epoch FROM recorded_at) * 1000000)::bigint"
_TIME = "timestamptz 'epoch' + %({name})s::bigint * interval '1 microsecond'"
_PLACE = 'recorded_at, merchant_id COLLATE "C", payment_id COLLATE "C", version'
_THAT_PLACE = f"{_TIME.format(name='us')}, %(merchant)s, %(payment)s, %(version)s::int"


class Unsealed(NamedTuple):
    """An event that is to be sealed."""

    place: Place
    hash: bytes | None
    """Over it and the events before it; None where its row does not tell it."""


async def find_horizon(database: Database, settle_seconds: float) -> int:
    """A moment, in microseconds since 1970, before which nothing can be recorded any more: no transaction of ours is
    left that began before it. At least so many seconds ago, since one that begins is seen a little later. Audits only
    read and may take long; they are not waited for."""
    ((horizon_us,),) = await database.fetch(
        """
        SELECT (extract(epoch FROM least(now() - make_interval(secs => %(seconds)s), min(xact_start)))
                * 1000000)::bigint
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'paymesh-audit'
          AND xact_start IS NOT NULL
        """,
        {"seconds": settle_seconds},
    )
    return int(horizon_us)


async def list_unsealed(database: Database, after: Place, before_us: int, limit: int) -> list[Unsealed]:
    """Events behind a place and before a moment, in the order of sealing."""

    async def read(tx: Transaction) -> list[Row]:
        # On a table that has grown since it was last analyzed the planner believes that next to nothing is left, and
        # sorts all that is for every page. Without a sort it walks along the index.
        tx.later("SET LOCAL enable_sort = off")
        return await tx.fetch(
            f"""
            SELECT {_US}, merchant_id, payment_id, version, hash FROM payment_events
            WHERE recorded_at >= {_TIME.format(name="us")} AND recorded_at < {_TIME.format(name="before")}
              AND ({_PLACE}) > ({_THAT_PLACE})
            ORDER BY {_PLACE} LIMIT %(limit)s
            """,
            {**_params(after), "before": before_us, "limit": limit},
        )

    return [
        Unsealed((row[0], row[1], row[2], row[3]), row[4])
        for row in await database.transact(read, plan_anew=True)
    ]


async def count_recorded(database: Database, since_us: int, through: Place) -> int:
    """How many events there are from a moment through a place."""
    ((count,),) = await database.fetch(
        f"""
        SELECT count(*) FROM payment_events
        WHERE recorded_at >= {_TIME.format(name="since")} AND recorded_at <= {_TIME.format(name="us")}
          AND ({_PLACE}) <= ({_THAT_PLACE})
        """,
        {**_params(through), "since": since_us},
    )
    return int(count)


async def find_unsealed_seconds(database: Database, through: Place) -> float:
    """How old the oldest event behind a place is; 0 when there is none."""
    ((seconds,),) = await database.fetch(
        f"""
        SELECT coalesce(extract(epoch FROM now() - min(recorded_at)), 0)::float8 FROM payment_events
        WHERE recorded_at >= {_TIME.format(name="us")} AND ({_PLACE}) > ({_THAT_PLACE})
        """,
        _params(through),
    )
    return float(seconds)


async def list_chains(database: Database, keys: list[PaymentKey]) -> dict[PaymentKey, list[bytes]]:
    """The hash of each event of payments, made from their rows."""

    async def read(tx: Transaction) -> dict[PaymentKey, list[bytes]]:
        return await find_chains(tx, keys)

    return await database.transact(read)


async def find_last_checkpoint(database: Database) -> tuple[int, str] | None:
    """Number and header of the newest checkpoint that is on record."""
    rows = await database.fetch("SELECT number, header FROM event_checkpoints ORDER BY number DESC LIMIT 1")
    return (rows[0][0], rows[0][1]) if rows else None


async def insert_checkpoint(database: Database, number: int, header: str) -> None:
    """Put a checkpoint on record; one that is there already stays."""

    async def write(tx: Transaction) -> None:
        tx.later(
            "INSERT INTO event_checkpoints (number, header) VALUES (%(number)s, %(header)s) ON CONFLICT DO NOTHING",
            {"number": number, "header": header},
        )

    await database.transact(write)


def _params(place: Place) -> dict[str, object]:
    us, merchant_id, payment_id, version = place
    return {"us": us, "merchant": merchant_id, "payment": payment_id, "version": version}
