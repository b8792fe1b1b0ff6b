"""A month of payments with errors of every kind, made by a generator that keeps a list of what it has spoiled: the
reconciler finds exactly these, each of the right kind.

`PAYMESH_TEST_MONTH_PAYMENTS=100000` makes it the month of the requirements; `make test-month` does so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from deploy.local.stores import EmbeddedPostgres
from tests.reconciler import TestBooks, write_statement
from tests.reconciler_month import UNTIL, Month, late_section, make_month

PAYMENTS = int(os.environ.get("PAYMESH_TEST_MONTH_PAYMENTS", "3000"))
DIFFERENCES = 200
SEED = int(os.environ.get("PAYMESH_TEST_MONTH_SEED", "20261001"))


@pytest.fixture(scope="module")
def month() -> Month:
    return make_month(PAYMENTS, DIFFERENCES, SEED)


@pytest.fixture(scope="module")
def books(
    postgres: EmbeddedPostgres, month: Month, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestBooks]:
    name = f"reconciler_{os.urandom(4).hex()}"
    made = TestBooks(postgres.create_database(name), tmp_path_factory.mktemp("month"))
    made.create()
    made.add_items(month.items)
    yield made
    postgres.drop_database(name)


@pytest.mark.timeout(900)
def test_a_month_shows_exactly_what_is_wrong_with_it_once_and_heals(books: TestBooks, month: Month) -> None:
    report = books.run(*month.sections, until=UNTIL)

    found = {case.reference: str(case.kind) for case, _ in report.differences}
    assert len(report.differences) == DIFFERENCES
    assert found == month.differences
    assert (report.lines_waiting, report.items_waiting) == (0, 0)
    assert sum(count.standing for count in report.counts) == sum(kind != "LATE" for kind in found.values())

    # The second import changes nothing.
    before = books.footprint()
    again = write_statement(books.folder / "statement-1.json", month.sections)
    second = books.run(files=[again], until=UNTIL)
    assert second.files[0].already_imported
    assert books.footprint() == before
    assert sum(count.new for count in second.counts) == 0

    # A late line closes its case by itself, and no other.
    standing = books.cases()
    one = month.held_back[0]
    third = books.run(late_section(one), until=UNTIL)
    assert [(str(c.kind), c.closed) for c in third.counts if c.closed] == [("MISSING_IN_BANK", 1)]
    del standing[one.names[0]]
    assert books.cases() == standing
    assert _astray(books) == {"lines": 0, "items": 0}


def _astray(books: TestBooks) -> dict[str, int]:
    """Lines and items that are not in exactly one place: matched, or part of a case that stands."""
    counts = {}
    for side, key in (("lines", "line_no"), ("items", "item_no")):
        rows = books.query(
            f"""
            SELECT count(*) FROM {side} AS x
            LEFT JOIN open_{side} AS o USING (merchant_id, {key})
            LEFT JOIN matched_{side} AS m USING (merchant_id, {key})
            LEFT JOIN case_{side} AS c ON c.merchant_id = x.merchant_id AND c.{key} = x.{key} AND c.standing
            WHERE (o.{key} IS NULL) = (m.{key} IS NULL) OR (m.{key} IS NULL) <> (c.{key} IS NOT NULL)
            """
        )
        counts[side] = rows[0][0]
    return counts
