"""Checks name every field at fault in one go, and hold no more of a caller's text up to it than helps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.checks import (
    KEY_LENGTH_MAX,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
    VIOLATIONS_MAX,
    Checks,
    check_key,
    page_size,
)
from services.kit.errors import Invalid, Kind
from services.kit.money import AMOUNT_MINOR_MAX


def fields(checks: Checks) -> list[str]:
    """The paths that the checks complain about; none when they are content."""
    try:
        checks.done()
    except Invalid as error:
        return [violation.field for violation in error.violations]
    return []


def test_every_fault_is_reported_at_once() -> None:
    checks = Checks()
    checks.text("merchant_id", "")
    checks.number("quantity", 0, at_least=1, at_most=10)
    checks.money("amount", 0, "dollars")
    checks.country("address.country", "uk")
    checks.fail("lines", "contradict each other")
    with pytest.raises(Invalid) as raised:
        checks.done()
    assert [violation.field for violation in raised.value.violations] == [
        "merchant_id", "quantity", "amount.amount_minor", "amount.currency", "address.country", "lines",
    ]  # fmt: skip
    assert raised.value.kind is Kind.INVALID
    assert "quantity: is 0; it must be from 1 to 10" in raised.value.message


def test_a_sound_request_passes() -> None:
    checks = Checks()
    checks.text("merchant_id", "mer_1")
    checks.text("note", "", optional=True)
    checks.number("quantity", 10, at_least=1, at_most=10)
    checks.money("amount", AMOUNT_MINOR_MAX, "USD")
    checks.country("country", "GB")
    checks.country("country", "", optional=True)
    assert fields(checks) == []


@pytest.mark.parametrize(
    ("value", "sound"),
    [("x", True), ("x" * 64, True), ("é" * 64, True), ("x" * 65, False), ("a\x00b", False), ("", False)],
)
def test_texts_have_a_length_and_no_nul(value: str, sound: bool) -> None:
    checks = Checks()
    checks.text("id", value)
    assert fields(checks) == ([] if sound else ["id"])


@given(value=st.integers(-(2**64), 2**64), low=st.integers(-1000, 1000), span=st.integers(0, 1000))
def test_numbers_lie_within_their_limits(value: int, low: int, span: int) -> None:
    checks = Checks()
    checks.number("n", value, at_least=low, at_most=low + span)
    assert (fields(checks) == []) == (low <= value <= low + span)


@pytest.mark.parametrize("amount_minor", [0, -1, AMOUNT_MINOR_MAX + 1, 10**19, -(10**19)])
def test_amounts_are_positive_and_limited(amount_minor: int) -> None:
    checks = Checks()
    checks.money("amount", amount_minor, "USD")
    assert fields(checks) == ["amount.amount_minor"]


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_amount_is_complained_of_like_any_number(amount_minor: int) -> None:
    amounts, numbers = Checks(), Checks()
    amounts.money("amount", amount_minor, "USD")
    numbers.number("amount.amount_minor", amount_minor, at_least=1, at_most=AMOUNT_MINOR_MAX)
    assert amounts.violations == numbers.violations


@pytest.mark.parametrize("currency", ["", "usd", "XAU", "ZZZ", "U$D"])
def test_unknown_currencies_are_named(currency: str) -> None:
    checks = Checks()
    checks.money("amount", 1, currency)
    assert fields(checks) == ["amount.currency"]


@pytest.mark.parametrize("country", ["", "gb", "GBR", "G1", "G", "ÄÖ"])
def test_countries_are_two_capital_letters(country: str) -> None:
    checks = Checks()
    checks.country("country", country)
    assert fields(checks) == ["country"]


def test_a_thousand_faults_are_counted_not_listed() -> None:
    checks = Checks()
    for place in range(1_000):
        checks.text(f"lines[{place}].sku", "")
    with pytest.raises(Invalid) as raised:
        checks.done()
    violations = raised.value.violations
    assert len(violations) == VIOLATIONS_MAX + 1
    assert violations[0].field == "lines[0].sku"
    assert violations[-1].description == f"has {1_000 - VIOLATIONS_MAX} more faults"


def test_a_megabyte_in_the_wrong_field_is_not_sent_back() -> None:
    checks = Checks()
    checks.money("amount", 1, "x" * 1_000_000)
    checks.country("country", "y" * 1_000_000)
    with pytest.raises(Invalid) as raised:
        checks.done()
    assert len(raised.value.message) < 400


@pytest.mark.parametrize("key", ["k", "order-1001", "a b", "x" * KEY_LENGTH_MAX, "~!@#"])
def test_keys_are_printable_ascii(key: str) -> None:
    check_key(key)


@pytest.mark.parametrize("key", ["", "x" * (KEY_LENGTH_MAX + 1), "a\x00", "a\nb", "\x7f", "schlüssel", "鍵"])
def test_other_keys_are_refused_by_field(key: str) -> None:
    with pytest.raises(Invalid) as raised:
        check_key(key)
    assert [violation.field for violation in raised.value.violations] == ["idempotency_key"]


def test_a_page_has_a_size_by_default_and_at_most() -> None:
    assert page_size(0) == PAGE_SIZE_DEFAULT
    assert page_size(1) == 1
    assert page_size(PAGE_SIZE_MAX) == PAGE_SIZE_MAX
    for size in (-1, PAGE_SIZE_MAX + 1):
        with pytest.raises(Invalid, match="page_size"):
            page_size(size)
