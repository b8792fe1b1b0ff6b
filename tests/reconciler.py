"""A reconciler's books without its process: a database, items and statements put into it, and what a run makes of them.

Statements are written here as `Section`s and read back by a reader of our own, so that tests of matching do not hang on
any bank's format.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import psycopg

from services.kit.migrate import migrate
from services.reconciler.domain.item import Item, ItemKind
from services.reconciler.domain.rules import Rules
from services.reconciler.domain.statement import Closed, Event, Line, Opened
from services.reconciler.reconciliation import Job, Report, StatementFile, reconcile
from services.reconciler.rule_file import BUILT_IN_RULES, read_rules
from services.reconciler.store.connection import Connection, Stop

MERCHANT = "mer_recon"
DAY = date(2026, 11, 2)


def day(number: int) -> date:
    """So many days after the first."""
    return DAY + timedelta(days=number)


LATER = day(60)


@dataclass(frozen=True, kw_only=True)
class Booked:
    """A line of a statement as a test writes it."""

    amount_minor: int
    reference: str = ""
    counterpart_reference: str = ""
    batch_reference: str = ""
    booking_date: date = DAY
    value_date: date | None = None
    kind: str = "NTRF"
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A statement as a test writes it."""

    lines: Sequence[Booked]
    name: str = "S1"
    account: str = "GB00TEST"
    currency: str = "GBP"
    opening_minor: int = 0
    closing_minor: int | None = None
    """What the lines add up to, unless a test lies."""


def write_statement(path: Path, sections: Iterable[Section]) -> StatementFile:
    """Write a file; returns it as a run takes it."""
    with path.open("w", encoding="utf-8") as file:
        for section in sections:
            total = section.opening_minor + sum(line.amount_minor for line in section.lines)
            closing_minor = total if section.closing_minor is None else section.closing_minor
            file.write(
                json.dumps([section.name, section.account, section.currency, section.opening_minor]) + "\n"
            )
            for line in section.lines:
                file.write(json.dumps(line.__dict__, default=date.isoformat) + "\n")
            file.write(json.dumps([closing_minor, len(section.lines)]) + "\n")
    data = path.read_bytes()
    return StatementFile(path.name, path, hashlib.sha256(data).digest(), len(data))


def read_test_file(stream: BinaryIO, *, name: str) -> Iterator[Event]:
    """The reader of `write_statement`'s format."""
    currency, count = "", 0
    for place, text in enumerate(stream, start=1):
        value: Any = json.loads(text)
        if isinstance(value, dict):
            count += 1
            booking_date = date.fromisoformat(value["booking_date"])
            value_date = date.fromisoformat(value["value_date"]) if value["value_date"] else booking_date
            yield Line(
                count, booking_date, value_date, value["amount_minor"], currency, value["reference"],
                value["counterpart_reference"], value["batch_reference"], value["kind"], value["text"], False, place,
            )  # fmt: skip
        elif len(value) == 4:
            currency, count = value[2], 0
            yield Opened(value[0], value[1], currency, value[3], DAY, place)
        else:
            yield Closed(value[0], None, value[1], place)


def capture(name: str, amount_minor: int, **fields: Any) -> Item:
    """A capture that the bank has booked: its key is `name`."""
    values = {
        "item_id": name,
        "kind": ItemKind.CAPTURE if amount_minor > 0 else ItemKind.REFUND,
        "payment_id": name.partition("/")[0],
        "settlement_id": "",
        "bank_reference": f"bank-{name}",
        "batch_reference": "",
        "amount_minor": amount_minor,
        "fee_minor": 0,
        "currency": "GBP",
        "booked_on": DAY,
        "value_on": fields.get("booked_on", DAY),
    }
    return Item(**(values | fields))


@dataclass
class TestBooks:
    """A reconciler's database."""

    dsn: str
    folder: Path
    merchant_id: str = MERCHANT
    rules: Rules = field(default_factory=lambda: read_rules(BUILT_IN_RULES))
    _files: int = 0

    __test__ = False

    def create(self) -> None:
        """Bring the schema up to date."""
        asyncio.run(migrate(self.dsn, "services.reconciler"))

    def add_items(self, items: Iterable[Item]) -> None:
        """Put items into the books, as the copy of payment's would."""
        with psycopg.connect(self.dsn) as connection:
            insert_items(connection, self.merchant_id, items)

    def run(
        self,
        *sections: Section,
        until: date = LATER,
        keep: bool = True,
        files: Sequence[StatementFile] = (),
    ) -> Report:
        """Import a file of these sections, if there are any, and match."""
        given = list(files)
        if sections:
            self._files += 1
            given.append(write_statement(self.folder / f"statement-{self._files}.json", sections))
        return self.reconcile(
            Job(merchant_id=self.merchant_id, until=until, files=given, keep=keep, differences_max=10_000)
        )

    def reconcile(self, job: Job) -> Report:
        """Carry a job out."""
        return reconcile(self.dsn, job, self.rules, read_test_file, lambda *_: None, Stop(), lambda *_: None)

    def query(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(query.encode(), params).fetchall()

    def footprint(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all tables, without what only says when something was looked at."""
        tables = ("statement_files", "statements", "lines", "items", "open_lines", "open_items", "matched_lines",
                  "matched_items", "cases", "case_lines", "case_items", "case_events")  # fmt: skip
        return {table: sorted(self.query(f"SELECT t::text FROM {table} AS t")) for table in tables}

    def cases(self, *, standing: bool = True) -> dict[str, str]:
        """Kind by reference, of the cases that stand, or of all."""
        rows = self.query(
            "SELECT reference, kind FROM cases WHERE merchant_id = %s AND (state <> 'CLOSED' OR NOT %s)",
            self.merchant_id,
            standing,
        )
        assert len({row[0] for row in rows}) == len(rows), f"two cases of one reference: {rows}"
        return dict(rows)

    def pairs(self) -> set[tuple[str, str]]:
        """(reference of the line, item) of every match."""
        return set(
            self.query(
                """
                SELECT l.reference, i.item_id FROM matched_lines AS ml JOIN lines AS l USING (merchant_id, line_no)
                JOIN matched_items AS mi USING (merchant_id, match_no) JOIN items AS i USING (merchant_id, item_no)
                WHERE merchant_id = %s
                """,
                self.merchant_id,
            )
        )


def insert_items(connection: Connection, merchant_id: str, items: Iterable[Item]) -> None:
    """Put items into a reconciler's database by COPY: any number of them."""
    with connection.cursor().copy(
        "COPY items (merchant_id, item_id, kind, payment_id, settlement_id, bank_reference, batch_reference,"
        " amount_minor, fee_minor, currency, booked_on, value_on) FROM STDIN"
    ) as copy:
        for item in items:
            copy.write_row((merchant_id, *item[:1], str(item.kind), *item[2:]))
    connection.execute(
        """
        INSERT INTO open_items (merchant_id, item_no) SELECT merchant_id, item_no FROM items
        WHERE merchant_id = %s AND item_no > coalesce((SELECT max(item_no) FROM open_items WHERE merchant_id = %s), 0)
          AND item_no > coalesce((SELECT max(item_no) FROM matched_items WHERE merchant_id = %s), 0)
        """,
        [merchant_id, merchant_id, merchant_id],
    )
