"""What is said to Stripe, and how what it says is read: amounts in every kind of currency, cards, reasons. Values in,
values out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.bank.cards import CARDS
from services.kit.money import Money, exponent, is_currency
from services.payment.clients.stripe.amounts import (
    THREE_DECIMAL,
    WHOLE_TWO_DECIMAL,
    ZERO_DECIMAL,
    Inexpressible,
    from_stripe,
    to_stripe,
)
from services.payment.clients.stripe.cards import TEST_METHODS, payment_method_of, reason_of


@pytest.mark.parametrize(
    ("minor", "currency", "stripes"),
    [
        (1_000, "USD", 1_000),
        (500, "JPY", 500),
        (5_120, "KWD", 5_120),
        (5, "UGX", 500),
        (7, "ISK", 700),
        (300, "MGA", 3),
        (1_000, "HUF", 1_000),
    ],
)
def test_amounts_are_said_as_stripe_counts_them(minor: int, currency: str, stripes: int) -> None:
    assert to_stripe(Money(minor, currency)) == stripes
    assert from_stripe(stripes, currency) == minor


@pytest.mark.parametrize(
    ("minor", "currency", "reason"),
    [
        (5_124, "KWD", "AMOUNT_TOO_FINE"),
        (350, "MGA", "AMOUNT_TOO_FINE"),
        (1_000, "LYD", "CURRENCY_UNSUPPORTED"),
        (1_000, "CLF", "CURRENCY_UNSUPPORTED"),
    ],
)
def test_what_cannot_be_said_exactly_is_not_said(minor: int, currency: str, reason: str) -> None:
    with pytest.raises(Inexpressible) as refused:
        to_stripe(Money(minor, currency))
    assert refused.value.reason == reason


def test_an_answer_that_is_not_whole_in_our_units_is_not_read() -> None:
    with pytest.raises(Inexpressible):
        from_stripe(550, "UGX")


@given(st.integers(1, 10**12), st.sampled_from(["USD", "EUR", "JPY", "KWD", "UGX", "ISK", "MGA", "BHD"]))
def test_no_amount_changes_on_its_way_there_and_back(minor: int, currency: str) -> None:
    try:
        said = to_stripe(Money(minor, currency))
    except Inexpressible:
        assert currency in THREE_DECIMAL | {"MGA"}
        return
    assert from_stripe(said, currency) == minor


def test_the_exceptions_are_currencies_and_exceptions() -> None:
    assert all(is_currency(code) for code in ZERO_DECIMAL | WHOLE_TWO_DECIMAL | THREE_DECIMAL)
    assert {code for code in ZERO_DECIMAL if exponent(code)} == {"MGA"}
    assert all(exponent(code) == 0 for code in WHOLE_TWO_DECIMAL)
    assert all(exponent(code) == 3 for code in THREE_DECIMAL)


def test_the_sandboxes_cards_have_test_cards_at_stripe() -> None:
    known = {card.token for card in CARDS}
    assert set(TEST_METHODS) <= known
    without = {"tok_slow", "tok_no_increment", "tok_no_capture"}
    assert known - set(TEST_METHODS) == without


def test_a_card_is_named_as_stripe_names_it() -> None:
    assert payment_method_of("pm_1PabcDEF", test=False) == "pm_1PabcDEF"
    assert payment_method_of("tok_visa", test=True) == "pm_card_visa"
    assert payment_method_of("tok_visa_customer-17", test=True) == "pm_card_visa"
    assert payment_method_of("tok_lost_card_o1", test=True) == "pm_card_visa_chargeDeclinedLostCard"


@pytest.mark.parametrize(
    "token", ["tok_4_0123456789abcdef0123456789abcdef", "4242424242424242", "", "pm_/../x"]
)
def test_a_card_that_stripe_cannot_know_is_not_asked_for(token: str) -> None:
    assert payment_method_of(token, test=True) is None


def test_with_a_live_key_no_test_card_is_used() -> None:
    assert payment_method_of("tok_visa", test=False) is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("insufficient_funds", "INSUFFICIENT_FUNDS"),
        ("generic_decline", "CARD_DECLINED"),
        ("card_velocity_exceeded", "VELOCITY_EXCEEDED"),
        (None, "CARD_DECLINED"),
        ("a text, with 4242424242424242", "CARD_DECLINED"),
    ],
)
def test_reasons_are_words_and_never_texts(code: str | None, reason: str) -> None:
    assert reason_of(code) == reason
