"""Reading an invoice export: nothing is lost, money is exact, every rejection has its reason.

Properties are checked against an oracle that shares no code with the reader: it knows what was written into
the file, and adds up with fractions. The real export is read too where it is at hand.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paymesh.amounts import AmountError, currency_exponent, format_amount, minor_units, parse_decimal
from paymesh.replay.countries import CountryError, country_code
from paymesh.replay.invoices import Export, read_invoices
from paymesh.replay.plan import invoices_digest, make_key, make_plan
from paymesh.replay.rows import COLUMNS, ExportError, Row, RowReading, read_rows
from paymesh.replay.summary import summarize

REAL_FILE = Path(__file__).parents[3] / "shared" / "data" / "orders" / "online-retail.csv"
HEADER = ",".join(COLUMNS)


def read(text: str | bytes, currency: str = "GBP", **aliases: str) -> tuple[RowReading, Export]:
    reading = read_rows(text if isinstance(text, bytes) else text.encode())
    return reading, read_invoices(reading, currency, aliases)


def row(
    invoice: str = "536365",
    sku: str = "85123A",
    quantity: str = "6",
    price: str = "2.55",
    customer: str = "17850",
    country: str = "United Kingdom",
    description: str = "T-LIGHT HOLDER",
) -> str:
    return f"{invoice},{sku},{description},{quantity},12-01-2010 08:26,{price},{customer},{country}"


def export_of(*rows: str) -> Export:
    return read("\r\n".join([HEADER, *rows]) + "\r\n")[1]


def only_reason(*rows: str) -> str:
    """The reason why all of a file's rows were rejected."""
    export = export_of(*rows)
    assert not export.invoices
    reasons = {rejected.reason for rejected in export.rejected_rows}
    assert len(reasons) == 1
    return reasons.pop()


# Properties


@dataclass(frozen=True)
class Written:
    """A row that a test wrote, with what its author knows about it."""

    invoice: str
    sku: str
    quantity: int
    price_pence: int
    country: str
    description: str

    @property
    def sellable(self) -> bool:
        return not self.invoice.startswith(("C", "A")) and self.quantity > 0 and self.price_pence > 0

    @property
    def amount(self) -> Fraction:
        return self.quantity * Fraction(self.price_pence, 100)

    def fields(self) -> list[str]:
        sign = "-" if self.price_pence < 0 else ""
        pounds, pence = divmod(abs(self.price_pence), 100)
        price = f"{sign}{pounds}.{pence:02}"
        when = "12-01-2010 08:26"
        quantity = str(self.quantity)
        return [self.invoice, self.sku, self.description, quantity, when, price, "", self.country]


WRITTEN = st.builds(
    Written,
    invoice=st.sampled_from(["536365", "536366", "536367", "C536368", "A536369", "INV-7"]),
    sku=st.sampled_from(["85123A", "71053", "POST", "22 752", "été"]),
    quantity=st.integers(-5, 2_000),
    price_pence=st.integers(-200, 1_000_000),
    country=st.sampled_from(["United Kingdom", "United Kingdom", "EIRE", "Unspecified"]),
    description=st.text(
        st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(list('",£é\n')), max_size=12
    ),
)
ENDINGS = st.sampled_from(["\n", "\r\n"])


