"""Statements and their parameters, in the form in which they travel to PostgreSQL. Pure.

A statement is written with names, `%(merchants)s::text[]`, and gets a dict. Sets travel as arrays, one per column, and
an order has well over a hundred array elements on its way through the mesh: encoding them takes a single pass in C
(`str.join`) where the driver's own dumpers take a Python call per element.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from struct import Struct
from typing import Any, NamedTuple

Params = Mapping[str, Any]
Row = tuple[Any, ...]

_NAME = re.compile(r"%\((\w+)\)s|%%")
_BYTEA_OID, _TEXT_OID = 17, 25
_ARRAY_HEADER = Struct(">iiiii")
"""Dimensions, whether there are nulls, type of the elements, their number, index of the first."""
_LENGTH = Struct(">i")

TEXT, BINARY = 0, 1
"""Formats of a parameter."""


class Statement(NamedTuple):
    """A statement as the server wants it."""

    text: bytes
    """With $1, $2 … in place of names."""
    names: tuple[str, ...]
    """What $1, $2 … stand for."""


@cache
def translate(sql: str) -> Statement:
    """Names become numbers; a name that is used twice travels once. Statements are constants of the program, so there
    are only so many to remember."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "%"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    text = _NAME.sub(number, sql)
    return Statement(text.encode(), tuple(names))


def encode(value: Any) -> tuple[bytes | None, int]:
    """A parameter and its format. Takes None, text, numbers, bytes, days, instants with a time zone, and lists of one
    kind.

    Lists of text are for `::text[]` only: some of them travel in binary form, which names the type of the elements.
    Raises ValueError for text with a NUL character, which PostgreSQL cannot store, and for an instant without a time
    zone, and TypeError for other types.
    """
    if isinstance(value, list):
        return _array(value)
    if value is None:
        return None, TEXT
    if isinstance(value, bytes):
        return value, BINARY
    return _without_nul(_text_of(type(value))(value)).encode(), TEXT


def _array(values: Sequence[Any]) -> tuple[bytes, int]:
    if not values:
        return b"{}", TEXT
    kind = type(values[0])
    nulls = None in values
    if nulls:
        kind = next((type(value) for value in values if value is not None), str)
    if issubclass(kind, bytes):
        return _binary_array(_BYTEA_OID, values), BINARY
    if issubclass(kind, str) and not nulls:
        return _text_array(values)
    text_of = _text_of(kind)
    if issubclass(kind, int | float) and not nulls:
        return f"{{{','.join(map(text_of, values))}}}".encode(), TEXT
    quoted = ["NULL" if value is None else f'"{_escaped(text_of(value))}"' for value in values]
    return _without_nul(f"{{{','.join(quoted)}}}").encode(), TEXT


def _text_array(values: Sequence[str]) -> tuple[bytes, int]:
    inner = _without_nul('","'.join(values))
    if "\\" in inner or inner.count('"') != 2 * (len(values) - 1):
        # JSON, mostly: long, and full of quotes that would have to be escaped here and parsed there.
        return _binary_array(_TEXT_OID, [value.encode() for value in values]), BINARY
    return f'{{"{inner}"}}'.encode(), TEXT


def _binary_array(oid: int, values: Sequence[bytes | None]) -> bytes:
    length = _LENGTH.pack
    parts = [_ARRAY_HEADER.pack(1, None in values, oid, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(length(-1))
        else:
            parts.append(length(len(value)))
            parts.append(value)
    return b"".join(parts)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _without_nul(text: str) -> str:
    # Parameters in text form end at the first NUL: the rest would be cut off without a word.
    if "\x00" in text:
        raise ValueError("text contains a NUL character, which PostgreSQL cannot store")
    return text


def _instant(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("an instant needs a time zone: PostgreSQL would take its own")
    return value.isoformat()


def _text_of(kind: type) -> Callable[[Any], str]:
    if issubclass(kind, str):
        return str
    if issubclass(kind, bool):
        return lambda value: "t" if value else "f"
    if issubclass(kind, int):
        return int.__repr__
    if issubclass(kind, float):
        return float.__repr__
    if issubclass(kind, datetime):
        return _instant
    if issubclass(kind, date):
        return date.isoformat
    raise TypeError(f"a parameter cannot be a {kind.__name__}")
