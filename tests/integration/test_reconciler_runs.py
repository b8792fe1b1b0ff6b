"""What a run makes of statements and items, on a real PostgreSQL: matches, differences, and that they go away by
themselves when what was missing arrives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stores import EmbeddedPostgres
from services.kit.errors import Invalid
from services.reconciler.reconciliation import Report
from tests.reconciler import Booked, Section, TestBooks, capture, day, write_statement


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBooks]:
    name = f"reconciler_{os.urandom(4).hex()}"
    books = TestBooks(postgres.create_database(name), tmp_path_factory.mktemp("statements"))
    books.create()
    yield books
    postgres.drop_database(name)


@pytest.fixture
def books(database: TestBooks, tmp_path: Path) -> TestBooks:
    """A merchant of its own."""
    return TestBooks(database.dsn, tmp_path, merchant_id=f"mer_{os.urandom(4).hex()}")


def found(report: Report) -> dict[str, str]:
    """Kind by reference of what a run has to tell of."""
    return {case.reference: str(case.kind) for case, _ in report.differences}


def test_what_both_sides_have_matches_and_nothing_is_left(books: TestBooks) -> None:
    books.add_items([capture("a/1", 500), capture("b/1", 700), capture("a/2", -200)])
    report = books.run(
        Section(
            lines=[
                Booked(amount_minor=500, reference="a/1"),
                Booked(amount_minor=-200, counterpart_reference="bank-a/2"),
                Booked(amount_minor=700),
            ]
        )
    )
    assert [(r.rule, r.matches) for r in report.rules] == [("key", 1), ("bank_reference", 1), ("amount", 1)]
    assert report.counts == []
    assert (report.lines_waiting, report.items_waiting) == (0, 0)


def test_a_settlement_is_one_line_less_the_fees_of_the_bank(books: TestBooks) -> None:
    items = [capture(f"p{n}/1", 1_000, batch_reference="batch_1", fee_minor=29) for n in range(5)]
    books.add_items([*items, capture("p1/2", -300, batch_reference="batch_1")])
    report = books.run(
        Section(lines=[Booked(amount_minor=4_555, reference="stl_1", batch_reference="batch_1")])
    )
    assert [tuple(r) for r in report.rules] == [("batch", 1, 1, 6)]
    assert report.counts == []


def test_an_item_that_is_paid_in_parts_is_one_match(books: TestBooks) -> None:
    books.add_items([capture("a/1", 900)])
    report = books.run(
        Section(lines=[Booked(amount_minor=500, reference="a/1"), Booked(amount_minor=400, reference="a/1")])
    )
    assert [tuple(r) for r in report.rules] == [("parts", 1, 2, 1)]


def test_every_kind_of_difference_is_found_and_called_by_its_name(books: TestBooks) -> None:
    books.add_items(
        [
            capture("missing/1", 100),
            capture("overdue/1", 150, booked_on=day(40)),
            capture("waiting/1", 160, booked_on=day(55)),
            capture("amount/1", 200),
            capture("currency/1", 300),
            capture("twice/1", 400),
            capture("late/1", 600),
            capture("x/1", 1_000, batch_reference="batch_gone"),
            capture("y/1", 1_000, batch_reference="batch_gone"),
            capture("z/1", 1_000, batch_reference="batch_off"),
        ]
    )
    pounds = Section(
        lines=[
            Booked(amount_minor=199, reference="amount/1"),
            Booked(amount_minor=400, reference="twice/1"),
            Booked(amount_minor=400, reference="twice/1"),
            Booked(amount_minor=500, reference="unknown"),
            Booked(amount_minor=600, reference="late/1", booking_date=day(12)),
            Booked(amount_minor=990, batch_reference="batch_off", reference="stl_off"),
        ]
    )
    dollars = Section(name="S2", currency="USD", lines=[Booked(amount_minor=300, reference="currency/1")])
    report = books.run(pounds, dollars, until=day(50))
    assert sorted((str(case.kind), case.reference) for case, _ in report.differences) == [
        ("AMOUNT", "amount/1"),
        ("AMOUNT", "stl_off"),
        ("CURRENCY", "currency/1"),
        ("DUPLICATE", "twice/1"),
        ("LATE", "late/1"),
        ("LATE", "overdue/1"),
        ("MISSING_IN_BANK", "batch_gone"),
        ("MISSING_IN_BANK", "missing/1"),
        ("MISSING_IN_LEDGER", "unknown"),
    ]
    assert (report.lines_waiting, report.items_waiting) == (0, 1)
    late = next(case for case, _ in report.differences if case.reference == "late/1")
    assert (late.state, late.outcome) == ("CLOSED", "MATCHED")


def test_a_late_line_closes_its_case_by_itself(books: TestBooks) -> None:
    books.add_items([capture("a/1", 500)])
    books.run(until=day(10))
    assert books.cases() == {"a/1": "LATE"}
    books.run(until=day(30))
    assert books.cases() == {"a/1": "MISSING_IN_BANK"}
    report = books.run(Section(lines=[Booked(amount_minor=500, reference="a/1", booking_date=day(31))]))
    assert books.cases() == {}
    assert [(c.kind, c.new, c.standing, c.closed) for c in report.counts] == [("MISSING_IN_BANK", 0, 0, 1)]
    events = books.query(
        "SELECT type FROM case_events WHERE merchant_id = %s ORDER BY number", books.merchant_id
    )
    assert [e[0] for e in events] == ["opened", "changed", "closed"]


def test_of_two_identical_lines_one_matches_and_the_other_is_a_duplicate(books: TestBooks) -> None:
    """Bug 18: both matched the one payment."""
    books.add_items([capture("a/1", 500)])
    books.run(Section(lines=[Booked(amount_minor=500, reference="a/1")] * 2))
    assert len(books.pairs()) == 1
    assert books.cases() == {"a/1": "DUPLICATE"}


def test_two_payments_that_look_alike_take_a_line_each(books: TestBooks) -> None:
    books.add_items([capture("a/1", 500, bank_reference="same"), capture("a/2", 500, bank_reference="same")])
    books.run(Section(lines=[Booked(amount_minor=500, counterpart_reference="same")] * 2))
    assert (
        books.cases(),
        len(books.query("SELECT 1 FROM matched_lines WHERE merchant_id = %s", books.merchant_id)),
    ) == ({}, 2)


def test_what_carries_no_reference_is_matched_only_without_a_doubt(books: TestBooks) -> None:
    books.add_items(
        [
            capture("a/1", 500),
            capture("b/1", 500),
            capture("c/1", 300),
            capture("d/1", 300, booked_on=day(20)),
        ]
    )
    report = books.run(
        Section(
            lines=[
                Booked(amount_minor=500),
                Booked(amount_minor=300),
                Booked(amount_minor=300, booking_date=day(21)),
            ]
        ),
        until=day(2),
    )
    assert [tuple(r) for r in report.rules] == [("amount", 2, 2, 2)]


def test_a_preview_says_what_a_commit_does_and_keeps_nothing(books: TestBooks) -> None:
    books.add_items([capture(f"p{n}/1", 100 + n) for n in range(20)])
    section = Section(lines=[Booked(amount_minor=100 + n + (n == 3), reference=f"p{n}/1") for n in range(15)])
    before = books.footprint()
    preview = books.run(section, keep=False)
    assert books.footprint() == before
    commit = books.run(section)
    assert (preview.counts, preview.rules, found(preview)) == (commit.counts, commit.rules, found(commit))
    assert commit.counts != []


def test_a_second_import_changes_nothing(books: TestBooks) -> None:
    books.add_items([capture("a/1", 500), capture("b/1", 800)])
    section = Section(
        lines=[Booked(amount_minor=500, reference="a/1"), Booked(amount_minor=7, reference="?")]
    )
    books.run(section)
    before = books.footprint()
    again = write_statement(books.folder / "statement-1.json", [section])
    report = books.run(files=[again])
    assert (report.files[0].already_imported, report.files[0].lines_known) == (True, 2)
    assert books.footprint() == before


def test_the_same_statement_in_another_file_adds_no_line(books: TestBooks) -> None:
    lines = [Booked(amount_minor=5, reference=f"r{n}", counterpart_reference=f"b{n}") for n in range(4)]
    books.run(Section(lines=lines))
    report = books.run(Section(lines=lines), Section(name="S2", lines=[]))
    assert (report.files[0].lines_new, report.files[0].lines_known) == (0, 4)
    assert books.query("SELECT count(*) FROM lines WHERE merchant_id = %s", books.merchant_id) == [(4,)]


def test_statements_that_tell_of_the_same_days_add_a_line_once(books: TestBooks) -> None:
    def lines(first: int, last: int) -> list[Booked]:
        return [
            Booked(amount_minor=5, counterpart_reference=f"b{n // 2}", booking_date=day(n // 2))
            for n in range(first, last)
        ]

    books.run(Section(name="day", lines=lines(4, 8)))
    report = books.run(Section(name="week", lines=lines(0, 12)))
    # Two equal lines of one booking are two lines, in either statement.
    assert (report.files[0].lines_new, report.files[0].lines_known) == (8, 4)


def test_a_statement_that_says_something_else_than_before_is_refused(books: TestBooks) -> None:
    books.run(Section(lines=[Booked(amount_minor=5, reference="a")]))
    before = books.footprint()
    for changed in (
        Section(lines=[Booked(amount_minor=6, reference="a")]),
        Section(lines=[Booked(amount_minor=5, reference="b")]),
    ):
        with pytest.raises(Invalid, match="imported before"):
            books.run(changed)
    assert books.footprint() == before


def test_nothing_of_a_refused_file_stays_nor_of_those_before_it(books: TestBooks) -> None:
    good = write_statement(books.folder / "good.json", [Section(lines=[Booked(amount_minor=5)])])
    bad = write_statement(
        books.folder / "bad.json", [Section(name="S2", lines=[Booked(amount_minor=5)], closing_minor=6)]
    )
    before = books.footprint()
    with pytest.raises(Invalid, match=r"bad\.json, line 3, closing balance: .* is 6 .* add up to 5"):
        books.run(files=[good, bad])
    assert books.footprint() == before


def test_a_case_goes_on_as_more_becomes_known_and_two_of_one_difference_become_one(books: TestBooks) -> None:
    books.run(Section(lines=[Booked(amount_minor=490, reference="a/1")]))
    assert books.cases() == {"a/1": "MISSING_IN_LEDGER"}
    books.add_items([capture("a/1", 500)])
    books.run()
    assert books.cases() == {"a/1": "AMOUNT"}
    books.run(Section(name="S2", lines=[Booked(amount_minor=10, reference="a/1")]))
    assert books.cases() == {}
    assert len(books.cases(standing=False)) == 1


def test_what_moves_nothing_needs_no_counterpart(books: TestBooks) -> None:
    books.add_items(
        [capture("a/1", 500, batch_reference="batch_0"), capture("a/2", -500, batch_reference="batch_0")]
    )
    report = books.run(Section(lines=[Booked(amount_minor=0, text="interest rate is 0 %")]))
    assert [tuple(r) for r in report.rules] == [("nothing_moved", 2, 1, 2)]
    assert report.counts == []
