"""All SQL of the orchestrator. Nothing is decided here.

Every write to a saga names the epoch of the writer, and touches only rows that carry it: an orchestrator whose sagas
were taken over writes nothing, however late it wakes up.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from services.kit.db import Database, Transaction
from services.kit.statements import Row
from services.orchestrator.domain import (
    Attempt,
    Direction,
    Outcome,
    Position,
    Progress,
    Reason,
    Saga,
    SagaKey,
    State,
    StepState,
)
from services.orchestrator.interventions import Intervention, Kind

_NONE = "[]"
_COLUMNS = """merchant_id, saga_id, order_id, kind, state, steps::text, history::text, reason::text,
    (extract(epoch FROM created_at) * 1000)::bigint, (extract(epoch FROM ended_at) * 1000)::bigint, input, caller, key,
    traceparent, owner_epoch, interventions::text"""


NOBODY = 0
"""Owner epoch of a saga that nobody conducts."""


class StoredSaga(NamedTuple):
    """A saga with what it was begun with, by whom, and under which idempotency key."""

    saga: Saga
    input: bytes
    caller: str
    key: str
    traceparent: str
    owner_epoch: int
    interventions: tuple[Intervention, ...] = ()


async def insert_sagas(tx: Transaction, sagas: Sequence[StoredSaga], references: Sequence[str]) -> set[str]:
    """Record new sagas; returns the ids of those whose order reference was free."""
    rows = await tx.fetch(
        """
        INSERT INTO sagas (merchant_id, saga_id, order_id, order_reference, kind, owner_epoch, caller, key, input,
                           traceparent, created_at)
        SELECT merchant_id, saga_id, order_id, reference, kind, epoch, caller, key, input, traceparent,
               timestamptz 'epoch' + created_at_ms * interval '1 millisecond'
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(orders)s::text[], %(references)s::text[],
                    %(kinds)s::text[], %(epochs)s::bigint[], %(callers)s::text[], %(keys)s::text[],
                    %(inputs)s::bytea[], %(traceparents)s::text[], %(created)s::bigint[])
             AS new (merchant_id, saga_id, order_id, reference, kind, epoch, caller, key, input, traceparent,
                     created_at_ms)
        ON CONFLICT DO NOTHING
        RETURNING saga_id
        """,
        {
            "merchants": [s.saga.merchant_id for s in sagas],
            "ids": [s.saga.saga_id for s in sagas],
            "orders": [s.saga.order_id for s in sagas],
            "references": list(references),
            "kinds": [s.saga.kind for s in sagas],
            "epochs": [s.owner_epoch for s in sagas],
            "callers": [s.caller for s in sagas],
            "keys": [s.key for s in sagas],
            "inputs": [s.input for s in sagas],
            "traceparents": [s.traceparent for s in sagas],
            "created": [s.saga.created_at_ms for s in sagas],
        },
    )
    return {row[0] for row in rows}


async def save_sagas(tx: Transaction, sagas: Sequence[Saga], epoch: int) -> set[str]:
    """Write sagas as they are; returns the ids of those that `epoch` still owns and that can come to this from where
    they stand: an end is final, and a saga that has turned back is never completed. What nobody conducts (`NOBODY`) was
    locked and read by the writer, and may turn back and end in one go."""
    rows = await tx.fetch(
        """
        UPDATE sagas AS s
        SET state = n.state, steps = n.steps::json, history = n.history::json, reason = n.reason::json,
            ended_at = timestamptz 'epoch' + n.ended_at_ms * interval '1 millisecond'
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(states)s::text[], %(steps)s::text[],
                    %(histories)s::text[], %(reasons)s::text[], %(ended)s::bigint[])
             AS n (merchant_id, saga_id, state, steps, history, reason, ended_at_ms)
        WHERE s.merchant_id = n.merchant_id AND s.saga_id = n.saga_id AND s.owner_epoch = %(epoch)s
          AND s.ended_at IS NULL
          AND (s.owner_epoch = 0
               OR s.state = CASE n.state WHEN 'COMPENSATED' THEN 'COMPENSATING' WHEN 'COMPLETED' THEN 'RUNNING'
                                         ELSE s.state END)
        RETURNING s.saga_id
        """,
        {
            "epoch": epoch,
            "merchants": [s.merchant_id for s in sagas],
            "ids": [s.saga_id for s in sagas],
            "states": [s.state.value for s in sagas],
            "steps": [_dump_steps(s) for s in sagas],
            "histories": [_dump_history(s) for s in sagas],
            "reasons": [_dump_reason(s) for s in sagas],
            "ended": [s.ended_at_ms or None for s in sagas],
        },
    )
    return {row[0] for row in rows}


def save_interventions(tx: Transaction, sagas: Sequence[StoredSaga]) -> None:
    """Write locked sagas that were PARKED as they are after a person has done something with them: under way again with
    another owner, or as they were."""
    if not sagas:
        return
    tx.later(
        """
        UPDATE sagas AS s
        SET state = n.state, steps = n.steps::json, reason = n.reason::json, interventions = n.interventions::json,
            owner_epoch = n.epoch, ended_at = timestamptz 'epoch' + n.ended_at_ms * interval '1 millisecond'
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(states)s::text[], %(steps)s::text[],
                    %(reasons)s::text[], %(interventions)s::text[], %(epochs)s::bigint[], %(ended)s::bigint[])
             AS n (merchant_id, saga_id, state, steps, reason, interventions, epoch, ended_at_ms)
        WHERE s.merchant_id = n.merchant_id AND s.saga_id = n.saga_id AND s.state = 'PARKED'
        """,
        {
            "merchants": [s.saga.merchant_id for s in sagas],
            "ids": [s.saga.saga_id for s in sagas],
            "states": [s.saga.state.value for s in sagas],
            "steps": [_dump_steps(s.saga) for s in sagas],
            "reasons": [_dump_reason(s.saga) for s in sagas],
            "interventions": [_dump_interventions(s) for s in sagas],
            "epochs": [s.owner_epoch for s in sagas],
            "ended": [s.saga.ended_at_ms or None for s in sagas],
        },
    )


async def find_saga(database: Database, key: SagaKey) -> StoredSaga | None:
    """One saga."""
    rows = await database.fetch(
        f"SELECT {_COLUMNS} FROM sagas WHERE merchant_id = %(merchant)s AND saga_id = %(id)s",
        {"merchant": key[0], "id": key[1]},
    )
    return _stored(rows[0]) if rows else None


async def find_sagas(tx: Transaction, keys: Sequence[SagaKey]) -> list[StoredSaga]:
    """Several sagas."""
    rows = await tx.fetch(
        f"""
        SELECT {_COLUMNS} FROM sagas
        WHERE (merchant_id, saga_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        """,
        {"merchants": [m for m, _ in keys], "ids": [s for _, s in keys]},
    )
    return [_stored(row) for row in rows]


async def lock_sagas(tx: Transaction, keys: Sequence[SagaKey]) -> dict[SagaKey, StoredSaga]:
    """Lock sagas, ascending; unknown ones are missing from the result."""
    ordered = sorted(set(keys))
    rows = await tx.fetch(
        f"""
        SELECT {_COLUMNS} FROM sagas
        WHERE (merchant_id, saga_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, saga_id
        FOR NO KEY UPDATE
        """,
        {"merchants": [m for m, _ in ordered], "ids": [s for _, s in ordered]},
    )
    return {stored.saga.key: stored for stored in map(_stored, rows)}


_LATER = f"""
SELECT {_COLUMNS} FROM sagas
WHERE kind <> 'place' AND (merchant_id, order_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(orders)s::text[]))
ORDER BY merchant_id, order_id, saga_id
"""


async def list_later(tx: Transaction, orders: Sequence[tuple[str, str]]) -> list[StoredSaga]:
    """All sagas of orders, by (merchant, order id), but those that place them; an order's oldest first."""
    rows = await tx.fetch(_LATER, {"merchants": [m for m, _ in orders], "orders": [o for _, o in orders]})
    return [_stored(row) for row in rows]


async def find_later(database: Database, merchant_id: str, order_ids: Sequence[str]) -> list[StoredSaga]:
    """As `list_later`, of a merchant's orders and outside of a transaction."""
    params = {"merchants": [merchant_id] * len(order_ids), "orders": list(order_ids)}
    return [_stored(row) for row in await database.fetch(_LATER, params)]


async def list_sagas(
    database: Database, merchant_id: str, states: Sequence[State], before_id: str, limit: int
) -> list[StoredSaga]:
    """A merchant's sagas in one of `states` (all if empty), newest first, those older than `before_id` ("" for all)."""
    rows = await database.fetch(
        f"""
        SELECT {_COLUMNS} FROM sagas
        WHERE merchant_id = %(merchant)s AND (cardinality(%(states)s::text[]) = 0 OR state = ANY (%(states)s::text[]))
          AND (%(before)s = '' OR saga_id < %(before)s)
        ORDER BY saga_id DESC LIMIT %(limit)s
        """,
        {"merchant": merchant_id, "states": [s.value for s in states], "before": before_id, "limit": limit},
    )
    return [_stored(row) for row in rows]


async def list_placing(
    database: Database, merchant_id: str, reference: str, before_id: str, limit: int
) -> list[StoredSaga]:
    """The sagas that place a merchant's orders, newest first, those older than `before_id` ("" for all); of the order
    with a reference only, if that is not empty."""
    rows = await database.fetch(
        f"""
        SELECT {_COLUMNS} FROM sagas
        WHERE merchant_id = %(merchant)s AND kind = 'place'
          AND (%(reference)s = '' OR order_reference = %(reference)s)
          AND (%(before)s = '' OR saga_id < %(before)s)
        ORDER BY saga_id DESC LIMIT %(limit)s
        """,
        {"merchant": merchant_id, "reference": reference, "before": before_id, "limit": limit},
    )
    return [_stored(row) for row in rows]


async def insert_instance(database: Database, host: str, lease_seconds: float) -> int:
    """Join the orchestrators; returns the epoch of this one."""

    async def work(tx: Transaction) -> int:
        rows = await tx.fetch(
            """
            INSERT INTO instances (host, lease_until) VALUES (%(host)s, now() + make_interval(secs => %(seconds)s))
            RETURNING epoch
            """,
            {"host": host, "seconds": lease_seconds},
        )
        ((epoch,),) = rows
        return int(epoch)

    return await database.transact(work)


async def save_lease(database: Database, epoch: int, lease_seconds: float) -> bool:
    """Renew the lease; False when it has run out, for then the sagas may have another owner already."""

    async def work(tx: Transaction) -> bool:
        rows = await tx.fetch(
            """
            UPDATE instances SET lease_until = now() + make_interval(secs => %(seconds)s)
            WHERE epoch = %(epoch)s AND lease_until > now()
            RETURNING epoch
            """,
            {"epoch": epoch, "seconds": lease_seconds},
        )
        return bool(rows)

    return await database.transact(work)


async def delete_instance(database: Database, epoch: int) -> None:
    """Leave the orchestrators; what is still under way is up for takeover at once."""

    async def work(tx: Transaction) -> None:
        tx.later("DELETE FROM instances WHERE epoch = %(epoch)s", {"epoch": epoch})

    await database.transact(work)


async def take_over(tx: Transaction, epoch: int, limit: int) -> list[StoredSaga]:
    """Become the owner of sagas under way whose owner has no live lease."""
    rows = await tx.fetch(
        f"""
        WITH orphans AS MATERIALIZED (
            SELECT merchant_id AS orphan_merchant_id, saga_id AS orphan_saga_id FROM sagas
            WHERE state IN ('RUNNING', 'COMPENSATING')
              AND owner_epoch <> 0 AND owner_epoch NOT IN (SELECT epoch FROM instances WHERE lease_until > now())
            LIMIT %(limit)s
            FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE sagas SET owner_epoch = %(epoch)s
        FROM orphans WHERE merchant_id = orphan_merchant_id AND saga_id = orphan_saga_id
        RETURNING {_COLUMNS}
        """,
        {"epoch": epoch, "limit": limit},
    )
    return [_stored(row) for row in rows]


async def list_owned(database: Database, epoch: int, older_than_seconds: float) -> list[StoredSaga]:
    """Sagas under way that `epoch` owns and that were begun, or had tried again by a person, so long ago."""
    rows = await database.fetch(
        f"""
        SELECT {_COLUMNS} FROM sagas
        WHERE state IN ('RUNNING', 'COMPENSATING') AND owner_epoch = %(epoch)s
          AND created_at < now() - make_interval(secs => %(seconds)s)
          AND coalesce((interventions->-1->>'at_ms')::bigint, 0)
              < (extract(epoch FROM now()) - %(seconds)s::float8) * 1000
        """,
        {"epoch": epoch, "seconds": older_than_seconds},
    )
    return [_stored(row) for row in rows]


async def lock_overdue(
    tx: Transaction, state: State, older_than_seconds: float, limit: int
) -> list[StoredSaga]:
    """Lock sagas in a state that nobody conducts and that were begun so long ago; those that somebody else works on are
    left out."""
    rows = await tx.fetch(
        f"""
        SELECT {_COLUMNS} FROM sagas
        WHERE state IN ('RUNNING', 'COMPENSATING') AND owner_epoch = 0 AND state = %(state)s
          AND created_at < now() - make_interval(secs => %(seconds)s)
        LIMIT %(limit)s
        FOR NO KEY UPDATE SKIP LOCKED
        """,
        {"state": state.value, "seconds": older_than_seconds, "limit": limit},
    )
    return [_stored(row) for row in rows]


_WORDS: dict[StrEnum, str] = {
    member: member.value for words in (StepState, Direction, Outcome) for member in words
}
"""What is written for a member. An Enum finds its value by a Python function: a third of the time of writing a saga
down."""


def _dump_steps(saga: Saga) -> str:
    return orjson.dumps(
        {
            name: [_WORDS[progress.state], progress.attempts, saga.facts.get(name) or {}]
            for name, progress in saga.position.steps
        }
    ).decode()


def _dump_history(saga: Saga) -> str:
    return orjson.dumps(
        [
            {
                "step": step,
                "direction": _WORDS[direction],
                "attempt": number,
                "outcome": _WORDS[outcome],
                "reason": reason,
                "message": message,
                "facts": facts,
                "started_at_ms": started_at_ms,
                "ended_at_ms": ended_at_ms,
            }
            for step, direction, number, outcome, reason, message, facts, started_at_ms, ended_at_ms, _ in saga.history
        ]
    ).decode()


def _dump_reason(saga: Saga) -> str | None:
    reason = saga.reason
    if reason is None:
        return None
    return orjson.dumps({"step": reason.step, "code": reason.code, "message": reason.message}).decode()


def _dump_interventions(stored: StoredSaga) -> str:
    return orjson.dumps(
        [
            {"kind": one.kind.value, "actor": one.actor, "reason": one.reason, "at_ms": one.at_ms}
            for one in stored.interventions
        ]
    ).decode()


def _stored(row: Row) -> StoredSaga:
    steps = _load(row[5])
    saga = Saga(
        merchant_id=row[0],
        saga_id=row[1],
        order_id=row[2],
        kind=row[3],
        position=Position(
            State(row[4]),
            tuple((n, Progress(StepState(state), attempts)) for n, (state, attempts, _) in steps.items()),
        ),
        created_at_ms=row[8],
        facts={n: facts for n, (_, _, facts) in steps.items() if facts},
        reason=Reason(**_load(row[7])) if row[7] else None,
        history=tuple(_attempt(a) for a in _load(row[6])),
        ended_at_ms=row[9] or 0,
    )
    interventions = () if row[15] == _NONE else tuple(_intervention(i) for i in _load(row[15]))
    return StoredSaga(saga, row[10], row[11], row[12], row[13], row[14], interventions)


def _attempt(stored: dict[str, Any]) -> Attempt:
    return Attempt(
        step=stored["step"],
        direction=Direction(stored["direction"]),
        number=stored["attempt"],
        outcome=Outcome(stored["outcome"]),
        reason=stored["reason"],
        message=stored["message"],
        facts=stored["facts"],
        started_at_ms=stored["started_at_ms"],
        ended_at_ms=stored["ended_at_ms"],
    )


def _intervention(stored: dict[str, Any]) -> Intervention:
    return Intervention(Kind(stored["kind"]), stored["actor"], stored["reason"], stored["at_ms"])


def _load(text: str) -> Any:
    return orjson.loads(text)
