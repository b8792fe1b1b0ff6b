"""Checks of a request's fields that collect every fault before they complain.

checks = Checks()
checks.text("merchant_id", request.merchant_id, max_length=64)
checks.done()           # raises Invalid with all violations
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_pton

from services.kit.errors import Invalid, Violation
from services.kit.money import AMOUNT_MINOR_MAX, is_currency

KEY_LENGTH_MAX = 255
ID_LENGTH_MAX = 64
EMAIL_LENGTH_MAX = 200
PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
VIOLATIONS_MAX = 20
"""Faults that are listed one by one: a request of a thousand bad lines has made its point by then."""
QUOTED_LENGTH_MAX = 20
"""Characters of a caller's own text that are held up to it."""


class Checks:
    """Collects violations; `done` raises them."""

    __slots__ = ("_unlisted", "violations")

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._unlisted = 0

    def fail(self, field: str, description: str) -> None:
        """Note a fault; past VIOLATIONS_MAX they are only counted."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(field, description))
        else:
            self._unlisted += 1

    def text(
        self, field: str, value: str, *, max_length: int = ID_LENGTH_MAX, optional: bool = False
    ) -> None:
        """A text of 1 (0 when optional) to `max_length` characters without NUL, which PostgreSQL cannot store."""
        if not value:
            if not optional:
                self.fail(field, f"is required: 1 to {max_length} characters")
        elif len(value) > max_length:
            self.fail(field, f"has {len(value)} characters; at most {max_length} are allowed")
        elif "\x00" in value:
            self.fail(field, "contains a NUL character")

    def number(self, field: str, value: int, *, at_least: int, at_most: int) -> None:
        """A whole number within limits."""
        if not at_least <= value <= at_most:
            self.fail(field, f"is {value}; it must be from {at_least:,} to {at_most:,}")

    def money(self, field: str, amount_minor: int, currency: str) -> None:
        """A positive amount within the limit, of a currency that exists."""
        if not 1 <= amount_minor <= AMOUNT_MINOR_MAX:
            self.number(f"{field}.amount_minor", amount_minor, at_least=1, at_most=AMOUNT_MINOR_MAX)
        if not is_currency(currency):
            quoted = repr(currency[:QUOTED_LENGTH_MAX])
            self.fail(f"{field}.currency", f"{quoted} is not an ISO 4217 currency code such as 'USD'")

    def country(self, field: str, value: str, *, optional: bool = False) -> None:
        """Two capital letters."""
        if not value and optional:
            return
        if not is_country(value):
            self.fail(field, f"{value[:QUOTED_LENGTH_MAX]!r} is not an ISO 3166-1 alpha-2 code such as 'GB'")

    def ip_address(self, field: str, value: str) -> None:
        """An IPv4 or IPv6 address, or empty."""
        if value and not is_ip_address(value):
            self.fail(field, f"{value[:QUOTED_LENGTH_MAX]!r} is not an IPv4 or IPv6 address")

    def email(self, field: str, value: str) -> None:
        """An email address of at most 200 characters, or empty. Only the @ is looked for: the rest is the mail server's
        business."""
        self.text(field, value, max_length=EMAIL_LENGTH_MAX, optional=True)
        if value and not is_email(value):
            self.fail(field, "is not an email address such as 'ann@example.com'")

    def card_bin(self, field: str, value: str) -> None:
        """The first six to eight digits of a card, or empty."""
        if value and not is_card_bin(value):
            self.fail(field, "must be the first six to eight digits of the card, or empty")

    def done(self) -> None:
        """Raise what was collected, if anything."""
        if self._unlisted:
            self.violations.append(Violation("(request)", f"has {self._unlisted:,} more faults"))
        if self.violations:
            raise Invalid(self.violations)


def is_country(value: str) -> bool:
    """Whether it has the form of a country code: two capital letters."""
    return len(value) == 2 and value.isascii() and value.isalpha() and value.isupper()


def is_email(value: str) -> bool:
    """Whether there is an @ with something on either side; the length is another matter."""
    return 0 < value.find("@") < len(value) - 1


def is_card_bin(value: str) -> bool:
    """Whether it can be the beginning of a card number: six to eight digits."""
    return 6 <= len(value) <= 8 and value.isascii() and value.isdigit()


def is_ip_address(value: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    # The C library's reading: `ipaddress` builds an object, which costs ten times as much on every order.
    family = AF_INET6 if ":" in value else AF_INET
    try:
        inet_pton(family, value)
    except (OSError, ValueError):
        return False
    return True


def check_key(key: str) -> None:
    """An idempotency key: 1 to 255 printable ASCII characters. Raises Invalid."""
    if not key:
        raise Invalid.field(
            "idempotency_key",
            "is required: metadata 'idempotency-key' on a single call, a field of each batch item",
        )
    if len(key) > KEY_LENGTH_MAX or not key.isascii() or not key.isprintable():
        raise Invalid.field("idempotency_key", f"must be 1 to {KEY_LENGTH_MAX} printable ASCII characters")


def page_size(requested: int) -> int:
    """The page size to use: 0 means the default. Raises Invalid."""
    if requested == 0:
        return PAGE_SIZE_DEFAULT
    if not 1 <= requested <= PAGE_SIZE_MAX:
        raise Invalid.field(
            "page_size", f"is {requested}; it must be from 1 to {PAGE_SIZE_MAX}, or 0 for the default"
        )
    return requested


def passes_luhn(number: str) -> bool:
    """Whether the check digit of a card number is right (ISO/IEC 7812-1): every second digit from the right counts
    double, and the digits of the sum of all end in 0. `number` consists of digits."""
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    digits = [int(digit) for digit in reversed(number)]
    return (sum(digits[::2]) + sum(doubled[digit] for digit in digits[1::2])) % 10 == 0
