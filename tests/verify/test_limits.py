"""The table of limits in ARCHITECTURE.md says what the code says."""

from __future__ import annotations

import re

import pytest

from tests.verify.repository import ROOT

ROW = re.compile(r"^\| `(\w+)` \| ([\d,.]+) .*? \| \[[^]]*\]\(([^)]+)\) \|", re.MULTILINE)
ROWS = ROW.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def defined(name: str, text: str) -> set[float]:
    """The values that a source gives to a name: as a constant, or as the default of a field or a parameter. Variables,
    which have neither a column of their own nor a type, are left out."""
    found = re.findall(
        rf"^(?:{name}| +{name}: \w+) = (?:Field\(default=)?([\d_.]+(?: \* [\d_.]+)*)", text, re.MULTILINE
    )
    values = set()
    for product in found:
        value = 1.0
        for factor in product.split(" * "):
            value *= float(factor)
        values.add(value)
    return values


def test_the_table_is_found() -> None:
    assert len(ROWS) > 30


@pytest.mark.parametrize(("name", "value", "file"), ROWS, ids=[row[0] for row in ROWS])
def test_a_limit_is_what_the_code_says(name: str, value: str, file: str) -> None:
    assert defined(name, (ROOT / file).read_text(encoding="utf-8")) == {float(value.replace(",", ""))}


def test_every_way_to_define_a_limit_is_seen() -> None:
    text = "A_MAX = 16 * 1_024\n b_seconds: float = Field(default=2.5, ge=1)\n c_max: int = 3,\n c_max = 4\n"
    assert [defined(name, text) for name in ("A_MAX", "b_seconds", "c_max", "d")] == [
        {16_384},
        {2.5},
        {3},
        set(),
    ]
