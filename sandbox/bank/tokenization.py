"""Exchanges card numbers for tokens. Pure; a number never leaves it, not even in an error."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import date

from sandbox.bank.cards import BY_NUMBER
from services.kit.checks import Checks

EXPIRY_YEARS_MAX = 20
"""Issuers print cards for five years or so; further than this is a typing mistake."""


@dataclass(frozen=True, slots=True, repr=False)
class CardNumber:
    """What stands on a card. Has no repr, so that no log ever shows a number."""

    number: str
    expiry_month: int
    expiry_year: int
    cvc: str


@dataclass(frozen=True, slots=True)
class Token:
    """What a card number was exchanged for."""

    token: str
    bin: str
    last4: str
    brand: str


def tokenize(card: CardNumber, today: date, secret: bytes) -> Token:
    """The token of a card: the same for the same number, every time. Raises Invalid; its text never holds the
    number."""
    checks = Checks()
    brand = brand_of(card.number)
    if not (12 <= len(card.number) <= 19 and card.number.isascii() and card.number.isdigit()):
        checks.fail("number", "must be 12 to 19 digits")
    elif not passes_luhn(card.number):
        checks.fail("number", "is mistyped: its check digit is wrong")
    checks.number("expiry_month", card.expiry_month, at_least=1, at_most=12)
    checks.number("expiry_year", card.expiry_year, at_least=today.year, at_most=today.year + EXPIRY_YEARS_MAX)
    if card.expiry_year == today.year and 1 <= card.expiry_month < today.month:
        checks.fail("expiry_month", "has passed")
    cvc_length = 4 if brand == "amex" else 3
    if not (len(card.cvc) == cvc_length and card.cvc.isascii() and card.cvc.isdigit()):
        checks.fail("cvc", f"must be {cvc_length} digits")
    checks.done()
    named = BY_NUMBER.get(card.number)
    token = named.token if named else _stable_token(card.number, secret)
    return Token(token, card.number[:6], card.number[-4:], brand)


def _stable_token(number: str, secret: bytes) -> str:
    digest = hmac.new(secret, number.encode(), hashlib.sha256).hexdigest()
    return f"tok_{number[0]}_{digest[:32]}"


def passes_luhn(number: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right counts double, the digits of the sum of all end in
    0."""
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    digits = [int(digit) for digit in reversed(number)]
    return (sum(digits[::2]) + sum(doubled[digit] for digit in digits[1::2])) % 10 == 0


_BRANDS = (
    ("visa", 4, 4),
    ("mastercard", 51, 55),
    ("mastercard", 2221, 2720),
    ("amex", 34, 34),
    ("amex", 37, 37),
    ("discover", 6011, 6011),
    ("discover", 644, 659),
    ("diners", 300, 305),
    ("diners", 36, 36),
    ("diners", 38, 39),
    ("jcb", 3528, 3589),
    ("unionpay", 62, 62),
)
"""Brand, first and last prefix of the numbers issued under it."""


def brand_of(number: str) -> str:
    """The card scheme by the first digits; "unknown" for others."""
    for brand, first, last in _BRANDS:
        prefix = number[: len(str(first))]
        if prefix.isascii() and prefix.isdigit() and first <= int(prefix) <= last:
            return brand
    return "unknown"
