"""API keys, and the cards of the vault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.edge.domain.cards import KeptCard
from services.edge.domain.keys import Access, Grant
from services.edge.vault import Sealed
from services.kit.db import Database, Transaction

_MS = "(extract(epoch FROM {0}) * 1000)::bigint"
_GRANT = f"merchant_id, key_id, access, {_MS.format('valid_until')}"
_CARD = "merchant_id, card_id, fingerprint, processor_token, brand, bin, last4, exp_month, exp_year"


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as an operator sees it."""

    grant: Grant
    created_at_ms: int


async def find_grant(database: Database, merchant_id: str, key_hash: bytes) -> Grant | None:
    """Whose key this is."""
    rows = await database.fetch(
        f"SELECT {_GRANT} FROM api_keys WHERE merchant_id = %(merchant)s AND hash = %(hash)s",
        {"merchant": merchant_id, "hash": key_hash},
    )
    return _grant(rows[0]) if rows else None


async def list_keys(database: Database, merchant_id: str = "") -> list[ListedKey]:
    """The keys of one merchant, or of all, oldest first."""
    rows = await database.fetch(
        f"""
        SELECT {_GRANT}, {_MS.format("created_at")} FROM api_keys
        WHERE %(merchant)s = '' OR merchant_id = %(merchant)s
        ORDER BY merchant_id, key_id
        """,
        {"merchant": merchant_id},
    )
    return [ListedKey(_grant(row), int(str(row[4]))) for row in rows]


async def lock_keys(tx: Transaction, merchant_id: str) -> list[Grant]:
    """A merchant's keys, locked, ascending."""
    rows = await tx.fetch(
        f"SELECT {_GRANT} FROM api_keys WHERE merchant_id = %(merchant)s ORDER BY key_id FOR UPDATE",
        {"merchant": merchant_id},
    )
    return [_grant(row) for row in rows]


def insert_key(tx: Transaction, grant: Grant, key_hash: bytes) -> None:
    """A new key."""
    tx.later(
        """
        INSERT INTO api_keys (merchant_id, key_id, hash, access)
        VALUES (%(merchant)s, %(key)s, %(hash)s, %(access)s)
        """,
        {
            "merchant": grant.merchant_id,
            "key": grant.key_id,
            "hash": key_hash,
            "access": str(grant.access),
        },
    )


def end_keys(tx: Transaction, merchant_id: str, key_ids: Sequence[str], after_seconds: int) -> None:
    """Let keys end after so many seconds, those that would not end before that anyway."""
    tx.later(
        """
        UPDATE api_keys SET valid_until = now() + %(seconds)s::bigint * interval '1 second'
        WHERE merchant_id = %(merchant)s AND key_id = ANY(%(keys)s::text[])
          AND (valid_until IS NULL OR valid_until > now() + %(seconds)s::bigint * interval '1 second')
        """,
        {"merchant": merchant_id, "keys": list(key_ids), "seconds": after_seconds},
    )


async def find_card(database: Database, merchant_id: str, card_id: str) -> KeptCard | None:
    """A card of the vault, by its identifier."""
    return await _find_card(database, merchant_id, "card_id", card_id)


async def find_card_of_token(database: Database, merchant_id: str, token: str) -> KeptCard | None:
    """A card of the vault, by the processor's token for it."""
    return await _find_card(database, merchant_id, "processor_token", token)


async def find_card_of_number(database: Database, merchant_id: str, fingerprint: str) -> KeptCard | None:
    """A card of the vault, by the fingerprint of its number."""
    return await _find_card(database, merchant_id, "fingerprint", fingerprint)


async def save_card(tx: Transaction, card: KeptCard, sealed: Sealed) -> None:
    """Put a card into the vault. One that is there already keeps its identifier and its sealed number, and gets the new
    expiry: issuers renew cards without changing the number."""
    await tx.execute(
        f"""
        INSERT INTO cards ({_CARD}, sealed_number, sealed_key, vault_key_id)
        VALUES (%(merchant)s, %(card)s, %(fingerprint)s, %(token)s, %(brand)s, %(bin)s, %(last4)s, %(month)s::int,
                %(year)s::int, %(number)s, %(key)s, %(key_id)s)
        ON CONFLICT (merchant_id, fingerprint) DO UPDATE
        SET exp_month = excluded.exp_month, exp_year = excluded.exp_year, processor_token = excluded.processor_token
        """,
        {
            "merchant": card.merchant_id,
            "card": card.card_id,
            "fingerprint": card.fingerprint,
            "token": card.processor_token,
            "brand": card.brand,
            "bin": card.bin,
            "last4": card.last4,
            "month": card.exp_month,
            "year": card.exp_year,
            "number": sealed.text,
            "key": sealed.key,
            "key_id": sealed.vault_key_id,
        },
    )


async def _find_card(database: Database, merchant_id: str, column: str, value: str) -> KeptCard | None:
    rows = await database.fetch(
        f"SELECT {_CARD} FROM cards WHERE merchant_id = %(merchant)s AND {column} = %(value)s LIMIT 1",
        {"merchant": merchant_id, "value": value},
    )
    if not rows:
        return None
    merchant, card_id, fingerprint, token, brand, bin_, last4, exp_month, exp_year = rows[0]
    return KeptCard(
        str(merchant),
        str(card_id),
        str(fingerprint),
        str(token),
        str(brand),
        str(bin_),
        str(last4),
        int(str(exp_month)),
        int(str(exp_year)),
    )


def _grant(row: Sequence[object]) -> Grant:
    merchant_id, key_id, access, valid_until_ms, *_ = row
    until = None if valid_until_ms is None else int(str(valid_until_ms))
    return Grant(str(merchant_id), str(key_id), Access(str(access)), until)
