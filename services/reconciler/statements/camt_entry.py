"""One `Ntry` of a camt.053 document: what it says, and the lines that it is. Pure.

An entry is one booking. Where it lists transactions that add up to it, each of them becomes a line, and charges that
the entry states become one more: a batch can then be matched payment by payment. Otherwise the entry is one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import NamedTuple, cast

from lxml import etree

from services.reconciler.domain.statement import Line, Refusal
from services.reconciler.statements.exact import iso_date, minor_units, quoted

DETAILS_MAX = 200_000
"""Most transactions of one entry. They are held until it ends, for only then it is known whether they add up to it."""
TEXT_LENGTH_MAX = 500
"""Longest text for people that a line keeps."""
CHARGES = "CHRG"
"""Kind of the line that is an entry's charges."""

_NOT_PROVIDED = {"NOTPROVIDED", "NOT PROVIDED", "NOTPROVIDED."}
_MARKED = re.compile(r"/([EPS]REF)/(\S+)")
_BOOKED = {"", "BOOK", "BOOKED"}


class Amount(NamedTuple):
    """An `Amt` as it stands in the file."""

    text: str
    currency: str


class Detail(NamedTuple):
    """What one `TxDtls` says."""

    reference: str
    bank_reference: str
    batch_reference: str
    amount: Amount | None
    direction: str
    kind: str
    text: str
    line: int


class _Names(dict[object, str]):
    """Tag, "{namespace}Name", to local name. A look-up that misses costs a call, and one that hits does not; the names
    of a million elements that nobody knows are not kept."""

    def __missing__(self, tag: object) -> str:
        # What has no text for a tag is an entity that was not resolved, or a comment.
        name = tag.rpartition("}")[2] if isinstance(tag, str) else ""
        if len(self) < NAMES_MAX:
            self[tag] = name
        return name


NAMES_MAX = 2_000
"""Tags whose local names are kept: a version of the format has some hundred."""
NAMES = _Names()


def line_of(element: etree._Element) -> int:
    """Where an element begins, from 1; 0 where libxml2 does not know."""
    line: int | None = cast("int | None", element.sourceline)
    return line or 0


def text_of(element: etree._Element) -> str:
    """The text of a leaf, without the white space around it."""
    return (element.text or "").strip()


def first_leaf(element: etree._Element) -> str:
    """The text of an element or of its first child: of a choice such as Dt or DtTm, Cd or Prtry."""
    return text_of(element) or (text_of(element[0]) if len(element) else "")


