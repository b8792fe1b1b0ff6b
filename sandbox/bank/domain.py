"""What the bank decides. Pure: requests and books in, operations out.

An authorization's states: (not arrived) → APPROVED | DECLINED | CANCELLED, APPROVED → VOIDED.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from sandbox.bank.cards import Card
from services.kit.errors import NotFound, Refused, key_reused
from services.kit.ids import new_id

AUTH_CODE_LENGTH = 6
_AUTH_CODE_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_AUTH_CODE_PAIRS = [a + b for a in _AUTH_CODE_ALPHABET for b in _AUTH_CODE_ALPHABET]

Identity = tuple[str, str]
"""(merchant, key) or (merchant, authorization id)."""


class Kind(StrEnum):
    """What an operation does."""

    AUTHORIZE = "AUTHORIZE"
    VOID = "VOID"


class Result(StrEnum):
    """What an operation came to."""

    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    CANCELLED = "CANCELLED"
    """It was cancelled by key before it arrived."""
    VOIDED = "VOIDED"
    """This void let the hold go."""
    ALREADY_VOIDED = "ALREADY_VOIDED"
    """An earlier void had let it go."""
    REFUSED = "REFUSED"
    """There was no hold to let go."""


class State(StrEnum):
    """Where an authorization stands."""

    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    VOIDED = "VOIDED"
    CANCELLED = "CANCELLED"


class AuthorizeWish(NamedTuple):
    """A wish for a hold."""

    merchant_id: str
    amount_minor: int
    currency: str
    card_token: str
    reference: str
    card: Card
    """How the bank behind `card_token` behaves."""


class VoidWish(NamedTuple):
    """A wish to let a hold go."""

    merchant_id: str
    authorization_id: str


class Operation(NamedTuple):
    """A row of the books; it never changes."""

    merchant_id: str
    operation_id: str
    kind: Kind
    key: str | None
    fingerprint: bytes
    undoes: str | None
    amount_minor: int | None
    currency: str | None
    card_token: str
    reference: str
    result: Result
    auth_code: str
    decline_reason: str
    created_at: datetime


class Authorization(NamedTuple):
    """An authorization as it stands, or as it stood when it was made."""

    merchant_id: str
    authorization_id: str
    key: str
    amount_minor: int | None
    """None when it was cancelled before it arrived."""
    currency: str | None
    state: State
    auth_code: str
    decline_reason: str
    created_at: datetime


def authorize(
    wish: AuthorizeWish, operation_id: str, key: str, fingerprint: bytes, at: datetime
) -> Operation:
    """The card decides."""
    declined = wish.card.decline_reason
    return Operation(
        wish.merchant_id,
        operation_id,
        Kind.AUTHORIZE,
        key,
        fingerprint,
        None,
        wish.amount_minor,
        wish.currency,
        wish.card_token,
        wish.reference,
        Result.DECLINED if declined else Result.APPROVED,
        "" if declined else _auth_code(),
        declined,
        at,
    )


def _auth_code() -> str:
    """Six characters for people to read out; not a secret. One throw of the dice, two characters at a time:
    `random.choices` costs as much as all the rest of an authorization."""
    number = random.getrandbits(64)
    pairs = len(_AUTH_CODE_PAIRS)
    return (
        _AUTH_CODE_PAIRS[number % pairs]
        + _AUTH_CODE_PAIRS[number // pairs % pairs]
        + _AUTH_CODE_PAIRS[number // pairs**2 % pairs]
    )


def void(held: Operation, *, voided: bool, key: str | None, fingerprint: bytes, at: datetime) -> Operation:
    """Let the hold of the authorization `held` go, unless it is gone (`voided`) or there never was one."""
    result = Result.ALREADY_VOIDED if voided else Result.VOIDED
    if held.result is not Result.APPROVED:
        result = Result.REFUSED
    return Operation(
        held.merchant_id,
        new_id("void"),
        Kind.VOID,
        key,
        fingerprint,
        held.operation_id,
        held.amount_minor,
        held.currency,
        "",
        "",
        result,
        "",
        "",
        at,
    )


def cancelled(merchant_id: str, key: str, at: datetime) -> Operation:
    """The row that keeps an authorization that has not arrived from ever holding anything."""
    return Operation(
        merchant_id,
        new_id("auth"),
        Kind.AUTHORIZE,
        key,
        b"",
        None,
        None,
        None,
        "",
        "",
        Result.CANCELLED,
        "",
        "",
        at,
    )


class KeyedVoid(NamedTuple):
    """A wish to let a hold go, with what tells a repeat."""

    wish: VoidWish
    key: str
    fingerprint: bytes


def void_in_order(
    asked: Iterable[KeyedVoid],
    standing: Mapping[Identity, Operation],
    held: Mapping[Identity, Operation],
    voided: Iterable[Identity],
    at: datetime,
) -> dict[Identity, Operation]:
    """The new operations of a set of voids, by (merchant, key), decided in order.

    `standing` are the operations that the keys were used for before, `held` and `voided` the authorizations
    by (merchant, authorization id). A wish whose key stands, or whose authorization is unknown, makes no
    operation."""
    gone = set(voided)
    made: dict[Identity, Operation] = {}
    for void_asked in asked:
        identity = (void_asked.wish.merchant_id, void_asked.key)
        target = (void_asked.wish.merchant_id, void_asked.wish.authorization_id)
        if identity in standing or identity in made or target not in held:
            continue
        made[identity] = void(
            held[target],
            voided=target in gone,
            key=void_asked.key,
            fingerprint=void_asked.fingerprint,
            at=at,
        )
        gone.add(target)
    return made


def repeat_refusal(standing: Operation, kind: Kind, key: str, fingerprint: bytes) -> Refused | None:
    """Why a call cannot have the answer of the operation that stands under its key; None when it can."""
    if standing.kind is not kind:
        return key_reused(key)
    if standing.result is Result.CANCELLED:
        return Refused(
            "CANCELLED_BEFORE_ARRIVAL", "this authorization was cancelled before it arrived; it holds nothing"
        )
    return None if standing.fingerprint == fingerprint else key_reused(key)


_STATES = {
    Result.APPROVED: State.APPROVED,
    Result.DECLINED: State.DECLINED,
    Result.CANCELLED: State.CANCELLED,
}
"""What an authorization is before it is voided."""


def authorization(made: Operation, *, voided: bool = False) -> Authorization:
    """The authorization that an operation made."""
    return Authorization(
        made.merchant_id,
        made.operation_id,
        made.key or "",
        made.amount_minor,
        made.currency,
        State.VOIDED if voided else _STATES[made.result],
        made.auth_code,
        made.decline_reason,
        made.created_at,
    )


def nothing_held(authorization_id: str) -> Refused:
    """A void of something that was declined, or cancelled before it arrived."""
    return Refused("AUTHORIZATION_DECLINED", f"authorization {authorization_id!r} holds nothing to let go")


def unknown_authorization(authorization_id: str) -> NotFound:
    """A void of nothing we know."""
    return NotFound("UNKNOWN_AUTHORIZATION", f"there is no authorization {authorization_id!r}")
