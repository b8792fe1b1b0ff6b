"""Operations, and the authorizations that they are about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg.errors import SerializationFailure

from sandbox.bank.domain import (
    Authorization,
    Hold,
    Identity,
    Kind,
    Operation,
    Result,
    State,
    holds_of,
)
from services.kit.db import Database, Sent, Transaction
from services.kit.statements import Row

OPERATION = (
    "o.merchant_id, o.operation_id, o.kind, o.key, o.fingerprint, o.undoes, o.amount_minor, o.currency,"
    " o.card_token, o.reference, o.result, o.auth_code, o.decline_reason, o.created_at, o.final"
)

_OPERATION_COLUMNS = OPERATION.count(",") + 1

_INSERT = """
INSERT INTO operations (merchant_id, operation_id, kind, key, fingerprint, undoes, amount_minor, currency,
                        card_token, reference, result, auth_code, decline_reason, final, created_at)
SELECT new.*, %(created_at)s
FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(kinds)s::text[], %(keys)s::text[],
            %(fingerprints)s::bytea[], %(undone)s::text[], %(amounts)s::bigint[], %(currencies)s::text[],
            %(tokens)s::text[], %(references)s::text[], %(results)s::text[], %(codes)s::text[],
            %(reasons)s::text[], %(finals)s::bool[]) AS new
ON CONFLICT DO NOTHING
"""


def insert_operations(tx: Transaction, operations: Sequence[Operation]) -> Sent:
    """Write operations of one instant; the count tells how many were written. One is left out when its key was
    used before or when it lets a hold go that is gone; should another transaction be about to do either, this
    one waits for it."""
    # Sorted, so that two sets that share keys wait for each other in one direction only.
    ordered = sorted(operations, key=lambda o: (o.merchant_id, o.key or ""))
    return tx.later(
        _INSERT,
        {
            "merchants": [o.merchant_id for o in ordered],
            "ids": [o.operation_id for o in ordered],
            "kinds": [o.kind.value for o in ordered],
            "keys": [o.key for o in ordered],
            "fingerprints": [o.fingerprint for o in ordered],
            "undone": [o.undoes for o in ordered],
            "amounts": [o.amount_minor for o in ordered],
            "currencies": [o.currency for o in ordered],
            "tokens": [o.card_token for o in ordered],
            "references": [o.reference for o in ordered],
            "results": [o.result.value for o in ordered],
            "codes": [o.auth_code for o in ordered],
            "reasons": [o.decline_reason for o in ordered],
            "finals": [o.final for o in ordered],
            "created_at": ordered[0].created_at,
        },
    )


async def insert_all(tx: Transaction, operations: Sequence[Operation]) -> None:
    """Write operations whose keys were free a moment ago. Raises a serialization failure, upon which the
    transaction starts over, when another call took one of the keys meanwhile."""
    if operations and await insert_operations(tx, operations).count() < len(operations):
        raise SerializationFailure("a key was taken while the set was decided")


async def find_operations(
    reader: Transaction | Database, keys: Iterable[Identity]
) -> dict[Identity, Operation]:
    """Operations by (merchant, key); those that have not arrived are missing."""
    rows = await reader.fetch(
        f"""
        SELECT {OPERATION} FROM operations AS o
        WHERE (merchant_id, key) IN (SELECT * FROM unnest(%(merchants)s::text[], %(keys)s::text[]))
        """,
        columns("keys", keys),
    )
    return {(row[0], row[3]): operation_of(row) for row in rows}


async def lock_authorizations(tx: Transaction, ids: Iterable[Identity]) -> dict[Identity, Operation]:
    """Lock authorizations by (merchant, authorization id), ascending; unknown ones are missing."""
    rows = await tx.fetch(
        f"""
        SELECT {OPERATION} FROM operations AS o
        WHERE (merchant_id, operation_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
          AND kind = 'AUTHORIZE'
        ORDER BY merchant_id, operation_id
        FOR NO KEY UPDATE
        """,
        columns("ids", ids),
    )
    return {(row[0], row[1]): operation_of(row) for row in rows}


async def lock_holds(tx: Transaction, ids: Iterable[Identity]) -> dict[Identity, Hold]:
    """Lock authorizations by (merchant, authorization id), ascending, and read what came of them; unknown ones are
    missing. Nothing more can come of them until the transaction ends."""
    made = await lock_authorizations(tx, ids)
    if not made:
        return {}
    rows = await tx.fetch(
        f"""
        SELECT {OPERATION} FROM operations AS o
        WHERE (merchant_id, undoes) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        """,
        columns("ids", made),
    )
    return holds_of(made.values(), [operation_of(row) for row in rows])


async def find_used(database: Database, keys: Iterable[Identity]) -> set[Identity]:
    """Those of the (merchant, key) pairs under which anything has been carried out, cancelled or refused."""
    asked = "(merchant_id, key) IN (SELECT * FROM unnest(%(merchants)s::text[], %(keys)s::text[]))"
    rows = await database.fetch(
        f"""
        SELECT merchant_id, key FROM operations WHERE {asked}
        UNION SELECT merchant_id, key FROM settlements WHERE {asked}
        UNION SELECT merchant_id, key FROM payouts WHERE {asked}
        """,
        columns("keys", keys),
    )
    return {(merchant, key) for merchant, key in rows}


async def find_by_key(
    database: Database, keys: Iterable[Identity]
) -> dict[Identity, tuple[Operation, Authorization]]:
    """By (merchant, key): the operation under the key, and the authorization that it made or is about, as it stands."""
    rows = await database.fetch(
        f"""
        SELECT {OPERATION}, a.merchant_id, a.authorization_id, a.key, a.amount_minor, a.currency, a.state,
               a.auth_code, a.decline_reason, a.created_at
        FROM operations AS o
        JOIN authorizations AS a
          ON a.merchant_id = o.merchant_id AND a.authorization_id = coalesce(o.undoes, o.operation_id)
        WHERE (o.merchant_id, o.key) IN (SELECT * FROM unnest(%(merchants)s::text[], %(keys)s::text[]))
        """,
        columns("keys", keys),
    )
    return {
        (row[0], row[3]): (operation_of(row[:_OPERATION_COLUMNS]), _authorization(row[_OPERATION_COLUMNS:]))
        for row in rows
    }


def columns(second: str, pairs: Iterable[Identity]) -> dict[str, list[str]]:
    """Pairs as two parameters, ascending: merchants and `second`."""
    ordered = sorted(set(pairs))
    return {"merchants": [pair[0] for pair in ordered], second: [pair[1] for pair in ordered]}


def operation_of(row: Row) -> Operation:
    """The operation in a row of the columns OPERATION."""
    merchant_id, operation_id, kind, key, fingerprint, undoes, amount_minor, currency, *rest = row
    card_token, reference, result, auth_code, decline_reason, created_at, final = rest
    return Operation(
        merchant_id,
        operation_id,
        Kind(kind),
        key,
        fingerprint,
        undoes,
        amount_minor,
        currency,
        card_token,
        reference,
        Result(result),
        auth_code,
        decline_reason,
        created_at,
        final,
    )


def _authorization(row: Row) -> Authorization:
    merchant_id, authorization_id, key, amount_minor, currency, state, *rest = row
    auth_code, decline_reason, created_at = rest
    return Authorization(
        merchant_id,
        authorization_id,
        key,
        amount_minor,
        currency,
        State(state),
        auth_code,
        decline_reason,
        created_at,
    )
