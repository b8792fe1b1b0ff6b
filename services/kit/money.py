"""Money: a whole number of minor units and an ISO 4217 currency. No float anywhere.

The exponents (USD 2, JPY 0, KWD 3) come from the `iso4217` package's copy of the standard's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache

AMOUNT_MINOR_MAX = 1_000_000_000_000
"""Largest amount of one request, in minor units: ten billion in most currencies. Far above any order, and so far below
2^63 that a million of them add up without overflow."""


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
        return Decimal(self.amount_minor).scaleb(-exponent(self.currency))

    def _same_currency(self, other: Money) -> None:
        if self.currency != other.currency:
            raise CurrencyMismatch(f"cannot mix {self.currency} and {other.currency}")


def parse_money(text: str, currency: str) -> Money:
    """`parse_money("12.34", "USD")` is `Money(1234, "USD")`. Raises ValueError when `text` is not a plain decimal number
    or has more decimals than the currency: nothing is ever rounded."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not a finite number")
    minor = value.scaleb(exponent(currency))
    if minor != minor.to_integral_value():
        raise ValueError(f"{text!r} has more decimals than {currency} has")
    return Money(int(minor), currency)
