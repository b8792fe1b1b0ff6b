"""Amounts, as Stripe counts them: mostly in minor units of ISO 4217, with exceptions that must be known. Nothing is
ever rounded: what cannot be said to Stripe exactly is refused."""

from __future__ import annotations

from services.kit.money import Money, exponent

ZERO_DECIMAL = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF")
)
"""Counted in whole units. MGA has two decimals by ISO 4217, so only whole ariary can be said."""
WHOLE_TWO_DECIMAL = frozenset(("ISK", "UGX"))
"""Without decimals by ISO 4217, and yet counted in hundredths."""
THREE_DECIMAL = frozenset(("BHD", "JOD", "KWD", "OMR", "TND"))
"""Counted in thousandths, whose last digit must be 0."""


class Inexpressible(Exception):
    """An amount that cannot be said to Stripe. `reason` is UPPER_SNAKE."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def to_stripe(amount: Money) -> int:
    """The amount as Stripe counts it. Raises Inexpressible."""
    multiplier, divisor = _ratio(amount.currency)
    stripes, rest = divmod(amount.amount_minor * multiplier, divisor)
    if rest or (amount.currency in THREE_DECIMAL and stripes % 10):
        raise Inexpressible("AMOUNT_TOO_FINE")
    return stripes


def from_stripe(amount: int, currency: str) -> int:
    """The other way round, in minor units of ISO 4217. Raises Inexpressible for what is not a whole number of those."""
    multiplier, divisor = _ratio(currency)
    minor, rest = divmod(amount * divisor, multiplier)
    if rest:
        raise Inexpressible("AMOUNT_TOO_FINE")
    return minor


def _ratio(currency: str) -> tuple[int, int]:
    """What minor units are multiplied with, and divided by."""
    iso = exponent(currency)
    if currency in ZERO_DECIMAL:
        stripes = 0
    elif currency in WHOLE_TWO_DECIMAL:
        stripes = 2
    elif currency in THREE_DECIMAL:
        stripes = 3
    elif iso == 2:
        stripes = 2
    else:
        # Whether Stripe would count it as we do is not known, and a wrong guess is ten times the money.
        raise Inexpressible("CURRENCY_UNSUPPORTED")
    common = min(iso, stripes)
    multiplier: int = 10 ** (stripes - common)
    divisor: int = 10 ** (iso - common)
    return multiplier, divisor
