"""Cards, as Stripe knows them.

Shops send a payment method of Stripe's (`pm_…`, made by Stripe's own form in the customer's browser), which is handed
on. With a test key the sandbox's test cards work as well: each has a test payment method at Stripe that behaves the
same.
"""

from __future__ import annotations

import re

TEST_METHODS = {
    "tok_visa": "pm_card_visa",
    "tok_mastercard": "pm_card_mastercard",
    "tok_amex": "pm_card_amex",
    "tok_discover": "pm_card_discover",
    "tok_diners": "pm_card_diners",
    "tok_jcb": "pm_card_jcb",
    "tok_unionpay": "pm_card_unionpay",
    "tok_declined": "pm_card_visa_chargeDeclined",
    "tok_insufficient_funds": "pm_card_visa_chargeDeclinedInsufficientFunds",
    "tok_lost_card": "pm_card_visa_chargeDeclinedLostCard",
    "tok_stolen_card": "pm_card_visa_chargeDeclinedStolenCard",
    "tok_expired_card": "pm_card_chargeDeclinedExpiredCard",
    "tok_incorrect_cvc": "pm_card_chargeDeclinedIncorrectCvc",
    "tok_processing_error": "pm_card_chargeDeclinedProcessingError",
    "tok_velocity_exceeded": "pm_card_visa_chargeDeclinedVelocityLimitExceeded",
    "tok_no_refund": "pm_card_refundFail",
}
"""By the sandbox's token. Its cards that are slow, or refuse increments or captures, have no counterpart."""

_NAMED = re.compile(rf"({'|'.join(sorted(TEST_METHODS, reverse=True))})(?:_[a-zA-Z0-9_-]{{1,64}})?")
_OWN = re.compile(r"(?:pm|card|src)_[a-zA-Z0-9_]{1,100}")

REASONS = {
    "card_velocity_exceeded": "VELOCITY_EXCEEDED",
    "generic_decline": "CARD_DECLINED",
    "incorrect_number": "INVALID_CARD",
    "invalid_number": "INVALID_CARD",
    "resource_missing": "INVALID_CARD",
}
"""Our word where it is not simply theirs in capitals."""

_CODE = re.compile(r"[a-z0-9_]{1,64}")


def payment_method_of(token: str, *, test: bool) -> str | None:
    """Stripe's name for the card behind `token`; None for a card that Stripe cannot know."""
    if _OWN.fullmatch(token):
        return token
    named = _NAMED.fullmatch(token) if test else None
    return TEST_METHODS[named[1]] if named else None


def reason_of(code: str | None, otherwise: str = "CARD_DECLINED") -> str:
    """Our reason for one of Stripe's codes: UPPER_SNAKE, never free text."""
    if not code or not _CODE.fullmatch(code):
        return otherwise
    return REASONS.get(code, code.upper())
