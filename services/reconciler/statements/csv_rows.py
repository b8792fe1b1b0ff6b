"""Reads a bank's CSV file through a column map, as a stream. Pure.

The heading is searched for below whatever the bank writes first. A file proves that it is whole by rows that are its
opening and closing balance, or by a balance behind every line; a layout that has neither has to say so in its map.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from functools import lru_cache
from typing import BinaryIO

from services.reconciler.domain.statement import Closed, Event, Line, Opened, Refusal
from services.reconciler.statements.columns import ColumnMap, fold
from services.reconciler.statements.exact import decimals, minor_units, quoted
from services.reconciler.statements.text_lines import Rewound, text_lines

HEADING_LINES_MAX = 60
"""How many lines may stand above the heading."""
REVERSED_ROWS_MAX = 200_000
"""Most rows of a file whose newest row comes first: it is held in memory, to be turned round."""

Row = tuple[int, list[str]]
"""Where a row ends in the file, from 1, and its cells."""


def read_csv(stream: BinaryIO | Rewound, *, name: str, column_map: ColumnMap) -> Iterator[Event]:
    """The events of a CSV file of one layout. Raises Refusal."""
    lines = text_lines(stream)
    skipped, positions = _heading(lines, column_map)
    rows = _rows(lines, skipped, column_map)
    yield from Table(name, column_map, positions).read(rows)


def heading_positions(text: str, column_map: ColumnMap) -> dict[str, int] | None:
    """Where each column of a layout stands, if `text` is its heading."""
    try:
        cells = next(csv.reader([text], delimiter=column_map.delimiter), [])
    except csv.Error:
        return None
    positions: dict[str, int] = {}
    for index, cell in enumerate(cells):
        positions.setdefault(fold(cell), index)
    return positions if column_map.headings() <= positions.keys() else None


def _heading(lines: Iterator[tuple[int, str]], column_map: ColumnMap) -> tuple[int, dict[str, int]]:
    for number, text in lines:
        positions = heading_positions(text, column_map)
        if positions is not None:
            return number, positions
        if number >= HEADING_LINES_MAX:
            break
    wanted = ", ".join([*column_map.columns.values(), *column_map.text])
    raise Refusal(
        1, "heading", f"is missing: no line has all columns of the map {column_map.name!r}: {wanted[:300]}"
    )


def _rows(lines: Iterator[tuple[int, str]], skipped: int, column_map: ColumnMap) -> Iterator[Row]:
    # A line break inside of quotes belongs to the cell, so the lines get theirs back.
    reader = csv.reader((f"{text}\n" for _, text in lines), delimiter=column_map.delimiter, strict=True)
    try:
        for cells in reader:
            if any(cells):
                yield skipped + reader.line_num, cells
    except csv.Error as error:
        raise Refusal(
            skipped + reader.line_num, "row", f"cannot be split into cells: {error}; check the quotes"
        ) from None


class Table:
    """The rows of a file, on their way to becoming sections."""

    def __init__(self, name: str, column_map: ColumnMap, positions: dict[str, int]) -> None:
        self._name = name
        self._map = column_map
        self._at = {meaning: positions[fold(heading)] for meaning, heading in column_map.columns.items()}
        self._texts = [positions[fold(heading)] for heading in column_map.text]
        self._width = 1 + max([*self._at.values(), *self._texts])
        self._amount_pattern = _amount_pattern(column_map)
        self._done: set[tuple[str, str, str]] = set()
        self._section: tuple[str, str, str] | None = None
        self._running = self._count = self._last = 0
        self._places = 0
        self._last_day: date | None = None

    def read(self, rows: Iterable[Row]) -> Iterator[Event]:
        if self._map.newest_first:
            rows = _reversed(rows)
        for number, cells in rows:
            if len(cells) < self._width:
                raise Refusal(
                    number,
                    "row",
                    f"has {len(cells)} cells, but the columns of the map reach to {self._width}",
                )
            yield from self._row(number, cells)
            self._last = number
        if self._section is None:
            return
        if "record" in self._at:
            raise Refusal(self._last, self._heading_of("record"), "no closing balance: the file is not whole")
        yield self._close()

    def _row(self, number: int, cells: list[str]) -> Iterator[Event]:
        section = self._section_of(number, cells)
        if "record" in self._at:
            word = cells[self._at["record"]].strip().upper()
            if word in self._map.opening_words:
                yield self._open_stated(number, cells, section)
                return
            if word in self._map.closing_words:
                yield self._close_stated(number, cells, section)
                return
            if self._section != section:
                raise Refusal(number, self._heading_of("record"), "a line stands outside of any statement")
        booking = self._day(number, cells, "booking_date")
        if self._section != section:
            if self._section is not None:
                yield self._close()
            yield self._open_derived(number, cells, section, booking)
        amount_minor = self._amount_minor(number, cells)
        self._count += 1
        self._running += amount_minor
        self._last_day = booking
        if "balance" in self._at:
            self._check_running(number, cells)
        yield self._line(number, cells, amount_minor, booking)

    def _line(self, number: int, cells: list[str], amount_minor: int, booking: date) -> Line:
        assert self._section is not None
        value = booking
        if "value_date" in self._at and cells[self._at["value_date"]].strip():
            value = self._day(number, cells, "value_date")
        text = " ".join("; ".join(cells[i] for i in self._texts if cells[i].strip()).split())
        return Line(
            self._count, booking, value, amount_minor, self._section[2], self._cell(cells, "reference"),
            self._cell(cells, "counterpart_reference"), self._cell(cells, "batch_reference"),
            self._cell(cells, "kind"), text[:500], False, number,
        )  # fmt: skip

    def _section_of(self, number: int, cells: list[str]) -> tuple[str, str, str]:
        at, fixed = self._at, self._map.fixed
        account = fixed.get("account") or "".join(cells[at["account"]].split())
        currency = fixed.get("currency") or cells[at["currency"]].strip().upper()
        if not account:
            raise Refusal(number, self._heading_of("account"), "is empty")
        identity = fixed.get("statement_id") or self._cell(cells, "statement_id")
        if not identity:
            # The file is the statement then; all its rows of an account are one.
            identity = self._section[0] if self._section is not None else self._name
        return identity, account, currency

    def _begin(self, number: int, section: tuple[str, str, str]) -> None:
        if section in self._done:
            raise Refusal(
                number,
                "row",
                f"belongs to {quoted(section[0])} of account {quoted(section[1])}, which has ended above: sort it",
            )
        try:
            self._places = decimals(section[2])
        except ValueError as error:
            raise Refusal(number, self._heading_of("currency"), str(error)) from None
        self._done.add(section)
        self._section = section
        self._count = 0

    def _open_stated(self, number: int, cells: list[str], section: tuple[str, str, str]) -> Opened:
        if self._section is not None:
            raise Refusal(
                number,
                self._heading_of("record"),
                f"an opening balance before {quoted(self._section[0])} has closed",
            )
        self._begin(number, section)
        self._running = self._amount_minor(number, cells)
        return Opened(*section, self._running, self._day(number, cells, "booking_date"), number)

    def _close_stated(self, number: int, cells: list[str], section: tuple[str, str, str]) -> Closed:
        if self._section != section:
            raise Refusal(
                number, self._heading_of("record"), "a closing balance of another statement, or of none"
            )
        closed = Closed(
            self._amount_minor(number, cells), self._day(number, cells, "booking_date"), self._count, number
        )
        self._section = None
        return closed

    def _open_derived(
        self, number: int, cells: list[str], section: tuple[str, str, str], booking: date
    ) -> Opened:
        self._begin(number, section)
        self._running = 0
        if "balance" in self._at:
            self._running = self._number(number, cells, "balance") - self._amount_minor(number, cells)
        return Opened(*section, self._running, booking, number)

    def _close(self) -> Closed:
        closed = Closed(self._running, self._last_day, self._count, self._last)
        self._section = None
        return closed

    def _check_running(self, number: int, cells: list[str]) -> None:
        stated = self._number(number, cells, "balance")
        if stated != self._running:
            raise Refusal(
                number,
                self._heading_of("balance"),
                f"is {stated:,} minor units, but the balance above and this row make {self._running:,}: a row is "
                "missing, or they run back in time (then say `newest_first = true` in the map)",
            )

    def _cell(self, cells: list[str], meaning: str) -> str:
        index = self._at.get(meaning)
        return cells[index].strip() if index is not None else ""

    def _heading_of(self, meaning: str) -> str:
        return f"column {self._map.columns.get(meaning, meaning)!r}"

    def _day(self, number: int, cells: list[str], meaning: str) -> date:
        try:
            return _parsed_day(cells[self._at[meaning]].strip(), self._map.date_format)
        except ValueError as error:
            raise Refusal(number, self._heading_of(meaning), str(error)) from None

    def _amount_minor(self, number: int, cells: list[str]) -> int:
        """The amount with its sign, by whatever the layout says it with."""
        if "amount" not in self._at:
            credit, debit = self._number(number, cells, "credit"), self._number(number, cells, "debit")
            if credit and debit:
                raise Refusal(number, self._heading_of("debit"), "there is a credit and a debit in one row")
            return abs(credit) - abs(debit)
        amount_minor = self._number(number, cells, "amount")
        if "sign" not in self._at:
            return amount_minor
        word = cells[self._at["sign"]].strip().upper()
        if word in self._map.debit_words:
            return -abs(amount_minor)
        if word in self._map.credit_words and amount_minor >= 0:
            return amount_minor
        raise Refusal(
            number,
            self._heading_of("sign"),
            f"{quoted(word)} is no word for a credit or a debit of this amount",
        )

    def _number(self, number: int, cells: list[str], meaning: str) -> int:
        text = cells[self._at[meaning]].strip()
        if not text and meaning in {"credit", "debit"}:
            return 0
        if not self._amount_pattern.fullmatch(text):
            raise Refusal(
                number,
                self._heading_of(meaning),
                f"{quoted(text)} is not an amount with {self._map.decimal!r} before its decimals",
            )
        if self._map.thousands:
            text = text.replace(self._map.thousands, "")
        if text.endswith("-"):
            text = f"-{text[:-1]}"
        try:
            return minor_units(text, self._places)
        except ValueError as error:
            raise Refusal(number, self._heading_of(meaning), str(error)) from None


def _amount_pattern(column_map: ColumnMap) -> re.Pattern[str]:
    """Digits, the thousands in groups of three where the layout groups them, and the one decimal mark."""
    whole = r"\d+"
    if column_map.thousands:
        whole = rf"(?:\d{{1,3}}(?:{re.escape(column_map.thousands)}\d{{3}})+|\d+)"
    return re.compile(rf"[+-]?{whole}?(?:{re.escape(column_map.decimal)}\d*)?-?", re.ASCII)


@lru_cache(maxsize=4096)
def _parsed_day(text: str, date_format: str) -> date:
    try:
        return datetime.strptime(text, date_format).date()  # noqa: DTZ007 - a day has no time zone
    except ValueError:
        raise ValueError(f"{quoted(text)} is not a date like {date_format}") from None


def _reversed(rows: Iterable[Row]) -> Iterator[Row]:
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if len(held) > REVERSED_ROWS_MAX:
            raise Refusal(
                row[0],
                "row",
                f"the newest of more than {REVERSED_ROWS_MAX:,} rows comes first; turn the file round",
            )
    return reversed(held)