def write_csv(rows: list[Written], ending: str, blank_after: set[int]) -> str:
    """A CSV file by the standard library's writer, with blank lines after some rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=ending)
    writer.writerow(COLUMNS)
    for index, written in enumerate(rows):
        writer.writerow(written.fields())
        if index in blank_after:
            out.write(ending)
    return out.getvalue()


@given(st.lists(WRITTEN, max_size=25), ENDINGS, st.sets(st.integers(0, 24)), st.booleans())
def test_every_row_is_counted_once_and_totals_are_those_of_the_oracle(
    rows: list[Written], ending: str, blank_after: set[int], mark: bool
) -> None:
    text = write_csv(rows, ending, blank_after)
    reading, export = read(text.encode("utf-8-sig" if mark else "utf-8"))
    assert len(reading.rows) == len(rows)
    assert summarize(reading, export, "GBP", []).adds_up()

    by_invoice: dict[str, list[Written]] = {}
    for written in rows:
        by_invoice.setdefault(written.invoice, []).append(written)
    expected = {}
    for number, members in by_invoice.items():
        sellable = [written for written in members if written.sellable]
        countries = {written.country for written in sellable}
        if sellable and len(countries) == 1 and countries != {"Unspecified"}:
            quantities: Counter[str] = Counter()
            for written in sellable:
                quantities[written.sku] += written.quantity
            expected[number] = (sum((w.amount for w in sellable), Fraction()), dict(quantities))
    found = {one.number: (Fraction(one.amount_minor, 100), dict(one.quantities)) for one in export.invoices}
    assert found == expected
    assert {one.number for one in export.rejected_invoices} == set(by_invoice) - set(expected)
    assert len(export.rejected_rows) == sum(not written.sellable for written in rows)


@given(
    st.lists(
        st.sampled_from([row(), row("C1"), HEADER, "", '"', "a,b", row() + ",9"]) | st.text(), max_size=30
    )
)
def test_garbage_costs_rows_but_never_the_sum(lines: list[str]) -> None:
    reading, export = read("\n".join([HEADER, *lines]))
    assert summarize(reading, export, "GBP", []).adds_up()
    placed = {line.line for invoice in export.invoices for line in invoice.lines}
    rejected = {rejected.line for rejected in export.rejected_rows}
    good = {line for invoice in export.rejected_invoices for line in invoice.good_lines}
    assert placed | rejected | good == {found.line for found in reading.rows}
    assert len(placed) + len(rejected) + len(good) == len(reading.rows)


@given(st.binary(max_size=400))
def test_any_bytes_after_the_header_are_read_or_rejected(tail: bytes) -> None:
    reading, export = read(HEADER.encode() + b"\n" + tail)
    assert summarize(reading, export, "GBP", []).adds_up()


@given(st.integers(0, 10**12), st.integers(0, 6), st.integers(1, 10**6))
def test_amounts_are_exact_or_refused(digits: int, decimals: int, quantity: int) -> None:
    text = f"{digits // 10**decimals}.{digits % 10**decimals:0{decimals}}" if decimals else str(digits)
    exact = Fraction(digits, 10**decimals) * quantity * 100
    if exact.denominator == 1:
        assert minor_units(parse_decimal(text), 2, quantity) == exact
    else:
        with pytest.raises(AmountError):
            minor_units(parse_decimal(text), 2, quantity)


@given(st.integers(-(10**15), 10**15), st.sampled_from(["GBP", "JPY", "KWD"]))
def test_amounts_survive_being_shown_and_read_again(amount_minor: int, currency: str) -> None:
    number, shown_currency = format_amount(amount_minor, currency).split()
    assert shown_currency == currency
    assert minor_units(parse_decimal(number), currency_exponent(currency)) == amount_minor


@given(
    st.lists(st.text(min_size=1), min_size=1, max_size=4),
    st.lists(st.text(min_size=1), min_size=1, max_size=4),
)
def test_keys_are_printable_short_and_never_shared(one: list[str], other: list[str]) -> None:
    keys = make_key(*one), make_key(*other)
    assert (keys[0] == keys[1]) == (one == other)
    for key in keys:
        assert 1 <= len(key) <= 255
        assert key.isascii()
        assert key.isprintable()


# Rules, one by one


@pytest.mark.parametrize(
    ("reason", "broken"),
    [
        ("CANCELLATION", row(invoice="C536379", quantity="-1")),
        ("CANCELLATION", row(invoice="c536379")),
        ("ADJUSTMENT", row(invoice="A563185", sku="B", quantity="1", price="11062.06")),
        ("INVOICE_MISSING", row(invoice=" ")),
        ("INVOICE_TOO_LONG", row(invoice="9" * 65)),
        ("PRODUCT_MISSING", row(sku="")),
        ("PRODUCT_TOO_LONG", row(sku="s" * 65)),
        ("PRODUCT_UNPRINTABLE", row(sku="a\x00b")),
        ("CUSTOMER_TOO_LONG", row(customer="1" * 65)),
        ("QUANTITY_NEGATIVE", row(quantity="-10", price="0")),
        ("QUANTITY_ZERO", row(quantity="0")),
        ("QUANTITY_NOT_A_NUMBER", row(quantity="six")),
        ("QUANTITY_NOT_A_NUMBER", row(quantity="")),
        ("QUANTITY_NOT_A_NUMBER", row(quantity="1.5")),
        ("QUANTITY_NOT_A_NUMBER", row(quantity="1e3")),
        ("QUANTITY_NOT_A_NUMBER", row(quantity="٣")),
        ("QUANTITY_TOO_LARGE", row(quantity="1000001")),
        ("PRICE_ZERO", row(price="0")),
        ("PRICE_ZERO", row(price="-0.00")),
        ("PRICE_NEGATIVE", row(price="-11062.06")),
        ("PRICE_NOT_A_NUMBER", row(price="")),
        ("PRICE_NOT_A_NUMBER", row(price="NaN")),
        ("PRICE_NOT_A_NUMBER", row(price="1e2")),
        ("PRICE_NOT_A_NUMBER", row(price="Infinity")),
        ("PRICE_NOT_A_NUMBER", row(price="2.5.5")),
        ("PRICE_NOT_A_NUMBER", row(price="9" * 41)),
        ("PRICE_TOO_FINE", row(price="0.001")),
        ("AMOUNT_TOO_LARGE", row(price="99999999999999")),
        ("WRONG_COLUMN_COUNT", "536365,85123A,HOLDER,6"),
        ("WRONG_COLUMN_COUNT", row(description="NO,QUOTES")),
        ("BROKEN_QUOTING", row(description='"RECORD FRAME 7" SINGLE SIZE "')),
    ],
)
def test_row_that_cannot_be_sold_is_rejected_by_line_and_reason(reason: str, broken: str) -> None:
    export = export_of(row(invoice="1"), broken, row(invoice="2"))
    assert [(rejected.line, rejected.reason) for rejected in export.rejected_rows] == [(3, reason)]
    assert [invoice.number for invoice in export.invoices] == ["1", "2"]


@pytest.mark.parametrize(
    ("reason", "rows"),
    [
        ("COUNTRY_UNKNOWN", [row(country="Atlantis")]),
        ("COUNTRY_UNKNOWN", [row(country="")]),
        ("COUNTRY_UNKNOWN", [row(country="European Community")]),
        ("COUNTRY_CONFLICT", [row(country="France"), row(country="Germany")]),
        ("CUSTOMER_CONFLICT", [row(customer="1"), row(customer="2")]),
        ("TOO_MANY_PRODUCTS", [row(sku=f"p{n}") for n in range(1_001)]),
        ("QUANTITY_TOO_LARGE", [row(quantity="600000"), row(quantity="600000")]),
        ("AMOUNT_TOO_LARGE", [row(sku=sku, quantity="1", price="6000000000") for sku in "ab"]),
    ],
)
def test_invoice_that_cannot_be_an_order_is_rejected_with_its_good_rows_named(
    reason: str, rows: list[str]
) -> None:
    export = export_of(*rows)
    assert not export.invoices
    assert not export.rejected_rows
    assert [rejected.reason for rejected in export.rejected_invoices] == [reason]
    assert export.rejected_invoices[0].good_lines == tuple(range(2, 2 + len(rows)))


def test_invoice_is_placed_with_the_rows_that_can_be_sold() -> None:
    export = export_of(row(), row(sku="D", quantity="-1"), row(sku="71053", price="3.39"))
    assert [rejected.line for rejected in export.rejected_rows] == [3]
    assert export.invoices[0].quantities == {"71053": 6, "85123A": 6}
    assert export.invoices[0].amount_minor == 6 * 255 + 6 * 339


def test_invoice_without_a_row_that_can_be_sold_is_reported_once() -> None:
    export = export_of(row(quantity="0"), row(price="0"))
    assert [(one.number, one.reason) for one in export.rejected_invoices] == [
        ("536365", "NO_ROW_CAN_BE_SOLD")
    ]


def test_same_product_twice_in_an_invoice_is_added_up() -> None:
    invoice = export_of(row(quantity="2"), row(quantity="3", price="2.10")).invoices[0]
    assert invoice.quantities == {"85123A": 5}
    assert invoice.amount_minor == 2 * 255 + 3 * 210


def test_rows_of_an_invoice_may_be_scattered() -> None:
    export = export_of(row(invoice="1"), row(invoice="2"), row(invoice="1", sku="71053"))
    assert [(invoice.number, len(invoice.lines)) for invoice in export.invoices] == [("1", 2), ("2", 1)]


def test_missing_customer_is_no_obstacle_and_an_empty_one_no_conflict() -> None:
    export = export_of(row(invoice="1", customer=""), row(invoice="2", customer=""), row(invoice="2"))
    assert [invoice.customer_id for invoice in export.invoices] == ["", "17850"]


def test_price_finer_than_the_currency_is_fine_when_the_product_is_whole() -> None:
    assert export_of(row(quantity="8", price="0.125")).invoices[0].amount_minor == 100


@pytest.mark.parametrize(("currency", "minor"), [("GBP", 1530), ("JPY", 15), ("KWD", 15300)])
def test_minor_units_are_those_of_the_currency(currency: str, minor: int) -> None:
    price = "2.5" if currency == "JPY" else "2.55"
    _, export = read("\n".join([HEADER, row(price=price)]), currency)
    assert export.invoices[0].amount_minor == minor


@pytest.mark.parametrize("currency", ["XXX", "gbp", "", "BITCOIN"])
def test_unknown_currency_is_the_users_mistake(currency: str) -> None:
    with pytest.raises(AmountError):
        read(f"{HEADER}\n{row()}", currency)


# Files as they come


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_is_read_in_the_encodings_that_exports_have(encoding: str) -> None:
    reading, export = read("\r\n".join([HEADER, row(description="£5 CRÈME BRÛLÉE")]).encode(encoding))
    assert export.invoices[0].lines[0].description == "£5 CRÈME BRÛLÉE"
    assert reading.lines_not_utf8 == (encoding == "cp1252")


def test_one_line_in_another_encoding_does_not_spoil_the_others() -> None:
    lines = [
        HEADER.encode(),
        row(description="CRÈME").encode(),
        row(sku="b", description="£5").encode("cp1252"),
    ]
    reading, export = read(b"\n".join(lines))
    assert [line.description for line in export.invoices[0].lines] == ["CRÈME", "£5"]
    assert reading.lines_not_utf8 == 1


def test_line_numbers_stay_right_after_a_field_with_line_breaks() -> None:
    reading, export = read("\n".join([HEADER, row(description='"TWO\n""LINES"""'), "", row(price="0")]))
    assert export.invoices[0].lines[0].description == 'TWO\n"LINES"'
    assert [rejected.line for rejected in export.rejected_rows] == [5]
    assert (reading.lines, reading.blank_lines, reading.continuation_lines) == (5, 1, 1)


