"""A statement of an account, as values, whatever the format it is written in. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from enum import StrEnum
from typing import NamedTuple, Protocol

REFERENCE_LENGTH_MAX = 120
"""Longest reference that all formats can carry, camt.053's 140 characters less the mark before it."""
ACCOUNT_LENGTH_MAX = 34
CHUNK_BYTES = 64 * 1024

_REFERENCE = re.compile(r"[A-Za-z0-9._:+](?:[A-Za-z0-9._:+/-]*[A-Za-z0-9._:+-])?")
_MARK = re.compile(r"/[A-Z]{2,4}(?:/|$)|[:-]{2}")


class Kind(StrEnum):
    """What was booked."""

    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    SETTLEMENT = "SETTLEMENT"
    PAYOUT = "PAYOUT"
    OTHER = "OTHER"


class Part(NamedTuple):
    """One operation, alone or in a settlement."""

    kind: Kind
    amount_minor: int
    """Net of the fee: what the account grows by; negative for what leaves it."""
    fee_minor: int
    """What the bank has kept of it, zero or more."""
    reference: str
    """The customer's own, "pay_…/capture/3"; empty when a statement cannot carry it."""
    bank_reference: str
    """The bank's, "cap_…"."""
    batch_reference: str
    """The settlement that it belongs to, "batch_…"; may be empty."""
    text: str


class Entry(NamedTuple):
    """One booking: a part alone, or a settlement with its parts, whose amounts add up to its own."""

    whole: Part
    booked_on: date
    value_on: date
    parts: tuple[Part, ...] = ()


class Head(NamedTuple):
    """What has to be known before the first entry is written."""

    number: int
    """Of the statement within the year: the day's number."""
    account: str
    currency: str
    opened_on: date
    """The day whose closing balance is the opening one."""
    opening_minor: int
    day: date
    closing_minor: int

    @property
    def statement_id(self) -> str:
        """Unique among all statements of the bank."""
        return f"{self.account[:18]}-{self.currency}-{self.day:%Y%m%d}"


class Writer(Protocol):
    """Writes one file: `begin_file`, then for each statement `begin`, its entries and `end`, then `end_file`. Every
    method returns the bytes that come next."""

    def begin_file(self, day: date) -> bytes: ...

    def begin(self, head: Head) -> bytes: ...

    def entry(self, entry: Entry) -> bytes: ...

    def end(self) -> bytes: ...

    def end_file(self) -> bytes: ...


def is_printable_reference(text: str) -> bool:
    """Whether every format can carry a reference as it is: BAI2 has no commas, and MT940 marks its fields with
    slashes and colons and its end with a hyphen."""
    return (
        len(text) <= REFERENCE_LENGTH_MAX
        and _REFERENCE.fullmatch(text) is not None
        and _MARK.search(text) is None
    )


def account_number(merchant_id: str, currency: str) -> str:
    """The bank's number of a merchant's account in a currency, 34 characters at most."""
    name = re.sub(r"[^A-Za-z0-9.]", "", merchant_id)
    plain = f"{name}.{currency}"
    if name == merchant_id and len(plain) <= ACCOUNT_LENGTH_MAX:
        return plain
    # Two merchants must not share a number because their names look alike.
    return f"{name[:20]}.{_checksum(merchant_id)}.{currency}"


def _checksum(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode()).hexdigest()[:8]


def decimal_text(amount_minor: int, places: int, mark: str) -> str:
    """The amount without its sign: 1234 is "12.34". With `mark` "," at least the mark is there, as SWIFT wants it."""
    digits = str(abs(amount_minor)).rjust(places + 1, "0")
    if places == 0:
        return f"{digits}," if mark == "," else digits
    return f"{digits[:-places]}{mark}{digits[-places:]}"


def one_line(text: str, length_max: int) -> str:
    """Text with single spaces, nothing that does not print, and no more than `length_max` characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:length_max].strip()


def write(writer: Writer, day: date, statements: Iterable[tuple[Head, Iterable[Entry]]]) -> Iterator[bytes]:
    """A whole file, in chunks of some 64 KiB."""
    buffer = [writer.begin_file(day)]
    size = len(buffer[0])
    for piece in _pieces(writer, statements):
        buffer.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            yield b"".join(buffer)
            buffer, size = [], 0
    yield b"".join(buffer)


def _pieces(writer: Writer, statements: Iterable[tuple[Head, Iterable[Entry]]]) -> Iterator[bytes]:
    for head, entries in statements:
        yield writer.begin(head)
        for entry in entries:
            yield writer.entry(entry)
        yield writer.end()
    yield writer.end_file()
