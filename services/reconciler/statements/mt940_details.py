"""What the field `:86:` of an MT940 message says about a statement line. Pure.

Three ways of writing it are known: the German one (`166?00GUTSCHRIFT?20EREF+…?32NAME`), read by the `mt-940` package;
the Dutch and SWIFT one (`/EREF/…/REMI/…`); and free text. SEPA's own marks (`EREF+…`) are found in free text as well.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from mt940.models import Transactions
from mt940.options import Options
from mt940.processors import transaction_details_post_processor
from mt940.tags import Tags


class Details(NamedTuple):
    """All may be empty."""

    reference: str
    bank_reference: str
    batch_reference: str
    text: str


_GERMAN = re.compile(r"\d{3}\?\d{2}")
_SLASHED = re.compile(
    r"/(EREF|PREF|SREF|KREF|IREF|MARF|CSID|TRTP|TRCD|RTRN|REMI|IBAN|BIC|NAME|BENM|ORDP|ISDT|PURP|ULTC|ULTD|ADDR|ID|SVCL|CNTP|"
    r"USTD|STRD|OCMT)(?=/)"
)
_SEPA = re.compile(r"\bEREF[+:] ?(\S{1,35})")
_CONTEXT = Transactions(options=Options.all())
_DETAILS = Tags.TRANSACTION_DETAILS.value
_NOT_PROVIDED = "NOTPROVIDED"


def read_details(text: str) -> Details:
    """What a field says, its lines still apart."""
    # Lines end wherever they are full, in the middle of words: they are joined as they are.
    joined = "".join(text.split("\n"))
    if _GERMAN.match(joined):
        return _german(text)
    if joined.lstrip()[:1] == "/" and _SLASHED.match(joined.lstrip()):
        return _slashed(joined.lstrip())
    match = _SEPA.search(joined)
    words = " ".join((joined if match else " ".join(text.split("\n"))).split())
    return Details(_provided(match[1]) if match else "", "", "", words)


def _german(text: str) -> Details:
    said: dict[str, Any] = transaction_details_post_processor(
        _CONTEXT, _DETAILS, {"transaction_details": text}, {"transaction_details": text}
    )
    words = (said.get("posting_text"), said.get("applicant_name"), said.get("purpose"))
    return Details(
        _provided(said.get("end_to_end_reference") or ""),
        "",
        said.get("customer_reference") or "",
        " ".join("; ".join(word.strip() for word in words if word).split()),
    )


def _slashed(text: str) -> Details:
    marks = list(_SLASHED.finditer(text))
    said: dict[str, str] = {}
    words: list[str] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        value = " ".join(text[mark.end() + 1 : following.start() if following else None].split())
        said.setdefault(mark[1], value)
        if value and mark[1] in {"REMI", "NAME", "USTD"}:
            words.append(value)
    return Details(
        _provided(said.get("EREF", "")),
        said.get("SREF") or said.get("IREF", ""),
        said.get("PREF", ""),
        "; ".join(words),
    )


def _provided(reference: str) -> str:
    reference = reference.strip()
    return "" if reference.upper() == _NOT_PROVIDED else reference
