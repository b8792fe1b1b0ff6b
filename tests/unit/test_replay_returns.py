"""What cancellations of an export take back. The oracle lays every sold piece on a table as a piece of its own and
takes pieces away one by one; it knows the rule as it is written down, and nothing of shelves or sums."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from paymesh.replay.invoices import Export, read_invoices
from paymesh.replay.plan import dispatch_item, return_item
from paymesh.replay.returns import match_returns
from paymesh.replay.rows import read_rows
from paymesh.replay.run import Answer
from paymesh.replay.summary import sent_returns, summarize, summary_json
from tests.depth import examples
from tests.unit.test_replay_invoices import HEADER, REAL_FILE


@dataclass(frozen=True)
class Line:
    number: str
    sku: str
    quantity: str
    price: str
    customer: str

    def text(self) -> str:
        return f"{self.number},{self.sku},,{self.quantity},x,{self.price},{self.customer},France"


def read(lines: list[Line]) -> Export:
    """The export, which adds up."""
    reading = read_rows("\n".join([HEADER, *(line.text() for line in lines)]).encode())
    export = read_invoices(reading, "GBP")
    match_returns(reading, export, "GBP")
    summary = summarize(reading, export, "GBP", [])
    assert summary.adds_up()
    assert summary_json(summary, export, [], dry_run=True)["adds_up"]
    return export


def oracle(lines: list[Line]) -> dict[int, str]:
    """Line number of every row that is taken back, and the invoice that had sold it."""
    table: list[tuple[int, str, str, str, str]] = []
    sold = [line for line in lines if not line.number.startswith("C") and int(line.quantity) > 0]
    customers = {
        line.number: {other.customer for other in sold if other.number == line.number} - {""} for line in sold
    }
    found: dict[int, str] = {}
    for at, line in enumerate(lines, start=2):
        pieces = int(line.quantity)
        if not line.number.startswith("C"):
            named = customers.get(line.number, set())
            if len(named) == 1 and pieces > 0:
                table += [(at, line.number, min(named), line.sku, line.price)] * pieces
            continue
        if pieces >= 0 or not line.customer:
            continue
        alike = [piece for piece in table if piece[2:] == (line.customer, line.sku, line.price)]
        fits = [
            number
            for number in {piece[1] for piece in alike}
            if sum(p[1] == number for p in alike) >= -pieces
        ]
        if fits:
            latest = max(fits, key=lambda number: first_row(lines, number, line))
            for _ in range(-pieces):
                table.remove(next(piece for piece in alike if piece[1] == latest and piece in table))
            found[at] = latest
    return found


def first_row(lines: list[Line], number: str, back: Line) -> int:
    return next(
        at
        for at, line in enumerate(lines, start=2)
        if (line.number, line.sku, line.price) == (number, back.sku, back.price) and int(line.quantity) > 0
    )


numbers = st.sampled_from(["1", "2", "3"])
skus = st.sampled_from(["a", "b"])
prices = st.sampled_from(["1.50", "2"])
sales = st.builds(
    Line, numbers, skus, st.integers(0, 4).map(str), prices, st.sampled_from(["x", "x", "x", "y", ""])
)
backs = st.builds(
    Line,
    st.sampled_from(["C4", "C5"]),
    skus,
    st.integers(-3, 1).map(str),
    prices,
    st.sampled_from(["x", "x", "y", ""]),
)


@settings(max_examples=examples(100, 600), deadline=None)
@given(st.lists(st.one_of(sales, backs), max_size=14))
def test_every_row_of_a_cancellation_is_taken_back_from_the_order_that_the_rule_names(
    lines: list[Line],
) -> None:
    export = read(lines)
    expected = oracle(lines)
    assert {at: one.original for one in export.returns for at in one.lines} == expected
    event(f"{min(len(expected), 3)} rows taken back")
    cancelled = {at for at, line in enumerate(lines, start=2) if line.number.startswith("C")}
    kept = {row.line for row in export.rejected_rows if row.reason == "CANCELLATION"}
    assert kept == cancelled - set(expected)
    placed = {invoice.number: invoice for invoice in export.invoices}
    for number in {one.original for one in export.returns}:
        returns = [one for one in export.returns if one.original == number]
        assert sum(one.amount_minor for one in returns) <= placed[number].amount_minor
        for sku in {sku for one in returns for sku in one.quantities}:
            assert sum(one.quantities.get(sku, 0) for one in returns) <= placed[number].quantities[sku]
    names = {line.number for line in lines if line.number.startswith("C")}
    rejected = {one.number for one in export.rejected_invoices if one.number.startswith("C")}
    assert rejected == names - {one.number for one in export.returns}


def returned(*lines: Line) -> list[tuple[str, str, dict[str, int], int]]:
    export = read(list(lines))
    return [(one.number, one.original, dict(one.quantities), one.amount_minor) for one in export.returns]


def test_a_part_of_an_order_comes_back() -> None:
    sold = Line("1", "a", "3", "1.50", "x")
    assert returned(sold, Line("C2", "a", "-2", "1.50", "x")) == [("C2", "1", {"a": 2}, 300)]


def test_the_latest_order_that_has_enough_is_taken() -> None:
    sold = [Line("1", "a", "3", "1.50", "x"), Line("2", "a", "1", "1.50", "x")]
    assert returned(*sold, Line("C3", "a", "-1", "1.50", "x")) == [("C3", "2", {"a": 1}, 150)]
    assert returned(*sold, Line("C3", "a", "-2", "1.50", "x")) == [("C3", "1", {"a": 2}, 300)]
    assert returned(*sold, Line("C3", "a", "-4", "1.50", "x")) == [], "a row is never split"


def test_one_cancellation_may_take_back_from_two_orders() -> None:
    sold = [Line("1", "a", "1", "1.50", "x"), Line("2", "b", "1", "2", "x")]
    back = [Line("C3", "b", "-1", "2", "x"), Line("C3", "a", "-1", "1.50", "x")]
    assert returned(*sold, *back) == [("C3", "2", {"b": 1}, 200), ("C3", "1", {"a": 1}, 150)]


@pytest.mark.parametrize(
    ("back", "why"),
    [
        (Line("C2", "a", "-1", "1.50", "y"), "NO_ORDER_FOUND"),
        (Line("C2", "b", "-1", "1.50", "x"), "NO_ORDER_FOUND"),
        (Line("C2", "a", "-1", "1.49", "x"), "NO_ORDER_FOUND"),
        (Line("C2", "a", "-4", "1.50", "x"), "NO_ORDER_FOUND"),
        (Line("C2", "a", "-1", "1.50", ""), "CUSTOMER_MISSING"),
        (Line("C2", "", "-1", "1.50", "x"), "PRODUCT_MISSING"),
        (Line("C2", "a", "1", "1.50", "x"), "QUANTITY_NOT_NEGATIVE"),
        (Line("C2", "a", "-0", "1.50", "x"), "QUANTITY_ZERO"),
        (Line("C2", "a", "-x", "1.50", "x"), "QUANTITY_NOT_A_NUMBER"),
        (Line("C2", "a", "-1", "0", "x"), "PRICE_ZERO"),
    ],
)
def test_what_takes_nothing_back_stays_reported_and_says_why(back: Line, why: str) -> None:
    export = read([Line("1", "a", "3", "1.50", "x"), back])
    assert export.returns == []
    (row,) = export.rejected_rows
    assert (row.line, row.invoice, row.reason) == (3, "C2", "CANCELLATION")
    assert row.detail.startswith(why)
    assert [(one.number, one.reason) for one in export.rejected_invoices] == [("C2", "CANCELLATION")]


def test_nothing_comes_back_before_it_was_sold_or_from_an_invoice_that_is_no_order() -> None:
    back = Line("C2", "a", "-1", "1.50", "x")
    assert returned(back, Line("1", "a", "3", "1.50", "x")) == []
    conflict = [Line("1", "a", "3", "1.50", "x"), Line("1", "b", "1", "1.50", "y")]
    assert returned(*conflict, back) == []


def test_keys_of_dispatches_and_returns_name_the_invoices() -> None:
    (one,) = read([Line("1", "a", "3", "1.50", "x"), Line("C2", "a", "-2", "1.50", "x")]).returns
    assert dispatch_item("1", "ord_1", "m").idempotency_key == "invoice/1/dispatch"
    item = return_item(one, "ord_1", "m")
    assert item.idempotency_key == "invoice/C2/return/1"
    assert [(line.sku, line.quantity) for line in item.request.lines] == [("a", 2)]
    assert (item.request.amount.amount_minor, item.request.amount.currency) == (300, "GBP")
    assert item.request.note == "invoice C2"


def test_a_return_without_any_answer_is_unresolved() -> None:
    export = read([Line("1", "a", "3", "1.50", "x"), Line("C2", "a", "-2", "1.50", "x")])
    (sent,) = sent_returns(export.returns, [Answer()])
    assert (sent.bucket, sent.reason) == ("unresolved", "NO_ANSWER")


@pytest.mark.skipif(not REAL_FILE.exists(), reason="the real export is not on this machine")
def test_the_real_exports_cancellations_are_taken_back_or_reported_one_by_one() -> None:
    reading = read_rows(REAL_FILE.read_bytes())
    export = read_invoices(reading, "GBP", {"channel islands": "JE", "european community": "BE"})
    before = {row.line for row in export.rejected_rows if row.reason == "CANCELLATION"}
    match_returns(reading, export, "GBP")
    assert summarize(reading, export, "GBP", []).adds_up()
    taken_back = {at for one in export.returns for at in one.lines}
    kept = {row.line for row in export.rejected_rows if row.reason == "CANCELLATION"}
    assert taken_back
    assert not taken_back & kept
    assert taken_back | kept == before
    position = {line.line: invoice.number for invoice in export.invoices for line in invoice.lines}
    for one in export.returns:
        assert min(at for at, number in position.items() if number == one.original) < min(one.lines)
