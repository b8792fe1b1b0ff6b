"""Writes SWIFT MT940, one message a statement, however long. Pure.

References are at most 16 characters in `:61:`; they stand in `:86:` behind marks instead, as Dutch banks write them:
/EREF/ the customer's, /SREF/ the bank's, /PREF/ that of the settlement, and /REMI/ before the text.
"""

from __future__ import annotations

import re
from datetime import date

from sandbox.bank.statements.statement import Entry, Head, Kind, decimal_text, one_line
from services.kit.money import exponent

LINE_LENGTH_MAX = 65
TEXT_LENGTH_MAX = 100

_TYPES = {
    Kind.CAPTURE: "NTRF",
    Kind.REFUND: "NRTI",
    Kind.SETTLEMENT: "NTRF",
    Kind.PAYOUT: "NTRF",
    Kind.OTHER: "NMSC",
}
_FOREIGN = re.compile(r"[^A-Za-z0-9?:().,'+ -]")
"""SWIFT's own set less the slash, which marks the fields."""
_RUN = re.compile(r"([:-])[:-]+")


class Mt940Writer:
    """See `Writer`."""

    def __init__(self) -> None:
        self._places = 2
        self._closing = ""

    def begin_file(self, day: date) -> bytes:
        del day
        return b""

    def begin(self, head: Head) -> bytes:
        self._places = exponent(head.currency)
        self._closing = self._balance(head.closing_minor, head.day, head.currency)
        return _lines(
            "{1:F01PAYMGB2LAXXX0000000000}{2:O9402359"
            f"{head.day:%y%m%d}PAYMGB2LAXXX0000000000{head.day:%y%m%d}2359N}}{{4:",
            f":20:STMT{head.day:%y%m%d}",
            f":25:{head.account}",
            f":28C:{head.number}/1",
            f":60F:{self._balance(head.opening_minor, head.opened_on, head.currency)}",
        )

    def entry(self, entry: Entry) -> bytes:
        whole = entry.whole
        direction = "C" if whole.amount_minor >= 0 else "D"
        amount = decimal_text(whole.amount_minor, self._places, ",")
        return _lines(
            f":61:{entry.value_on:%y%m%d}{entry.booked_on:%m%d}{direction}{amount}{_TYPES[whole.kind]}NONREF",
            *_wrapped(f":86:{_details(entry)}"),
        )

    def end(self) -> bytes:
        return _lines(f":62F:{self._closing}", "-}")

    def end_file(self) -> bytes:
        return b""

    def _balance(self, amount_minor: int, day: date, currency: str) -> str:
        direction = "C" if amount_minor >= 0 else "D"
        return f"{direction}{day:%y%m%d}{currency}{decimal_text(amount_minor, self._places, ',')}"


def plain(text: str) -> str:
    """Text as SWIFT can carry it."""
    return one_line(_RUN.sub(r"\1", _FOREIGN.sub(".", one_line(text, TEXT_LENGTH_MAX))), TEXT_LENGTH_MAX)


def _details(entry: Entry) -> str:
    whole = entry.whole
    marked = "".join(
        f"/{mark}/{said}"
        for mark, said in (
            ("EREF", whole.reference),
            ("SREF", whole.bank_reference),
            ("PREF", whole.batch_reference),
        )
        if said
    )
    return f"{marked}/REMI/{plain(whole.text)}"


def _wrapped(text: str) -> list[str]:
    """Lines of at most 65 characters, of which none but the first begins with what a field or the end of a message
    begins with. There are never two such characters in a row, so that there is always a place to cut."""
    lines = []
    while len(text) > LINE_LENGTH_MAX:
        cut = LINE_LENGTH_MAX
        while text[cut] in ":-":
            cut -= 1
        lines.append(text[:cut])
        text = text[cut:]
    return [*lines, text]


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
