"""What stands on a card, checked. A number never leaves its object by accident, not even in an error."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import date

from services.kit.checks import Checks, passes_luhn

NUMBER_LENGTH_MIN = 12
NUMBER_LENGTH_MAX = 19
EXPIRY_YEARS_MAX = 20
"""Issuers print cards for five years or so; further than this is a typing mistake."""
BIN_LENGTH = 6
FINGERPRINT_BYTES = 16


@dataclass(frozen=True, slots=True, repr=False)
class Card:
    """What a customer has typed. Has no repr, so that no log ever shows a number."""

    number: str
    exp_month: int
    exp_year: int
    cvc: str
    """Sent on once and kept nowhere."""

    @property
    def bin(self) -> str:
        """The digits that name the issuer."""
        return self.number[:BIN_LENGTH]

    @property
    def last4(self) -> str:
        """What may be shown of the number."""
        return self.number[-4:]


@dataclass(frozen=True, slots=True)
class KeptCard:
    """What the vault tells of a card without opening it."""

    merchant_id: str
    card_id: str
    """Identifier, "card_…": may be sent in place of the number from now on."""
    fingerprint: str
    """The same for the same number at the same merchant, and for no other."""
    processor_token: str
    brand: str
    bin: str
    last4: str
    exp_month: int
    exp_year: int


def check(card: Card, today: date) -> None:
    """Raises Invalid for a card that no issuer can have printed, or whose time is over. The text never holds the number
    or the code."""
    checks = Checks()
    digits = card.number.isascii() and card.number.isdigit()
    if not (digits and NUMBER_LENGTH_MIN <= len(card.number) <= NUMBER_LENGTH_MAX):
        checks.fail("card.number", f"must be {NUMBER_LENGTH_MIN} to {NUMBER_LENGTH_MAX} digits")
    elif not passes_luhn(card.number):
        checks.fail("card.number", "is mistyped: its check digit is wrong")
    checks.number("card.exp_month", card.exp_month, at_least=1, at_most=12)
    last_year = today.year + EXPIRY_YEARS_MAX
    checks.number("card.exp_year", card.exp_year, at_least=today.year, at_most=last_year)
    if card.exp_year == today.year and 1 <= card.exp_month < today.month:
        checks.fail("card.exp_month", "has passed")
    if not (card.cvc.isascii() and card.cvc.isdigit() and 3 <= len(card.cvc) <= 4):
        checks.fail("card.cvc", "must be 3 or 4 digits")
    checks.done()


def fingerprint(merchant_id: str, number: str, secret: bytes) -> str:
    """Tells that two numbers are the same without telling which. Keyed, because there are few enough numbers to try
    them all; with the merchant in it, so that merchants cannot compare their customers."""
    text = f"{merchant_id}\0{number}".encode()
    return hmac.new(secret, text, hashlib.sha256).hexdigest()[: 2 * FINGERPRINT_BYTES]