class Entry:
    """An entry while it is read. Its parts are let go of as they end, so what they say is noted here."""

    __slots__ = ("charges", "details", "fields", "line", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.line = 0
        self.fields: dict[str, str] = {}
        self.charges: list[Amount] = []
        self.details: list[Detail] = []

    def note(self, element: etree._Element, until: etree._Element | None = None) -> None:
        """Takes down what the entry says, up to the part `until`; it may be called again when there is more. libxml2 is
        ahead of us by a chunk: what stands behind `until` may be thousands of transactions, and comes in its turn."""
        fields = self.fields
        self.line = line_of(element)
        for child in element:
            name = NAMES[child.tag]
            if name in _LEAVES:
                fields[name] = text_of(child)
            elif name == "Amt":
                fields["Amt"] = text_of(child)
                fields["Ccy"] = child.get("Ccy", "")
            elif name in _CHOICES:
                fields[name] = first_leaf(child)
            elif name == "BkTxCd":
                fields["BkTxCd"] = transaction_code(child)
            elif name == "NtryDtls":
                _note_batch(child, fields)
            elif name == "Chrgs":
                self.charges = _charges(child)
            if child is until:
                return

    def note_detail(self, element: etree._Element) -> None:
        if len(self.details) >= DETAILS_MAX:
            raise Refusal(
                line_of(element),
                f"{self.path}/NtryDtls",
                f"has more than {DETAILS_MAX:,} transactions; ask the bank to book the batch in parts",
            )
        self.details.append(_detail(element))

    def lines(self, currency: str, places: int, fallback: date | None, number: int) -> Iterator[Line]:
        """The lines of a booked entry, numbered from `number`; none for what is only announced. `fallback` is the day
        of the statement, for entries without one."""
        fields = self.fields
        if fields.get("Sts", "").upper() not in _BOOKED:
            return
        amount_minor = self._amount_minor(currency, places)
        booking = self._date("BookgDt") or self._date("ValDt") or fallback
        if booking is None:
            raise Refusal(self.line, f"{self.path}/BookgDt", "is missing, and there is no other date")
        value = self._date("ValDt") or booking
        reversal = fields.get("RvslInd") in {"true", "1"}
        kind = fields.get("BkTxCd", "")
        bank_reference = fields.get("AcctSvcrRef") or fields.get("NtryRef", "")
        parts = self._parts(amount_minor, currency, places)
        if parts is None:
            whole = self._whole(bank_reference)
            yield Line(
                number, booking, value, amount_minor, currency, whole.reference, whole.bank_reference,
                whole.batch_reference, whole.kind or kind, whole.text, reversal, self.line,
            )  # fmt: skip
            return
        batch = fields.get("Btch") or bank_reference
        for part_minor, part in parts:
            yield Line(
                number, booking, value, part_minor, currency, part.reference, part.bank_reference,
                part.batch_reference or batch, part.kind or kind, part.text, reversal, part.line,
            )  # fmt: skip
            number += 1

    def _amount_minor(self, currency: str, places: int) -> int:
        fields = self.fields
        if "Amt" not in fields:
            raise Refusal(self.line, f"{self.path}/Amt", "is missing")
        if fields["Ccy"] != currency:
            raise Refusal(
                self.line,
                f"{self.path}/Amt@Ccy",
                f"is {quoted(fields['Ccy'])}, but the account is in {currency}",
            )
        try:
            amount_minor = minor_units(fields["Amt"], places)
        except ValueError as error:
            raise Refusal(self.line, f"{self.path}/Amt", str(error)) from None
        direction = fields.get("CdtDbtInd", "")
        if direction not in {"CRDT", "DBIT"}:
            raise Refusal(
                self.line, f"{self.path}/CdtDbtInd", f"is {quoted(direction)}; it has to be CRDT or DBIT"
            )
        return amount_minor if direction == "CRDT" else -amount_minor

    def _date(self, name: str) -> date | None:
        text = self.fields.get(name)
        if not text:
            return None
        try:
            return iso_date(text)
        except ValueError as error:
            raise Refusal(self.line, f"{self.path}/{name}", str(error)) from None

    def _whole(self, bank_reference: str) -> Detail:
        """What to say of an entry that is one line: what its only transaction says, or what all of them share."""
        fields = self.fields
        info = fields.get("AddtlNtryInf", "")
        if len(self.details) == 1:
            only = self.details[0]
            return only._replace(
                bank_reference=only.bank_reference or bank_reference,
                batch_reference=only.batch_reference or fields.get("Btch", ""),
                text=only.text or info[:TEXT_LENGTH_MAX],
            )
        batch = fields.get("Btch", "") or _shared(self.details)
        text = info or f"{len(self.details):,} transactions" if self.details else info
        return Detail("", bank_reference, batch, None, "", "", text[:TEXT_LENGTH_MAX], self.line)

    def _parts(self, amount_minor: int, currency: str, places: int) -> list[tuple[int, Detail]] | None:
        """The transactions with their amounts, if there are several and they, less stated charges, are the entry."""
        if len(self.details) < 2:
            return None
        parts = []
        total_minor = 0
        for detail in self.details:
            part_minor = self._part_minor(detail, amount_minor, currency, places)
            if part_minor is None:
                return None
            parts.append((part_minor, detail))
            total_minor += part_minor
        rest_minor = amount_minor - total_minor
        if rest_minor:
            if -rest_minor != self._charges_minor(currency, places):
                return None
            parts.append((rest_minor, Detail("", "", "", None, "", CHARGES, "charges", self.line)))
        return parts

    def _part_minor(self, detail: Detail, amount_minor: int, currency: str, places: int) -> int | None:
        if detail.amount is None or detail.amount.currency != currency:
            return None
        try:
            part_minor = minor_units(detail.amount.text, places)
        except ValueError:
            return None
        if detail.direction:
            return part_minor if detail.direction == "CRDT" else -part_minor
        return part_minor if amount_minor >= 0 else -part_minor

    def _charges_minor(self, currency: str, places: int) -> int | None:
        """What the entry says was kept, as a positive number; None where it cannot be read."""
        try:
            return sum(minor_units(a.text, places) for a in self.charges if a.currency == currency)
        except ValueError:
            return None


_LEAVES = {"NtryRef", "CdtDbtInd", "RvslInd", "AcctSvcrRef", "AddtlNtryInf"}
_CHOICES = {"Sts", "BookgDt", "ValDt"}


def transaction_code(element: etree._Element) -> str:
    """The code of a `BkTxCd`: "PMNT.RCDT.ESCT" of the domain, else the bank's own."""
    own = ""
    for child in element:
        if NAMES[child.tag] == "Domn":
            # Cd, and Fmly with Cd and SubFmlyCd.
            found = [text_of(leaf) for node in child for leaf in (node if len(node) else (node,))]
            code = ".".join([part for part in found if part])
            if code:
                return code
        elif not own:
            own = first_leaf(child)
    return own


def _note_batch(element: etree._Element, fields: dict[str, str]) -> None:
    for child in element:
        name = NAMES[child.tag]
        if name == "TxDtls":
            return
        if name == "Btch":
            said = {NAMES[node.tag]: text_of(node) for node in child}
            fields.setdefault("Btch", said.get("PmtInfId") or said.get("MsgId", ""))


def _charges(element: etree._Element) -> list[Amount]:
    """The total where it is stated, else each record that is not already in the amount; version 2 has bare records."""
    total, records = None, []
    for node in element.iter():
        if NAMES[node.tag] == "TtlChrgsAndTaxAmt":
            total = Amount(text_of(node), node.get("Ccy", ""))
        elif NAMES[node.tag] == "Amt" and node.getparent() is not None:
            records.append(Amount(text_of(node), node.get("Ccy", "")))
    return [total] if total is not None else records


def _detail(element: etree._Element) -> Detail:
    references: dict[str, str] = {}
    amount: Amount | None = None
    direction = kind = ""
    texts: list[str] = []
    for child in element:
        name = NAMES[child.tag]
        if name == "Refs":
            for node in child:
                references.setdefault(NAMES[node.tag], text_of(node))
        elif name == "Amt":
            amount = Amount(text_of(child), child.get("Ccy", ""))
        elif name == "CdtDbtInd":
            direction = text_of(child)
        elif name == "AmtDtls":
            amount = amount or _transaction_amount(child)
        elif name == "BkTxCd":
            kind = transaction_code(child)
        elif name in _TEXTS:
            _TEXTS[name](child, texts, references)
    said = references.get
    reference = said("EndToEndId", "")
    if reference.upper() in _NOT_PROVIDED:
        reference = ""
    return Detail(
        reference or said("EREF") or said("InstrId") or said("creditor", ""),
        said("SREF") or said("AcctSvcrRef") or said("TxId", ""),
        said("PREF") or said("PmtInfId") or said("MsgId", ""),
        amount,
        direction,
        kind,
        "; ".join(texts)[:TEXT_LENGTH_MAX],
        line_of(element),
    )


def _transaction_amount(element: etree._Element) -> Amount | None:
    for child in element:
        if NAMES[child.tag] == "TxAmt":
            for node in child:
                if NAMES[node.tag] == "Amt":
                    return Amount(text_of(node), node.get("Ccy", ""))
    return None


def _note_remittance(element: etree._Element, texts: list[str], references: dict[str, str]) -> None:
    for node in element.iter():
        name = NAMES[node.tag]
        if name == "Ustrd" and (text := text_of(node)):
            if text[0] != "/" or not _note_marked(text, references):
                texts.append(text)
        elif name == "Ref":
            references.setdefault("creditor", text_of(node))


def _note_marked(text: str, references: dict[str, str]) -> bool:
    """References that are too long for their own elements, of 35 characters, stand in the text behind marks."""
    match = _MARKED.fullmatch(text)
    if match is not None:
        references.setdefault(match[1], match[2])
    return match is not None


def _note_parties(element: etree._Element, texts: list[str], _references: dict[str, str]) -> None:
    texts.extend(text for node in element.iter("{*}Nm") if (text := text_of(node)))


def _note_text(element: etree._Element, texts: list[str], _references: dict[str, str]) -> None:
    if text := text_of(element):
        texts.append(text)


_TEXTS: dict[str, Callable[[etree._Element, list[str], dict[str, str]], None]] = {
    "RmtInf": _note_remittance,
    "RltdPties": _note_parties,
    "AddtlTxInf": _note_text,
}


def _shared(details: list[Detail]) -> str:
    """The batch reference that all transactions have in common; empty when there is none."""
    shared = {detail.batch_reference for detail in details}
    return shared.pop() if len(shared) == 1 else ""