def test_stray_quotation_mark_costs_one_row() -> None:
    rows = [row(invoice=str(number)) for number in range(1, 40)]
    rows[4] = row(invoice="5", description='"STRAY')
    rows[9] = row(invoice="10", description='"WELL, QUOTED"')
    export = export_of(*rows)
    assert [(rejected.line, rejected.reason) for rejected in export.rejected_rows] == [(6, "BROKEN_QUOTING")]
    assert len(export.invoices) == 38


def test_rows_between_two_stray_quotation_marks_are_not_swallowed() -> None:
    rows = [row(invoice=str(number)) for number in range(1, 7)]
    rows[1] = row(invoice="2", description='"OPEN')
    rows[4] = row(invoice="5", description='CLOSE"')
    export = export_of(*rows)
    assert [(rejected.line, rejected.reason) for rejected in export.rejected_rows] == [(3, "BROKEN_QUOTING")]
    assert [invoice.number for invoice in export.invoices] == ["1", "3", "4", "5", "6"]


def test_broken_row_is_charged_to_its_invoice_only_when_the_number_is_beyond_doubt() -> None:
    export = export_of("536365,85123A", "and so on,and on")
    assert [rejected.invoice for rejected in export.rejected_rows] == ["536365", ""]
    assert [rejected.number for rejected in export.rejected_invoices] == ["536365"]


