"""What the bank settles and pays out, decided pure: every operation once, amounts of its own books, fees, dates."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.bank.domain import (
    Fees,
    Identity,
    KeyedSettle,
    Kind,
    Operation,
    PayoutState,
    PayoutWish,
    Result,
    Settlement,
    SettleWish,
    next_business_day,
    pay_out,
    settle_in_order,
)
from services.kit.errors import Refused

AT = datetime(2026, 11, 27, 1, tzinfo=UTC)
"""A Friday."""
FEES = Fees(60, 5)


def _operation(name: str, kind: Kind, amount_minor: int, result: Result, currency: str = "GBP") -> Operation:
    return Operation("m", name, kind, name, b"", "auth_1", amount_minor, currency, "", "", result, "", "", AT)


BOOKS = {
    ("m", one.operation_id): one
    for one in (
        _operation("cap_1", Kind.CAPTURE, 1_000, Result.CAPTURED),
        _operation("cap_2", Kind.CAPTURE, 3, Result.CAPTURED),
        _operation("ref_1", Kind.REFUND, 400, Result.REFUNDED),
        _operation("cap_no", Kind.CAPTURE, 1_000, Result.REFUSED),
        _operation("auth_1", Kind.AUTHORIZE, 1_000, Result.APPROVED),
        _operation("cap_usd", Kind.CAPTURE, 1_000, Result.CAPTURED, "USD"),
    )
}


def _asked(key: str, *ids: str, merchant: str = "m") -> KeyedSettle:
    return KeyedSettle(SettleWish(merchant, "GBP", "stl_1", ids), key, key.encode(), f"batch_{key}")


def _settle(
    *asked: KeyedSettle, settled: frozenset[Identity] = frozenset()
) -> dict[Identity, Settlement | Refused]:
    return settle_in_order(asked, {}, BOOKS, settled, FEES, AT)


def test_a_settlement_pays_what_was_taken_less_what_was_given_back_and_fees() -> None:
    made = _settle(_asked("k", "ref_1", "cap_2", "cap_1"))[("m", "k")]
    assert isinstance(made, Settlement)
    assert (made.captured_minor, made.refunded_minor) == (1_003, 400)
    # 0.6 % of 1,000 and 5; all of 3, since the fixed part is more; nothing for the refund.
    assert [(one.operation_id, one.fee_minor) for one in made.operations] == [
        ("cap_1", 11),
        ("cap_2", 3),
        ("ref_1", 0),
    ]
    assert made.fee_minor == 14
    assert (made.booked_on, made.value_on) == (date(2026, 11, 27), date(2026, 11, 30))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (("cap_1", "cap_9"), "UNKNOWN_OPERATION"),
        (("cap_1", "cap_no"), "NOT_SETTLEABLE"),
        (("cap_1", "auth_1"), "NOT_SETTLEABLE"),
        (("cap_1", "cap_usd"), "CURRENCY_MISMATCH"),
        (("cap_1", "ref_1"), "ALREADY_SETTLED"),
    ],
)
def test_a_settlement_with_one_wrong_operation_is_refused_whole(ids: tuple[str, ...], reason: str) -> None:
    refused = _settle(_asked("k", *ids), settled=frozenset({("m", "ref_1")}))[("m", "k")]
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.facts) == (reason, {"operation_id": ids[1]})


def test_of_two_settlements_of_one_set_the_second_does_not_get_the_operation_of_the_first() -> None:
    made = _settle(_asked("k1", "cap_1"), _asked("k2", "cap_1", "cap_2"), _asked("k3", "cap_2"))
    assert isinstance(made[("m", "k1")], Settlement)
    assert isinstance(refused := made[("m", "k2")], Refused)
    assert refused.reason == "ALREADY_SETTLED"
    assert isinstance(made[("m", "k3")], Settlement)


def test_an_operation_of_another_merchant_is_unknown() -> None:
    refused = _settle(_asked("k", "cap_1", merchant="x"))[("x", "k")]
    assert isinstance(refused, Refused)
    assert refused.reason == "UNKNOWN_OPERATION"


@given(st.integers(1, 10**12), st.integers(0, 10_000), st.integers(0, 10**6))
def test_a_fee_is_never_more_than_the_capture(amount_minor: int, points: int, fixed: int) -> None:
    fee = Fees(points, fixed).of(_operation("cap", Kind.CAPTURE, amount_minor, Result.CAPTURED))
    assert 0 <= fee <= amount_minor
    # Rounded half up: never further from the exact share than half a unit.
    if fee < amount_minor:
        assert abs((fee - fixed) * 20_000 - amount_minor * points * 2) <= 10_000


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_the_next_business_day_is_the_first_weekday_after_it(day: date) -> None:
    following = next_business_day(day)
    assert following > day
    assert following.weekday() < 5
    assert (following - day).days == {4: 3, 5: 2}.get(day.weekday(), 1)


def test_a_payout_is_refused_when_the_merchants_bank_takes_nothing() -> None:
    wish = PayoutWish("m", 500, "GBP", "stl_1")
    paid = pay_out(wish, "pout_1", "k", b"", False, AT)
    refused = pay_out(wish, "pout_1", "k", b"", True, AT)
    assert (paid.state, paid.reason) == (PayoutState.PAID, "")
    assert (refused.state, refused.reason) == (PayoutState.REFUSED, "ACCOUNT_CLOSED")
