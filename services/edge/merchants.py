"""Keys of merchants, as operators make and end them."""

from __future__ import annotations

from dataclasses import dataclass

from services.edge import store
from services.edge.domain.keys import NAME_PATTERN, Access, Grant, hash_of, new_api_key
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.errors import Invalid, NotFound, Refused
from services.kit.ids import new_id

KEYS_MAX = 20
"""Valid keys of one merchant. More than a handful means that nobody ends the old ones."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made."""

    api_key: str
    """Shown once: nobody can read it anywhere afterwards."""
    grant: Grant


async def create(database: Database, secret: str, merchant_id: str, access: Access = Access.FULL) -> NewKey:
    """One more key for a merchant. Raises Invalid or Refused."""
    if not NAME_PATTERN.fullmatch(merchant_id):
        raise Invalid.field("merchant", "must be 1 to 64 of A-Z a-z 0-9 _ -")

    async def work(tx: Transaction) -> NewKey:
        valid = [g for g in await store.lock_keys(tx, merchant_id) if g.valid_at(now_ms())]
        if len(valid) >= KEYS_MAX:
            raise Refused("TOO_MANY_KEYS", f"{merchant_id} has {len(valid)} valid keys; revoke some first")
        return _insert(tx, secret, merchant_id, access)

    return await database.transact(work)


async def rotate(
    database: Database, secret: str, merchant_id: str, overlap_seconds: int, access: Access = Access.FULL
) -> NewKey:
    """A new key; the earlier ones of the same access end after the overlap, in which the merchant changes over. Raises
    NotFound."""

    async def work(tx: Transaction) -> NewKey:
        valid = [
            g for g in await store.lock_keys(tx, merchant_id) if g.valid_at(now_ms()) and g.access is access
        ]
        if not valid:
            raise no_keys(merchant_id)
        store.end_keys(tx, merchant_id, [g.key_id for g in valid], overlap_seconds)
        return _insert(tx, secret, merchant_id, access)

    return await database.transact(work)


async def revoke(database: Database, merchant_id: str, key_id: str = "") -> int:
    """End a key, or all of a merchant's, now; returns how many. Raises NotFound."""

    async def work(tx: Transaction) -> int:
        valid = [g for g in await store.lock_keys(tx, merchant_id) if g.valid_at(now_ms())]
        ended = [g.key_id for g in valid if key_id in {"", g.key_id}]
        if not ended:
            raise no_keys(merchant_id)
        store.end_keys(tx, merchant_id, ended, 0)
        return len(ended)

    return await database.transact(work)


def no_keys(merchant_id: str) -> NotFound:
    """There is nothing to end."""
    return NotFound("UNKNOWN_KEY", f"{merchant_id!r} has no such valid key")


def _insert(tx: Transaction, secret: str, merchant_id: str, access: Access) -> NewKey:
    api_key = new_api_key(merchant_id)
    grant = Grant(merchant_id, new_id("key"), access)
    store.insert_key(tx, grant, hash_of(api_key, secret))
    return NewKey(api_key, grant)
