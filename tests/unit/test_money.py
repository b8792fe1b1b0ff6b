"""Money is exact: what is parsed equals the fraction that is written, to the last digit, or is refused. The oracle is
`fractions.Fraction`, which shares no code with the parser, and a table of exponents that was typed in by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.kit.money import CurrencyMismatch, Money, UnknownCurrency, exponent, is_currency, parse_money

EXPONENTS = {"USD": 2, "EUR": 2, "GBP": 2, "JPY": 0, "KRW": 0, "KWD": 3, "BHD": 3, "CLF": 4}

currencies = st.sampled_from(sorted(EXPONENTS))
digits = st.text("0123456789", min_size=1, max_size=30)
decimals = st.text("0123456789", max_size=30)
amounts = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(("currency", "decimals"), EXPONENTS.items())
def test_the_exponents_are_those_of_iso_4217(currency: str, decimals: int) -> None:
    assert exponent(currency) == decimals
    assert is_currency(currency)


@pytest.mark.parametrize("code", ["", "usd", "US", "USDD", "ZZZ", "XAU", "XXX", "XTS", "US\x00"])
def test_what_has_no_minor_unit_is_no_currency_for_amounts(code: str) -> None:
    assert not is_currency(code)
    with pytest.raises(UnknownCurrency):
        exponent(code)


@given(sign=st.sampled_from(["", "+", "-"]), whole=digits, fraction=decimals, currency=currencies)
@example(sign="", whole="12", fraction="34", currency="USD")
@example(sign="-", whole="0", fraction="005", currency="KWD")
@example(sign="", whole="12", fraction="340000000000000000000000000001", currency="USD")
@example(sign="", whole="123456789012345678901234567890", fraction="12", currency="USD")
def test_a_decimal_is_parsed_exactly_or_refused(sign: str, whole: str, fraction: str, currency: str) -> None:
    text = f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
    exact = Fraction(text) * 10 ** EXPONENTS[currency]
    if exact.denominator == 1:
        assert parse_money(text, currency) == Money(exact.numerator, currency)
    else:
        with pytest.raises(ValueError, match="more decimals"):
            parse_money(text, currency)


@pytest.mark.parametrize(
    ("text", "currency", "amount_minor"),
    [
        ("12.34", "USD", 1234),
        ("12.3", "USD", 1230),
        ("12.", "USD", 1200),
        ("-0.01", "USD", -1),
        ("0.10", "USD", 10),
        ("12.300", "USD", 1230),
        (" 7 ", "JPY", 7),
        ("7.0", "JPY", 7),
        ("1.234", "KWD", 1234),
        ("00012.34", "GBP", 1234),
    ],
)
def test_the_usual_ways_to_write_an_amount(text: str, currency: str, amount_minor: int) -> None:
    assert parse_money(text, currency) == Money(amount_minor, currency)


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", ".5", "1e3", "1E-2", "NaN", "Infinity", "1_000", "1,000.00", "12,34", "0x10", "١٢", "--1", "1 2",
     "12.34 USD", "1" * 65],
)  # fmt: skip
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a decimal number"):
        parse_money(text, "USD")


@pytest.mark.parametrize(
    ("text", "currency"), [("0.001", "USD"), ("1.5", "JPY"), ("1.2345", "KWD"), ("0.005", "GBP")]
)
def test_nothing_is_rounded(text: str, currency: str) -> None:
    with pytest.raises(ValueError, match="more decimals"):
        parse_money(text, currency)


@given(amount_minor=amounts, currency=currencies)
def test_an_amount_reads_back_as_it_was_written(amount_minor: int, currency: str) -> None:
    money = Money(amount_minor, currency)
    written, code = str(money).split(" ")
    assert code == currency
    assert len(written.partition(".")[2]) == EXPONENTS[currency]
    assert parse_money(written, currency) == money
    assert Fraction(money.to_decimal()) == Fraction(amount_minor, 10 ** EXPONENTS[currency])


@given(a=amounts, b=amounts, currency=currencies)
def test_arithmetic_is_that_of_whole_numbers(a: int, b: int, currency: str) -> None:
    left, right = Money(a, currency), Money(b, currency)
    assert (left + right).amount_minor == a + b
    assert (left - right).amount_minor == a - b
    assert (-left).amount_minor == -a
    assert left + right - right == left
    assert (left < right) == (a < b)
    assert (left <= right) == (a <= b)


def test_currencies_do_not_mix() -> None:
    dollars, yen = Money(1, "USD"), Money(1, "JPY")
    for mix in (
        lambda: dollars + yen,
        lambda: dollars - yen,
        lambda: dollars < yen,
        lambda: dollars <= yen,
    ):
        with pytest.raises(CurrencyMismatch):
            mix()
    assert dollars != yen
