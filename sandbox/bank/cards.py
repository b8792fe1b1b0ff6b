"""Test cards, as data. Numbers and what they stand for are those of Stripe's documentation, where it has one.

A token may carry a suffix, `tok_visa_<1 to 64 of a-z A-Z 0-9 _ ->`, and then is another card that behaves the
same: load tests need many distinct cards."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Card:
    """How the bank answers for a card."""

    token: str
    number: str = ""
    """Card number that TokenizeCard exchanges for the token."""
    decline_reason: str = ""
    """Why every authorization is declined; empty approves."""
    delay_ms: int = 0
    """How long the bank behind the card takes to decide."""
    increment_reason: str = ""
    """Why it will not hold more than at first; empty holds more."""
    capture_reason: str = ""
    """Why what it holds cannot be captured; empty captures."""
    refund_reason: str = ""
    """Why it takes nothing back; empty takes it."""


CARDS = (
    Card("tok_visa", "4242424242424242"),
    Card("tok_mastercard", "5555555555554444"),
    Card("tok_amex", "378282246310005"),
    Card("tok_discover", "6011111111111117"),
    Card("tok_diners", "3056930009020004"),
    Card("tok_jcb", "3566002020360505"),
    Card("tok_unionpay", "6200000000000005"),
    Card("tok_declined", "4000000000000002", decline_reason="CARD_DECLINED"),
    Card("tok_insufficient_funds", "4000000000009995", decline_reason="INSUFFICIENT_FUNDS"),
    Card("tok_lost_card", "4000000000009987", decline_reason="LOST_CARD"),
    Card("tok_stolen_card", "4000000000009979", decline_reason="STOLEN_CARD"),
    Card("tok_expired_card", "4000000000000069", decline_reason="EXPIRED_CARD"),
    Card("tok_incorrect_cvc", "4000000000000127", decline_reason="INCORRECT_CVC"),
    Card("tok_processing_error", "4000000000000119", decline_reason="PROCESSING_ERROR"),
    Card("tok_velocity_exceeded", "4000000000006975", decline_reason="VELOCITY_EXCEEDED"),
    # Ours: Stripe has no numbers for these.
    Card("tok_slow", "4000000000002008", delay_ms=2_000),
    Card("tok_no_increment", "4000000000000341", increment_reason="INSUFFICIENT_FUNDS"),
    Card("tok_no_capture", "4000000000000259", capture_reason="CARD_CLOSED"),
    Card("tok_no_refund", "4000000000005126", refund_reason="ACCOUNT_CLOSED"),
)

ORDINARY = Card("tok_<first digit>_<32 hexadecimal digits>")
"""Any other card that TokenizeCard has seen: approved."""
UNKNOWN = Card("", decline_reason="INVALID_CARD")
"""What is no token of this bank."""

BY_NUMBER = {card.number: card for card in CARDS}
_BY_TOKEN = {card.token: card for card in CARDS}
_NAMED = re.compile(rf"({'|'.join(sorted(_BY_TOKEN, reverse=True))})(?:_[a-zA-Z0-9_-]{{1,64}})?")
_ORDINARY = re.compile(r"tok_[0-9]_[0-9a-f]{32}")


def card_of(token: str) -> Card:
    """The behaviour of the card behind `token`."""
    if named := _NAMED.fullmatch(token):
        return _BY_TOKEN[named[1]]
    return ORDINARY if _ORDINARY.fullmatch(token) else UNKNOWN
