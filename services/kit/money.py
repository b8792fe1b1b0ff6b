"""Money: a whole number of minor units and an ISO 4217 currency. No float anywhere.

The exponents (USD 2, JPY 0, KWD 3) come from the `iso4217` package's copy of the standard's table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

AMOUNT_MINOR_MAX = 1_000_000_000_000
"""Largest amount of one request, in minor units: ten billion in most currencies. Far above any order, and so far below
2^63 that a million of them add up without overflow."""
TEXT_LENGTH_MAX = 64
"""Longest text that is read as an amount; the largest amounts have 20 digits."""

# Not left to Decimal: it reads "1e9" and "1_000", and its arithmetic rounds to 28 digits without a word.
_PLAIN_DECIMAL = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]*))?")


class CurrencyMismatch(ValueError):
    """Two amounts of different currencies were mixed."""


class UnknownCurrency(ValueError):
    """Not an ISO 4217 currency that has minor units."""


@cache
def _exponents() -> dict[str, int]:
    from iso4217 import Currency  # reads a table of 280 rows: on first use, not at import

    return {c.code: c.exponent for c in Currency if c.exponent is not None}


def is_currency(code: str) -> bool:
    """Whether `code` is a currency that amounts can be stated in (gold and test codes are not)."""
    return code in _exponents()


def exponent(code: str) -> int:
    """Decimals of the currency's minor unit: 2 for USD, 0 for JPY, 3 for KWD."""
    try:
        return _exponents()[code]
    except KeyError:
        raise UnknownCurrency(f"{code!r} is not an ISO 4217 currency") from None


@dataclass(frozen=True, slots=True, order=False)
class Money:
    """An exact amount. `Money(1234, "USD")` is 12.34 USD."""

    amount_minor: int
    currency: str

    def __add__(self, other: Money) -> Money:
        self._same_currency(other)
        return Money(self.amount_minor + other.amount_minor, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._same_currency(other)
        return Money(self.amount_minor - other.amount_minor, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.amount_minor, self.currency)

    def __lt__(self, other: Money) -> bool:
        self._same_currency(other)
        return self.amount_minor < other.amount_minor

    def __le__(self, other: Money) -> bool:
        self._same_currency(other)
        return self.amount_minor <= other.amount_minor

    def __str__(self) -> str:
        return f"{self.to_decimal()} {self.currency}"

    def to_decimal(self) -> Decimal:
        """The amount in major units, with exactly the currency's number of decimals."""
        return Decimal(f"{self.amount_minor}e-{exponent(self.currency)}")

    def _same_currency(self, other: Money) -> None:
        if self.currency != other.currency:
            raise CurrencyMismatch(f"cannot mix {self.currency} and {other.currency}")


def parse_money(text: str, currency: str) -> Money:
    """`parse_money("12.34", "USD")` is `Money(1234, "USD")`. Raises ValueError when `text` is not a plain decimal
    number (no exponent, no separators) or needs more decimals than the currency has: nothing is ever rounded."""
    match = _PLAIN_DECIMAL.fullmatch(text.strip())
    if match is None or len(text) > TEXT_LENGTH_MAX:
        raise ValueError(f"{text[:TEXT_LENGTH_MAX]!r} is not a decimal number")
    sign, whole, decimals = match[1], match[2], match[3] or ""
    places = exponent(currency)
    if decimals[places:].strip("0"):
        raise ValueError(f"{text!r} has more decimals than {currency} has")
    minor = int(whole + decimals[:places].ljust(places, "0"))
    return Money(-minor if sign == "-" else minor, currency)