def test_columns_may_stand_in_any_order_and_under_the_other_headings() -> None:
    text = "Country,Customer ID,Price,extra,Quantity,StockCode,Invoice\nFrance,1,2.50,x,2,s,77\n"
    _, export = read(text)
    assert (export.invoices[0].number, export.invoices[0].amount_minor) == ("77", 500)
    assert export.invoices[0].country == "FR"


@pytest.mark.parametrize(
    "text", ["", "\n\n", "InvoiceNo,StockCode\n1,2\n", row(), HEADER + ",Price\n", "\x00\x01"]
)
def test_file_without_the_header_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(ExportError):
        read(text)


def test_header_alone_is_an_export_with_nothing_in_it() -> None:
    reading, export = read(HEADER)
    assert reading.rows == []
    assert export == Export()


# Countries


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("United Kingdom", "GB"),
        ("EIRE", "IE"),
        (" united  kingdom ", "GB"),
        ("RSA", "ZA"),
        ("USA", "US"),
        ("Czech Republic", "CZ"),
        ("Hong Kong", "HK"),
        ("Turkey", "TR"),
        ("NO", "NO"),
        ("Côte d'Ivoire", "CI"),
    ],
)
def test_country_names_of_shops_are_known(name: str, code: str) -> None:
    assert country_code(name) == code


