"""Cuts an export file into rows, losing no line: each line of the file is accounted for.

A line is header, blank, the first line of a row, or the continuation of one (a quoted field may contain line
breaks). Rows that are not well-formed CSV become `BrokenRow`s with the line number, and reading goes on with
the next line: a stray quotation mark costs one row, not the rest of the file.

Text is UTF-8 with or without a byte order mark. A line that is not UTF-8 is read as Windows-1252, the usual
case for exports with a pound sign in a description; UTF-16 is recognized by its byte order mark.
"""

import codecs
import csv
from dataclasses import dataclass, field

COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
REQUIRED_COLUMNS = ("InvoiceNo", "StockCode", "Quantity", "UnitPrice", "Country")

# The same export exists with a second edition of the headings: "Invoice", "Price", "Customer ID".
_COLUMN_BY_HEADING = {column.casefold(): column for column in COLUMNS} | {
    "invoice": "InvoiceNo",
    "price": "UnitPrice",
}

LINES_PER_ROW_MAX = 20
"""A row spreads over at most this many lines; a quotation mark still open after them is a stray one."""

FILE_BYTES_MAX = 512 * 1024 * 1024
"""The whole file is held in memory."""

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class ExportError(Exception):
    """The file as a whole is not an invoice export."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row with as many fields as the header has columns."""

    line: int
    """Number of its first line in the file; the header usually stands in line 1."""
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """Text that is not a row of this file."""

    line: int
    reason: str
    """WRONG_COLUMN_COUNT or BROKEN_QUOTING."""
    detail: str
    fields: tuple[str, ...]
    """What could be read; empty when nothing could."""


@dataclass
class RowReading:
    """All rows of a file, and what became of each of its lines.

    lines = blank_lines + 1 (the header) + continuation_lines + number of rows.
    """

    lines: int = 0
    blank_lines: int = 0
    continuation_lines: int = 0
    lines_not_utf8: int = 0
    columns: tuple[str, ...] = ()
    """Names of the columns in the order of the file; "" for a column of no interest."""
    rows: list[Row | BrokenRow] = field(default_factory=list)


def read_rows(data: bytes) -> RowReading:
    """Cut a file into rows. ExportError when it is empty, too large, or its header lacks a column."""
    lines, lines_not_utf8 = _decode(data)
    reading = RowReading(lines=len(lines), lines_not_utf8=lines_not_utf8)
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            reading.blank_lines += 1
            at += 1
        elif not reading.columns:
            reading.columns = _read_header(lines[at], at + 1)
            at += 1
        else:
            row, used = _read_row(lines, at, len(reading.columns))
            reading.rows.append(row)
            reading.continuation_lines += used - 1
            at += used
    if not reading.columns:
        raise ExportError("the file is empty")
    return reading


def _decode(data: bytes) -> tuple[list[str], int]:
    """The lines of a file as text, and how many of them were not UTF-8."""
    if len(data) > FILE_BYTES_MAX:
        raise ExportError(f"the file has {len(data):,} bytes; {FILE_BYTES_MAX:,} is the most")
    if data.startswith(UTF16_MARKS):
        data = data.decode("utf-16", errors="replace").encode()
    lines, lines_not_utf8 = [], 0
    for raw in data.removeprefix(codecs.BOM_UTF8).splitlines():  # bytes split at CR, LF and CRLF only
        try:
            lines.append(raw.decode())
        except UnicodeDecodeError:
            lines_not_utf8 += 1
            lines.append(raw.decode("cp1252", errors="replace"))
    return lines, lines_not_utf8


def _read_header(line: str, number: int) -> tuple[str, ...]:
    headings = _split(line) or ()
    columns = tuple(
        _COLUMN_BY_HEADING.get("".join(heading.split()).replace("_", "").casefold(), "")
        for heading in headings
    )
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        raise ExportError(
            f"line {number} is not the expected header: it lacks {', '.join(missing)}"
            f" (expected {','.join(COLUMNS)})"
        )
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise ExportError(f"line {number} names the column {twice[0]} twice")
    return columns


def _read_row(lines: list[str], at: int, width: int) -> tuple[Row | BrokenRow, int]:
    """The row that begins at index `at`, and how many lines it takes."""
    fields = _split(lines[at])
    if fields is not None:
        if len(fields) == width:
            return Row(at + 1, fields), 1
        detail = f"{len(fields)} columns where {width} are expected"
        return BrokenRow(at + 1, "WRONG_COLUMN_COUNT", detail, fields), 1
    if lines[at].count('"') % 2 == 1:  # a quotation mark is open at the end of the line
        for end in range(at + 1, min(at + LINES_PER_ROW_MAX, len(lines))):
            fields = _split("\n".join(lines[at : end + 1]))
            if fields is not None and len(fields) == width:
                return Row(at + 1, fields), end + 1 - at
            if len(_split(lines[end]) or ()) == width:
                break  # a row in its own right: it must not vanish into the open quotation
    return BrokenRow(at + 1, "BROKEN_QUOTING", "quotation marks do not match", ()), 1


def _split(text: str) -> tuple[str, ...] | None:
    """The fields of one row; None when its quotation marks do not match."""
    if '"' not in text:
        return tuple(text.split(","))
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error:
        return None
    return tuple(rows[0]) if len(rows) == 1 else None
