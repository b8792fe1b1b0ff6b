"""Which format a file has, by its content, and the reader for it. The one entry to this folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from io import BytesIO
from itertools import islice
from typing import BinaryIO

from services.reconciler.domain.statement import Event, Refusal
from services.reconciler.statements.bai2 import read_bai2
from services.reconciler.statements.camt import read_camt
from services.reconciler.statements.columns import ColumnMap, parse_map
from services.reconciler.statements.csv_rows import HEADING_LINES_MAX, heading_positions, read_csv
from services.reconciler.statements.exact import quoted
from services.reconciler.statements.mt940 import read_mt940
from services.reconciler.statements.text_lines import Rewound, peek, text_lines, utf16_codec

HEAD_BYTES = 64 * 1024
"""How much of a file is looked at to tell its format."""

FORMATS = ("camt053", "mt940", "bai2", "csv")

_MT940 = re.compile(r"^\x01?(?:\{\d:.*)?:(?:20|25|28C?|60[FM]?|61|62[FM]?):", re.MULTILINE)
_BAI2 = re.compile(r"\A\s*01,[^\n]*")
_CONTAINERS = (
    (b"PK\x03\x04", "a ZIP archive (or an Excel file); unpack it and give the statement inside"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"%PDF", "a PDF; ask the bank for camt.053, MT940, BAI2 or CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file; save it as CSV"),
)


def read_statement(
    stream: BinaryIO, *, name: str, format_name: str = "", maps: Sequence[ColumnMap] = ()
) -> Iterator[Event]:
    """The events of a file of any format; `format_name`, one of `FORMATS`, where it should not be told by content.
    `maps` are a user's column maps, tried before the ones that come with paymesh. Raises Refusal."""
    head, rewound = peek(stream, HEAD_BYTES)
    if not head:
        raise Refusal(0, "file", "is empty")
    found = format_name or detect(head)
    if found == "camt053":
        return read_camt(rewound, name=name)
    if found == "mt940":
        return read_mt940(rewound, name=name)
    if found == "bai2":
        return read_bai2(rewound, name=name)
    return read_csv(rewound, name=name, column_map=_map_for(head, [*maps, *known_maps()]))


def detect(head: bytes) -> str:
    """One of `FORMATS`, by the first bytes of a file; CSV is what is none of the others. Raises Refusal."""
    for magic, what in _CONTAINERS:
        if head.startswith(magic):
            raise Refusal(0, "file", f"is {what}")
    text = _text(head)
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        return "camt053"
    if _BAI2.match(text.lstrip("\ufeff")):
        return "bai2"
    if _MT940.search(text.replace("\r", "\n").lstrip("\ufeff")):
        return "mt940"
    return "csv"


@cache
def known_maps() -> tuple[ColumnMap, ...]:
    """The column maps that come with paymesh."""
    folder = resources.files(__package__) / "maps"
    return tuple(
        parse_map(entry.name, entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    )


def _text(head: bytes) -> str:
    return head.decode(utf16_codec(head) or "utf-8", "replace")


def _map_for(head: bytes, maps: Sequence[ColumnMap]) -> ColumnMap:
    # Read as the reader will read them, whatever the encoding.
    lines = [text for _, text in islice(text_lines(Rewound(head, BytesIO())), HEADING_LINES_MAX)]
    for column_map in maps:
        if any(heading_positions(line, column_map) is not None for line in lines):
            return column_map
    names = ", ".join(repr(column_map.name) for column_map in maps)
    raise Refusal(
        1,
        "file",
        f"is no camt.053, MT940 or BAI2, and no line has the columns of a known CSV layout ({names}); it begins with "
        f"{quoted(lines[0] if lines else '')}. Describe its columns in a column map",
    )
