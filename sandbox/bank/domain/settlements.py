"""What the bank pays out: settlements of what it has taken, and payouts to merchants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from sandbox.bank.domain.books import Identity, Kind, Operation, Result
from services.kit.errors import Refused, key_reused

BASIS_POINTS_MAX = 10_000
"""All of it."""
SATURDAY = 5
ACCOUNT_CLOSED = "ACCOUNT_CLOSED"


class Fees(NamedTuple):
    """What the bank keeps of a capture."""

    basis_points: int
    """Ten-thousandths of the amount."""
    fixed_minor: int

    def of(self, operation: Operation) -> int:
        """The fixed part and the share, rounded half up, at most the amount; refunds cost nothing."""
        if operation.kind is not Kind.CAPTURE:
            return 0
        amount_minor = operation.amount_minor or 0
        share = (amount_minor * self.basis_points + BASIS_POINTS_MAX // 2) // BASIS_POINTS_MAX
        return min(amount_minor, self.fixed_minor + share)


class SettleWish(NamedTuple):
    """A wish to be paid what was taken."""

    merchant_id: str
    currency: str
    reference: str
    operation_ids: tuple[str, ...]


class PayoutWish(NamedTuple):
    """A wish to pay a merchant."""

    merchant_id: str
    amount_minor: int
    currency: str
    reference: str


class Settled(NamedTuple):
    """An operation in a settlement."""

    operation_id: str
    kind: Kind
    amount_minor: int
    fee_minor: int


class Settlement(NamedTuple):
    """A settlement; it never changes."""

    merchant_id: str
    batch_id: str
    key: str
    fingerprint: bytes
    reference: str
    currency: str
    operations: tuple[Settled, ...]
    """By operation id."""
    booked_on: date
    value_on: date
    created_at: datetime

    @property
    def captured_minor(self) -> int:
        """Sum of the captures."""
        return sum(one.amount_minor for one in self.operations if one.kind is Kind.CAPTURE)

    @property
    def refunded_minor(self) -> int:
        """Sum of the refunds."""
        return sum(one.amount_minor for one in self.operations if one.kind is Kind.REFUND)

    @property
    def fee_minor(self) -> int:
        """What the bank keeps."""
        return sum(one.fee_minor for one in self.operations)


class PayoutState(StrEnum):
    """What became of a payout."""

    PAID = "PAID"
    REFUSED = "REFUSED"


class Payout(NamedTuple):
    """A payout, also one that was refused; it never changes."""

    merchant_id: str
    payout_id: str
    key: str
    fingerprint: bytes
    reference: str
    amount_minor: int
    currency: str
    state: PayoutState
    reason: str
    booked_on: date
    value_on: date
    created_at: datetime


class KeyedSettle(NamedTuple):
    """A wish with what tells a repeat, and the id of the settlement that it would be."""

    wish: SettleWish
    key: str
    fingerprint: bytes
    batch_id: str


def settle_in_order(
    asked: Iterable[KeyedSettle],
    standing: Mapping[Identity, Settlement],
    operations: Mapping[Identity, Operation],
    settled: Set[Identity],
    fees: Fees,
    at: datetime,
) -> dict[Identity, Settlement | Refused]:
    """What a set of wishes comes to, by (merchant, key), decided in order: settlements, and refusals, of which nothing
    is kept. A wish whose key stands comes to nothing new.

    `operations` are by (merchant, operation id), `settled` names those that are in a settlement already."""
    made: dict[Identity, Settlement | Refused] = {}
    taken: set[Identity] = set(settled)
    for one in asked:
        identity = (one.wish.merchant_id, one.key)
        if identity in standing or isinstance(made.get(identity), Settlement):
            continue
        decided = _settle(one, operations, taken, fees, at)
        made[identity] = decided
        if isinstance(decided, Settlement):
            taken.update((decided.merchant_id, settled.operation_id) for settled in decided.operations)
    return made


def _settle(
    one: KeyedSettle, operations: Mapping[Identity, Operation], taken: Set[Identity], fees: Fees, at: datetime
) -> Settlement | Refused:
    wish = one.wish
    chosen: list[Settled] = []
    for operation_id in sorted(wish.operation_ids):
        identity = (wish.merchant_id, operation_id)
        operation = operations.get(identity)
        if operation is None:
            return _refused("UNKNOWN_OPERATION", operation_id, "is unknown here")
        if operation.result not in (Result.CAPTURED, Result.REFUNDED):
            return _refused("NOT_SETTLEABLE", operation_id, "has moved no money")
        if operation.currency != wish.currency:
            return _refused("CURRENCY_MISMATCH", operation_id, f"is in {operation.currency}")
        if identity in taken:
            return _refused("ALREADY_SETTLED", operation_id, "is in an earlier settlement")
        chosen.append(Settled(operation_id, operation.kind, operation.amount_minor or 0, fees.of(operation)))
    booked_on = at.date()
    return Settlement(
        wish.merchant_id,
        one.batch_id,
        one.key,
        one.fingerprint,
        wish.reference,
        wish.currency,
        tuple(chosen),
        booked_on,
        next_business_day(booked_on),
        at,
    )


def pay_out(
    wish: PayoutWish, payout_id: str, key: str, fingerprint: bytes, closed: bool, at: datetime
) -> Payout:
    """A payout; `closed` when the merchant's own bank takes nothing."""
    booked_on = at.date()
    return Payout(
        wish.merchant_id,
        payout_id,
        key,
        fingerprint,
        wish.reference,
        wish.amount_minor,
        wish.currency,
        PayoutState.REFUSED if closed else PayoutState.PAID,
        ACCOUNT_CLOSED if closed else "",
        booked_on,
        next_business_day(booked_on),
        at,
    )


def next_business_day(day: date) -> date:
    """The first day after it that is no Saturday and no Sunday. Holidays are left to real banks."""
    following = day + timedelta(days=1)
    while following.weekday() >= SATURDAY:
        following += timedelta(days=1)
    return following


def other_request(standing: Settlement | Payout, fingerprint: bytes) -> Refused | None:
    """Why a call cannot have the answer that stands under its key; None when it can."""
    return None if standing.fingerprint == fingerprint else key_reused(standing.key)


def payout_refusal(payout: Payout) -> Refused:
    """What the caller of a REFUSED payout is told."""
    return Refused(
        payout.reason, f"the bank of merchant {payout.merchant_id!r} takes no money for this account"
    )


def _refused(reason: str, operation_id: str, why: str) -> Refused:
    return Refused(reason, f"operation {operation_id!r} {why}", facts={"operation_id": operation_id})