@pytest.mark.parametrize(
    "name", ["", "Unspecified", "European Community", "Channel Islands", "Korea", "826", "Z"]
)
def test_name_that_is_not_one_country_is_never_guessed(name: str) -> None:
    with pytest.raises(CountryError):
        country_code(name)


def test_user_may_teach_a_name() -> None:
    assert country_code("Channel  Islands", {"channel islands": "JE"}) == "JE"


# Plans


def test_plan_is_the_same_for_the_same_invoices_in_another_encoding_and_order() -> None:
    rows = [row(invoice="1", description="£5"), row(invoice="2"), row(invoice="1", sku="71053")]
    one = read("\n".join([HEADER, *rows]))[1]
    other = read("\r\n".join([HEADER, *reversed(rows)]).encode("utf-16"))[1]
    assert invoices_digest(one.invoices) == invoices_digest(other.invoices)
    first, second = (make_plan(export.invoices, "m", "tok_visa") for export in (one, other))
    assert sorted(map(str, first.orders)) == sorted(map(str, second.orders))


def test_plan_stocks_what_all_invoices_need_together() -> None:
    export = export_of(
        row(invoice="1", quantity="6"), row(invoice="2", quantity="4"), row(invoice="C3", quantity="-9")
    )
    plan = make_plan(export.invoices, "m", "tok_visa")
    assert [(item.request.sku, item.request.initial_quantity) for item in plan.products] == [("85123A", 10)]
    assert [item.request.quantity for item in plan.top_ups] == [10]
    assert [item.idempotency_key for item in plan.orders] == ["invoice/1", "invoice/2"]
    assert [item.request.order_reference for item in plan.orders] == ["1", "2"]


# The real file


@pytest.mark.skipif(not REAL_FILE.exists(), reason="the real invoice export is not at hand")
def test_real_export_adds_up_to_what_a_plain_reader_finds() -> None:
    with REAL_FILE.open(encoding="utf-8", newline="") as opened:
        plain = list(csv.DictReader(opened))
    reading, export = read(REAL_FILE.read_bytes())
    assert summarize(reading, export, "GBP", []).adds_up()
    assert len(reading.rows) == len(plain)
    assert all(isinstance(found, Row) for found in reading.rows)
    numbers = {one["InvoiceNo"] for one in plain}
    assert len(export.invoices) + len(export.rejected_invoices) == len(numbers)

    sold = [
        one
        for one in plain
        if one["InvoiceNo"].isdigit() and int(one["Quantity"]) > 0 and Fraction(one["UnitPrice"]) > 0
    ]
    total = sum((int(one["Quantity"]) * Fraction(one["UnitPrice"]) for one in sold), Fraction())
    assert Fraction(sum(invoice.amount_minor for invoice in export.invoices), 100) == total
    assert {invoice.number for invoice in export.invoices} == {one["InvoiceNo"] for one in sold}
    assert len(export.rejected_rows) == len(plain) - len(sold)
