"""Column maps: which column of a bank's CSV file means what. Data, in TOML; see docs/statements.md.

A map is for one layout. `paymesh.toml` is what the sandbox bank writes; a user has one for each bank that sends CSV.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import Any

MAP_BYTES_MAX = 64 * 1024
SINGLE = (
    "account", "amount", "balance", "batch_reference", "booking_date", "counterpart_reference", "credit", "currency",
    "debit", "kind", "record", "reference", "sign", "statement_id", "value_date",
)  # fmt: skip
"""What a column may be. `text` may be several."""


class BadMap(ValueError):
    """A column map cannot be used. The text says why, and names the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """How to read the CSV files of one layout."""

    name: str
    columns: dict[str, str]
    """Meaning to heading, of those in `SINGLE`."""
    text: tuple[str, ...] = ()
    """Headings of the columns that become the line's text."""
    fixed: dict[str, str] = field(default_factory=dict)
    """Account, currency or statement_id of a file that has no column for it."""
    delimiter: str = ","
    decimal: str = "."
    thousands: str = ""
    date_format: str = "%Y-%m-%d"
    credit_words: frozenset[str] = frozenset({"C", "CR", "CREDIT", "CRDT", "+", "H", "HABEN", "BIJ"})
    """What stands in the column `sign` of money that comes to us; `debit_words` of money that goes."""
    debit_words: frozenset[str] = frozenset({"D", "DR", "DEBIT", "DBIT", "-", "S", "SOLL", "AF"})
    opening_words: frozenset[str] = frozenset({"OPENING"})
    """What stands in the column `record` of a row that is an opening balance, in its column `amount`."""
    closing_words: frozenset[str] = frozenset({"CLOSING"})
    newest_first: bool = False
    """Whether rows run back in time, as many banks' exports do. They are then held, to be turned round."""
    balances: bool = True
    """False for a layout without any balance: then nothing proves that a file is whole, and whoever wrote the map has
    accepted that."""

    def headings(self) -> set[str]:
        """All headings that a file of this layout has, folded for comparison."""
        return {fold(heading) for heading in (*self.columns.values(), *self.text)}


def fold(heading: str) -> str:
    """A heading as it is compared: without quotes, case and surrounding white space."""
    return " ".join(heading.replace("\ufeff", "").strip(' "').casefold().split())


def parse_map(name: str, text: str) -> ColumnMap:
    """The map in a TOML document. Raises BadMap."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadMap(f"{name}: not TOML: {error}") from None
    columns = dict(_table(name, said, "columns"))
    words = columns.pop("text", [])
    made = ColumnMap(
        name=name,
        columns=_strings(name, "columns", columns),
        text=tuple(_list(name, "columns.text", [words] if isinstance(words, str) else words)),
        fixed=_strings(name, "fixed", _table(name, said, "fixed")),
        **_options(name, said),
    )
    _check(made)
    return made


def _options(name: str, said: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in said.items():
        if key in {"columns", "fixed"}:
            continue
        if key in {"delimiter", "decimal", "thousands", "date_format"} and isinstance(value, str):
            options[key] = value
        elif key in {"credit_words", "debit_words", "opening_words", "closing_words"}:
            options[key] = frozenset(word.upper() for word in _list(name, key, value))
        elif key in {"balances", "newest_first"} and isinstance(value, bool):
            options[key] = value
        else:
            raise BadMap(f"{name}: {key!r} is not a key of a column map, or has the wrong type")
    return options


def _check(made: ColumnMap) -> None:
    _check_names(made)
    name, columns = made.name, made.columns
    if len(made.delimiter) != 1 or made.delimiter in '"\r\n':
        raise BadMap(f"{name}: delimiter is one character, such as ';'")
    if (
        made.decimal not in {".", ","}
        or made.thousands in {made.decimal, "-", "+"}
        or len(made.thousands) > 1
    ):
        raise BadMap(f"{name}: decimal is '.' or ',', and thousands another character or none")
    if made.balances and not {"record", "balance"} & set(columns):
        raise BadMap(
            f"{name}: there is neither columns.balance nor columns.record, so nothing would prove that a file is "
            "whole; say `balances = false` to accept that"
        )


def _check_names(made: ColumnMap) -> None:
    name, columns = made.name, made.columns
    for wrong in sorted(set(columns) - set(SINGLE)):
        raise BadMap(f"{name}: columns.{wrong}: there is no such meaning; there are {', '.join(SINGLE)}")
    for wrong in sorted(set(made.fixed) - {"account", "currency", "statement_id"}):
        raise BadMap(f"{name}: fixed.{wrong}: only account, currency and statement_id can be fixed")
    if "booking_date" not in columns:
        raise BadMap(f"{name}: columns.booking_date is missing")
    if ("amount" in columns) == ("credit" in columns or "debit" in columns):
        raise BadMap(f"{name}: name either columns.amount, or columns.credit and columns.debit")
    if ("credit" in columns) != ("debit" in columns):
        raise BadMap(f"{name}: columns.credit and columns.debit come together")
    if "sign" in columns and "amount" not in columns:
        raise BadMap(f"{name}: columns.sign gives columns.amount its sign, and there is no such column")
    if "record" in columns and "amount" not in columns:
        raise BadMap(f"{name}: columns.record needs columns.amount for the balances")
    for key in ("account", "currency"):
        if (key in columns) == (key in made.fixed):
            raise BadMap(f"{name}: give the {key} in one place, columns.{key} or fixed.{key}")


def _table(name: str, said: dict[str, Any], key: str) -> dict[str, Any]:
    value = said.get(key, {})
    if not isinstance(value, dict):
        raise BadMap(f"{name}: {key} has to be a table")
    return value


def _strings(name: str, key: str, table: dict[str, Any]) -> dict[str, str]:
    for meaning, heading in table.items():
        if not isinstance(heading, str) or not heading.strip():
            raise BadMap(f"{name}: {key}.{meaning} has to be a text in quotes")
    return dict(table)


def _list(name: str, key: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadMap(f"{name}: {key} has to be a list of texts")
    return [str(item) for item in value]
