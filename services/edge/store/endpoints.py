"""Endpoints of merchants, and their secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.edge.domain.webhooks import Endpoint, EndpointState
from services.edge.vault import Sealed
from services.kit.db import Database, Transaction

_MS = "(extract(epoch FROM {0}) * 1000)::bigint"
_ENDPOINT = f"""merchant_id, endpoint_id, url, events, description, state, reason, {_MS.format("failing_since")},
    {_MS.format("created_at")}, {_MS.format("disabled_at")}"""

EndpointKey = tuple[str, str]
"""(merchant, endpoint id)."""


class KeptSecret(NamedTuple):
    """A secret as it is kept."""

    merchant_id: str
    endpoint_id: str
    secret_id: str
    sealed: Sealed


def insert_endpoint(tx: Transaction, endpoint: Endpoint) -> None:
    """A new endpoint."""
    tx.later(
        """
        INSERT INTO webhook_endpoints (merchant_id, endpoint_id, url, events, description)
        VALUES (%(merchant)s, %(id)s, %(url)s, %(events)s::text[], %(description)s)
        """,
        {
            "merchant": endpoint.merchant_id,
            "id": endpoint.endpoint_id,
            "url": endpoint.url,
            "events": list(endpoint.events),
            "description": endpoint.description,
        },
    )


async def list_endpoints(
    database: Database, merchant_id: str, after_id: str = "", limit: int = 1_000
) -> list[Endpoint]:
    """A merchant's endpoints, oldest first, those behind `after_id`; deleted ones are left out. All merchants' for an
    empty `merchant_id`."""
    rows = await database.fetch(
        f"""
        SELECT {_ENDPOINT} FROM webhook_endpoints
        WHERE (%(merchant)s = '' OR merchant_id = %(merchant)s) AND endpoint_id > %(after)s AND state <> 'DELETED'
        ORDER BY merchant_id, endpoint_id LIMIT %(limit)s
        """,
        {"merchant": merchant_id, "after": after_id, "limit": limit},
    )
    return [_endpoint(row) for row in rows]


async def find_endpoint(database: Database, merchant_id: str, endpoint_id: str) -> Endpoint | None:
    """One endpoint, a deleted one too."""
    rows = await database.fetch(
        f"SELECT {_ENDPOINT} FROM webhook_endpoints WHERE merchant_id = %(merchant)s AND endpoint_id = %(id)s",
        {"merchant": merchant_id, "id": endpoint_id},
    )
    return _endpoint(rows[0]) if rows else None


async def lock_endpoints(tx: Transaction, keys: Sequence[EndpointKey]) -> dict[EndpointKey, Endpoint]:
    """Endpoints, ascending, locked so that none is changed, deleted or told of anything new meanwhile."""
    ordered = sorted(set(keys))
    rows = await tx.fetch(
        f"""
        SELECT {_ENDPOINT} FROM webhook_endpoints
        WHERE (merchant_id, endpoint_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, endpoint_id FOR UPDATE
        """,
        {"merchants": [m for m, _ in ordered], "ids": [i for _, i in ordered]},
    )
    found = map(_endpoint, rows)
    return {(one.merchant_id, one.endpoint_id): one for one in found}


async def lock_endpoints_of(tx: Transaction, merchant_ids: Sequence[str]) -> list[Endpoint]:
    """The endpoints of merchants that are not deleted, ascending, locked so that none is deleted or disabled
    meanwhile; others may hold the same lock."""
    rows = await tx.fetch(
        f"""
        SELECT {_ENDPOINT} FROM webhook_endpoints
        WHERE merchant_id = ANY(%(merchants)s::text[]) AND state <> 'DELETED'
        ORDER BY merchant_id, endpoint_id FOR KEY SHARE
        """,
        {"merchants": sorted(set(merchant_ids))},
    )
    return [_endpoint(row) for row in rows]


async def lock_merchants_endpoints(tx: Transaction, merchant_id: str) -> list[Endpoint]:
    """A merchant's endpoints that are not deleted, ascending, as by `lock_endpoints`."""
    rows = await tx.fetch(
        f"""
        SELECT {_ENDPOINT} FROM webhook_endpoints
        WHERE merchant_id = %(merchant)s AND state <> 'DELETED' ORDER BY endpoint_id FOR UPDATE
        """,
        {"merchant": merchant_id},
    )
    return [_endpoint(row) for row in rows]


def save_endpoint_states(tx: Transaction, states: Mapping[EndpointKey, tuple[EndpointState, str]]) -> None:
    """Enable, disable or delete endpoints: (state, reason) by key. Whatever has failed before does not count any
    more."""
    items = sorted(states.items())
    tx.later(
        """
        UPDATE webhook_endpoints AS e
        SET state = n.state, reason = n.reason, failing_since = NULL,
            disabled_at = CASE n.state WHEN 'DISABLED' THEN now() ELSE NULL END
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(states)s::text[], %(reasons)s::text[])
             AS n (merchant_id, endpoint_id, state, reason)
        WHERE e.merchant_id = n.merchant_id AND e.endpoint_id = n.endpoint_id
        """,
        {
            "merchants": [key[0] for key, _ in items],
            "ids": [key[1] for key, _ in items],
            "states": [str(state) for _, (state, _) in items],
            "reasons": [reason for _, (_, reason) in items],
        },
    )


def save_failing(tx: Transaction, failing: Sequence[EndpointKey], well: Sequence[EndpointKey]) -> None:
    """Remember since when endpoints fail; those that are well again have never failed."""
    if failing:
        tx.later(
            """
            UPDATE webhook_endpoints SET failing_since = now()
            WHERE (merchant_id, endpoint_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
              AND failing_since IS NULL
            """,
            {"merchants": [m for m, _ in failing], "ids": [i for _, i in failing]},
        )
    if well:
        tx.later(
            """
            UPDATE webhook_endpoints SET failing_since = NULL
            WHERE (merchant_id, endpoint_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
              AND failing_since IS NOT NULL
            """,
            {"merchants": [m for m, _ in well], "ids": [i for _, i in well]},
        )


def insert_secret(tx: Transaction, secret: KeptSecret) -> None:
    """One more secret."""
    tx.later(
        """
        INSERT INTO webhook_secrets (merchant_id, endpoint_id, secret_id, sealed_secret, sealed_key, vault_key_id)
        VALUES (%(merchant)s, %(endpoint)s, %(id)s, %(sealed)s, %(key)s, %(key_id)s)
        """,
        {
            "merchant": secret.merchant_id,
            "endpoint": secret.endpoint_id,
            "id": secret.secret_id,
            "sealed": secret.sealed.text,
            "key": secret.sealed.key,
            "key_id": secret.sealed.vault_key_id,
        },
    )


def end_secrets(tx: Transaction, merchant_id: str, endpoint_id: str, kept: int, after_seconds: int) -> None:
    """Let the newest `kept` secrets of an endpoint end after so many seconds, those that would not end before anyway,
    and forget the others."""
    params = {"merchant": merchant_id, "endpoint": endpoint_id, "kept": kept, "seconds": after_seconds}
    tx.later(
        """
        DELETE FROM webhook_secrets WHERE merchant_id = %(merchant)s AND endpoint_id = %(endpoint)s
          AND secret_id NOT IN (
            SELECT secret_id FROM webhook_secrets WHERE merchant_id = %(merchant)s AND endpoint_id = %(endpoint)s
            ORDER BY secret_id DESC LIMIT %(kept)s::int)
        """,
        params,
    )
    tx.later(
        """
        UPDATE webhook_secrets SET valid_until = now() + %(seconds)s::bigint * interval '1 second'
        WHERE merchant_id = %(merchant)s AND endpoint_id = %(endpoint)s
          AND (valid_until IS NULL OR valid_until > now() + %(seconds)s::bigint * interval '1 second')
        """,
        params,
    )


async def list_secrets(database: Database, keys: Sequence[EndpointKey]) -> list[KeptSecret]:
    """The secrets of endpoints that are good now, the newest of an endpoint first."""
    rows = await database.fetch(
        """
        SELECT merchant_id, endpoint_id, secret_id, sealed_secret, sealed_key, vault_key_id FROM webhook_secrets
        WHERE (merchant_id, endpoint_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
          AND (valid_until IS NULL OR valid_until > now())
        ORDER BY merchant_id, endpoint_id, secret_id DESC
        """,
        {"merchants": [m for m, _ in keys], "ids": [i for _, i in keys]},
    )
    return [_kept(row) for row in rows]


async def find_secret(
    database: Database, merchant_id: str, endpoint_id: str, secret_id: str
) -> KeptSecret | None:
    """One secret, as long as it is kept."""
    rows = await database.fetch(
        """
        SELECT merchant_id, endpoint_id, secret_id, sealed_secret, sealed_key, vault_key_id FROM webhook_secrets
        WHERE merchant_id = %(merchant)s AND endpoint_id = %(endpoint)s AND secret_id = %(id)s
        """,
        {"merchant": merchant_id, "endpoint": endpoint_id, "id": secret_id},
    )
    return _kept(rows[0]) if rows else None


def _kept(row: Sequence[object]) -> KeptSecret:
    merchant_id, endpoint_id, secret_id, sealed, key, key_id = row
    assert isinstance(sealed, bytes)
    assert isinstance(key, bytes)
    return KeptSecret(str(merchant_id), str(endpoint_id), str(secret_id), Sealed(sealed, key, str(key_id)))


def _endpoint(row: Sequence[object]) -> Endpoint:
    (
        merchant_id,
        endpoint_id,
        url,
        events,
        description,
        state,
        reason,
        failing_since,
        created_at,
        disabled_at,
    ) = row
    assert isinstance(events, list)
    return Endpoint(
        str(merchant_id),
        str(endpoint_id),
        str(url),
        tuple(events),
        str(description),
        EndpointState(str(state)),
        str(reason),
        None if failing_since is None else int(str(failing_since)),
        int(str(created_at)),
        None if disabled_at is None else int(str(disabled_at)),
    )
