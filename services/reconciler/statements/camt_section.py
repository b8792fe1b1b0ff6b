"""One `Stmt` of a camt.053 document: what ends inside of it, and what events that makes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from typing import NamedTuple

from lxml import etree

from services.reconciler.domain.statement import Closed, Event, Opened, Refusal
from services.reconciler.statements.camt_entry import NAMES, Entry, first_leaf, line_of, text_of
from services.reconciler.statements.exact import currency_code, decimals, iso_date, minor_units, quoted

BALANCES_MAX = 1_000
"""Most balances of one statement. There are two to ten, and some for each day ahead."""


class Balance(NamedTuple):
    """A `Bal` of the statement."""

    code: str
    amount_minor: int
    currency: str
    day: date | None
    line: int


class Section:
    """A statement while it is read."""

    def __init__(self, ordinal: int, element: etree._Element) -> None:
        self.element = element
        self._path = f"Stmt[{ordinal}]"
        self._line = line_of(element)
        self._id = ""
        self._account = ""
        self._currency = ""
        self._places = 0
        self._balances: list[Balance] = []
        self._stated_entries: int | None = None
        self._entry: Entry | None = None
        self._entries = self._details = self._lines = 0
        self._opened: Opened | None = None
        self._unproved = ""

    def ended(self, name: str, element: etree._Element) -> tuple[bool, Iterable[Event]]:
        """What comes of the end of an element, and whether it is one that belongs where it stands."""
        if element is self.element:
            return True, self._close()
        parent = element.getparent()
        if name == "TxDtls":
            return self._detail(element, parent), ()
        if parent is not self.element:
            return False, ()
        if name == "Ntry":
            return True, self._end_entry(element)
        self._note_id()
        if name == "Acct":
            self._note_account(element)
        elif name == "Bal":
            if len(self._balances) >= BALANCES_MAX:
                raise self._refused(
                    "Bal", f"there are more than {BALANCES_MAX:,} balances; a statement has some"
                )
            self._balances.append(self._balance(element))
        elif name == "TxsSummry":
            self._note_summary(element)
        return True, ()

    def _note_id(self) -> None:
        if not self._id:
            for child in self.element:
                if NAMES[child.tag] == "Id":
                    self._id = text_of(child)
                    return

    def _note_account(self, element: etree._Element) -> None:
        for child in element:
            name = NAMES[child.tag]
            if name == "Id":
                # A choice of IBAN, or of another number below Othr.
                leaves = [text_of(node) for node in child.iter() if NAMES[node.tag] in {"IBAN", "Id"}]
                self._account = "".join(next((leaf for leaf in leaves if leaf), "").split())
            elif name == "Ccy":
                self._currency = text_of(child)

    def _note_summary(self, element: etree._Element) -> None:
        for child in element:
            if NAMES[child.tag] == "TtlNtries":
                for node in child:
                    text = text_of(node)
                    if NAMES[node.tag] == "NbOfNtries" and text.isdecimal() and len(text) <= 15:
                        self._stated_entries = int(text)

    def _balance(self, element: etree._Element) -> Balance:
        path, line = f"{self._path}/Bal[{len(self._balances) + 1}]", line_of(element)
        code = direction = text = currency = ""
        day: date | None = None
        for child in element:
            name = NAMES[child.tag]
            try:
                if name == "Tp":
                    code = next((text_of(n) for n in child.iter() if NAMES[n.tag] in {"Cd", "Prtry"}), "")
                elif name == "Amt":
                    text, currency = text_of(child), currency_code(child.get("Ccy", ""))
                elif name == "CdtDbtInd":
                    direction = text_of(child)
                elif name == "Dt":
                    day = iso_date(first_leaf(child))
            except ValueError as error:
                raise Refusal(line, f"{path}/{name}", str(error)) from None
        if not currency:
            raise Refusal(line, f"{path}/Amt", "is missing")
        if direction not in {"CRDT", "DBIT"}:
            raise Refusal(line, f"{path}/CdtDbtInd", f"is {quoted(direction)}; it has to be CRDT or DBIT")
        try:
            amount_minor = minor_units(text, decimals(currency))
        except ValueError as error:
            raise Refusal(line, f"{path}/Amt", str(error)) from None
        return Balance(code, amount_minor if direction == "CRDT" else -amount_minor, currency, day, line)

    def _detail(self, element: etree._Element, parent: etree._Element | None) -> bool:
        above = parent.getparent() if parent is not None and NAMES[parent.tag] == "NtryDtls" else parent
        if above is None or NAMES[above.tag] != "Ntry" or above.getparent() is not self.element:
            return False
        # What stands before is let go of together with this element: note it first.
        self._current_entry().note(above, until=parent)
        self._current_entry().note_detail(element)
        return True

    def _current_entry(self) -> Entry:
        if self._entry is None:
            self._entries += 1
            self._entry = Entry(f"{self._path}/Ntry[{self._entries}]")
        return self._entry

    def _end_entry(self, element: etree._Element) -> Iterator[Event]:
        entry = self._current_entry()
        entry.note(element)
        self._entry = None
        if self._opened is None:
            yield self._open()
        self._details += len(entry.details) or 1
        fallback = self._opened.opening_date if self._opened is not None else None
        for line in entry.lines(self._currency, self._places, fallback, self._lines + 1):
            self._lines += 1
            yield line

    def _open(self) -> Opened:
        self._note_id()
        if not self._id:
            raise self._refused("Id", "is missing; without it a statement cannot be told from another")
        if not self._account:
            raise self._refused("Acct/Id", "is missing; there is no account")
        opening = self._opening_balance()
        currency = self._currency or (opening or self._balances[0]).currency
        if opening is None:
            self._unproved = f"cannot be checked: there is no opening balance (OPBD or PRCD), {self._found()}"
        elif currency != opening.currency:
            raise Refusal(
                opening.line,
                f"{self._path}/Bal[{opening.code}]/Amt@Ccy",
                f"is {opening.currency}, but the account is in {currency}",
            )
        self._currency, self._places = currency, decimals(currency)
        amount_minor, day = (opening.amount_minor, opening.day) if opening else (0, None)
        self._opened = Opened(self._id, self._account, currency, amount_minor, day, self._line)
        return self._opened

    def _opening_balance(self) -> Balance | None:
        """The booked balance at the beginning: OPBD; what the day before closed with; on a later page, the interim
        one."""
        if not self._balances:
            raise self._refused("Bal", "is missing; there is no balance at all before the entries")
        for code in ("OPBD", "PRCD"):
            found = [b for b in self._balances if b.code == code]
            if found:
                return min(found, key=lambda b: b.day or date.max)
        interim = [b for b in self._balances if b.code == "ITBD"]
        if len(interim) > 1 or (interim and any(b.code == "CLBD" for b in self._balances)):
            return interim[0]
        return None

    def _closing_balance(self) -> Balance | None:
        """The booked balance at the end: CLBD; on a page that is not the last, the interim one."""
        found = [b for b in self._balances if b.code == "CLBD"]
        if found:
            return max(reversed(found), key=lambda b: b.day or date.min)
        return next((b for b in reversed(self._balances) if b.code == "ITBD"), None)

    def _close(self) -> Iterator[Event]:
        if self._opened is None:
            yield self._open()
        if self._stated_entries not in {None, self._entries, self._details}:
            raise self._refused(
                "TxsSummry/TtlNtries/NbOfNtries",
                f"is {self._stated_entries:,}, but the statement has {self._entries:,} entries",
            )
        closing = self._closing_balance()
        if closing is None:
            why = self._unproved or f"is missing: there is no CLBD, {self._found()}"
            yield Closed(0, None, self._lines, self._line, why)
            return
        if closing.currency != self._currency:
            self._unproved = f"is in {closing.currency}, but the statement opens in {self._currency}"
        yield Closed(closing.amount_minor, closing.day, self._lines, closing.line, self._unproved)

    def _found(self) -> str:
        codes = sorted({b.code[:10] for b in self._balances})
        return f"only {', '.join(codes)}"

    def _refused(self, name: str, reason: str) -> Refusal:
        return Refusal(self._line, f"{self._path}/{name}", reason)
