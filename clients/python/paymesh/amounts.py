"""Exact amounts: decimal text to minor units of a currency and back. No float is ever involved.

12.34 GBP is 1234 pence, 1234 JPY is 1234 yen (no minor unit), 1.234 KWD is 1234 fils (three decimals). The
number of decimals comes from the ISO 4217 table of the `iso4217` library.
"""

import re
from decimal import Context, Decimal, Inexact, InvalidOperation, Rounded

AMOUNT_MINOR_MAX = 1_000_000_000_000
"""The most that a request may carry, in minor units."""

DIGITS_MAX = 40
"""Longest decimal text that is read; anything longer cannot be an amount."""

_PLAIN_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")

# Twice the digits of the longest text, so that no product here is ever rounded; were one, it would raise.
_EXACT = Context(prec=2 * DIGITS_MAX + 20, traps=[Inexact, Rounded, InvalidOperation])


class AmountError(ValueError):
    """A text is not an amount of money in the currency."""


def currency_exponent(currency: str) -> int:
    """Number of decimals of a currency, for example 2 for "GBP". AmountError when ISO 4217 has none."""
    from iso4217 import Currency  # it parses its table when imported, which `--help` need not wait for

    try:
        exponent = Currency(currency).exponent
    except ValueError:
        raise AmountError(f"{currency!r} is not an ISO 4217 currency code, for example GBP") from None
    if exponent is None:
        raise AmountError(f"{currency} has no minor unit and cannot be charged")
    return int(exponent)


def parse_decimal(text: str) -> Decimal:
    """The number written in `text`: digits, at most one point, maybe a sign. AmountError for all else.

    Exponents, thousands separators, NaN and infinities, which `Decimal` itself would take, are refused.
    """
    if len(text) > DIGITS_MAX or not _PLAIN_DECIMAL.fullmatch(text):
        raise AmountError(f"{text[:DIGITS_MAX]!r} is not a decimal number")
    return Decimal(text)


def minor_units(amount: Decimal, exponent: int, quantity: int = 1) -> int:
    """`quantity` times `amount` in minor units. AmountError when that is not a whole number of them."""
    scaled = _EXACT.multiply(_EXACT.multiply(amount, Decimal(quantity)), Decimal(10) ** exponent)
    whole = int(scaled)
    if whole != scaled:
        raise AmountError(f"{quantity} x {amount} is not a whole number of minor units")
    return whole


def format_amount(amount_minor: int, currency: str) -> str:
    """For people: 1234 and "GBP" give "12.34 GBP". A currency nobody knows is shown in minor units."""
    try:
        exponent = currency_exponent(currency)
    except AmountError:
        return f"{amount_minor} {currency} (minor units)"
    sign, digits = ("-" if amount_minor < 0 else ""), str(abs(amount_minor)).rjust(exponent + 1, "0")
    if exponent == 0:
        return f"{sign}{digits} {currency}"
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]} {currency}"
