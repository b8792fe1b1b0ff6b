"""Statements and parameters as they travel: names become numbers, and forms that would travel wrongly are refused. That
PostgreSQL reads every value as it was meant is proved in tests/integration/test_kit_parameters.py."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum

import pytest

from services.kit.statements import BINARY, TEXT, encode, translate

QUOTED = bytes.fromhex("00000001 00000000 00000019 00000002 00000001") + b'\0\0\0\x02a"' + b"\0\0\0\x01\\"
"""One dimension, no nulls, type text, two elements, counted from 1: a binary array."""


class Colour(StrEnum):
    RED = "RED"


def test_names_become_numbers_in_the_order_of_their_first_use() -> None:
    statement = translate("SELECT %(b)s, %(a)s::text[], %(b)s")
    assert statement.text == b"SELECT $1, $2::text[], $1"
    assert statement.names == ("b", "a")


def test_a_doubled_percent_sign_is_one() -> None:
    assert translate("SELECT 7 %% %(n)s").text == b"SELECT 7 % $1"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, (None, TEXT)),
        ("plain", (b"plain", TEXT)),
        ("", (b"", TEXT)),
        (Colour.RED, (b"RED", TEXT)),
        (True, (b"t", TEXT)),
        (-(10**18), (b"-1000000000000000000", TEXT)),
        (0.1, (b"0.1", TEXT)),
        (b"\x00\xff", (b"\x00\xff", BINARY)),
        (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), (b"2026-01-02T03:04:05.000678+00:00", TEXT)),
        (date(2026, 1, 2), (b"2026-01-02", TEXT)),
        ([date(2026, 1, 2), None], (b'{"2026-01-02",NULL}', TEXT)),
        ([], (b"{}", TEXT)),
        (["a", "b"], (b'{"a","b"}', TEXT)),
        ([Colour.RED], (b'{"RED"}', TEXT)),
        ([1, 2], (b"{1,2}", TEXT)),
        ([None, 2], (b'{NULL,"2"}', TEXT)),
        ([None, None], (b"{NULL,NULL}", TEXT)),
        (["NULL", None], (b'{"NULL",NULL}', TEXT)),
        (['a"', "\\"], (QUOTED, BINARY)),
        (['a"', None], (b'{"a\\"",NULL}', TEXT)),
    ],
)
def test_values_are_encoded(value: object, encoded: tuple[bytes | None, int]) -> None:
    assert encode(value) == encoded


@pytest.mark.parametrize("value", ["a\x00b", ["a", "b\x00"], [None, "\x00"], ["\x00", '"']])
def test_text_with_a_nul_is_refused_because_it_would_be_cut_off(value: object) -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode(value)


def test_an_instant_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        encode(datetime(2026, 1, 2))  # noqa: DTZ001


@pytest.mark.parametrize("value", [object(), {"a": 1}, [object()], (1, 2)])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a parameter cannot be"):
        encode(value)
