"""What the sandbox bank writes is what the reconciler reads, in every format, for any statement; and it is what others
take for the format: libxml2 by a schema, and the packages that read MT940, BAI2 and camt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import mt940
import pytest
from bai2 import bai2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree
from pycamt.parser import Camt053Parser

from sandbox.bank.statements import bai2 as bai2_writer
from sandbox.bank.statements import mt940 as mt940_writer
from sandbox.bank.statements.formats import WRITERS
from sandbox.bank.statements.statement import (
    Entry,
    Head,
    Kind,
    Part,
    account_number,
    decimal_text,
    is_printable_reference,
    one_line,
    write,
)
from services.reconciler.domain.statement import Closed, Line, Opened
from services.reconciler.statements.exact import minor_units
from tests.depth import examples
from tests.statements import read

DAY = date(2026, 11, 26)
EXAMPLES = examples(10, 250)
OFFICIAL_SCHEMA = os.environ.get("PAYMESH_CAMT_SCHEMA", "")
"""A file: ISO 20022's own camt.053.001.08.xsd, which may not be copied into a project."""

references = st.lists(
    st.sampled_from(["pay_019ab2c4f3d07c61b6a3f2f1d9a4e5b7", "capture", "3", "X.y:z", "a+b", "_", "q-"]),
    min_size=1,
    max_size=4,
).map(lambda pieces: "/".join(pieces)[:120]).filter(is_printable_reference) | st.sampled_from(
    ["x" * n for n in (1, 16, 35, 36, 120)]
)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co")), max_size=40
) | st.sampled_from(
    [
        "a /REMI/ b",
        "-}",
        ":61: x " * 20,
        "x" * 200,
        "- " * 60,
        "/EREF/",
        "?00 ?20",
        ",,,/",
        "\t\r\n",
        "<&>\"'",
    ]
)


@st.composite
def parts(draw: st.DrawFn, kinds: st.SearchStrategy[Kind], batch: str | None = None) -> Part:
    return Part(
        draw(kinds),
        draw(st.integers(-(10**12), 10**12)),
        draw(st.integers(0, 1000)),
        draw(st.just("") | references),
        draw(references),
        draw(st.just("") | references) if batch is None else batch,
        draw(texts),
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    value_on = DAY + timedelta(days=draw(st.integers(-40, 40)))
    whole = draw(parts(st.sampled_from(Kind)))
    if not draw(st.booleans()):
        return Entry(whole, DAY, value_on)
    batch = draw(references)
    inside = tuple(
        draw(st.lists(parts(st.sampled_from([Kind.CAPTURE, Kind.REFUND]), batch), min_size=1, max_size=5))
    )
    total = sum(part.amount_minor for part in inside)
    whole = whole._replace(kind=Kind.SETTLEMENT, amount_minor=total, fee_minor=0, batch_reference=batch)
    return Entry(whole, DAY, value_on, inside)


@st.composite
def statements(draw: st.DrawFn) -> list[tuple[Head, list[Entry]]]:
    made = []
    currencies = draw(
        st.lists(st.sampled_from(["EUR", "USD", "JPY", "KWD"]), min_size=1, max_size=3, unique=True)
    )
    for currency in currencies:
        listed = draw(st.lists(entries(), max_size=6))
        opening = draw(st.integers(-(10**12), 10**12))
        closing = opening + sum(entry.whole.amount_minor for entry in listed)
        account = account_number(draw(st.sampled_from(["shop", "a-very-long-name_" * 3])), currency)
        made.append((Head(330, account, currency, DAY - timedelta(days=1), opening, DAY, closing), listed))
    return made


CAMT_KINDS = {
    Kind.CAPTURE: "PMNT.MCRD.POSP",
    Kind.REFUND: "PMNT.MCRD.DAJT",
    Kind.SETTLEMENT: "PMNT.MCRD.OTHR",
    Kind.PAYOUT: "PMNT.ICDT.DMCT",
    Kind.OTHER: "PMNT.OTHR.OTHR",
}


def expected(name: str, made: list[tuple[Head, list[Entry]]]) -> list[tuple[object, ...]]:
    """What a reader of the format can know of statements: an independent account of every format's limits."""
    known: list[tuple[object, ...]] = []
    for head, listed in made:
        identity = head.statement_id
        opened_on, kind_of = head.opened_on, str
        if name == "mt940":
            identity = f"330/1@{head.opened_on}"
        if name == "bai2":
            identity, opened_on = f"PAYMESH-{DAY:%Y%m%d}", DAY
        known.append((identity, head.account, head.currency, head.opening_minor, opened_on))
        for entry in listed:
            shown = (entry.parts or (entry.whole,)) if name == "camt053" else (entry.whole,)
            for part in shown:
                text = one_line(part.text, 140)
                if name == "mt940":
                    text = mt940_writer.plain(part.text)
                if name == "bai2":
                    text = bai2_writer.plain(part.text)
                    if part.batch_reference:
                        text = f"BATCH={part.batch_reference} {text}".strip()
                known.append(
                    (
                        entry.booked_on,
                        entry.value_on,
                        part.amount_minor,
                        head.currency,
                        part.reference,
                        part.bank_reference,
                        part.batch_reference,
                        CAMT_KINDS[part.kind]
                        if name == "camt053"
                        else kind_of(part.kind)
                        if name == "csv"
                        else None,
                        text,
                    )
                )
        known.append((head.closing_minor, DAY))
    return known


def known_of(name: str, data: bytes) -> Iterator[tuple[object, ...]]:
    for event in read(data):
        if isinstance(event, Opened):
            yield event[:5]
        elif isinstance(event, Line):
            kind = event.kind if name in {"camt053", "csv"} else None
            yield (*event[1:8], kind, event.text)
        else:
            yield event[:2]


def file_of(name: str, made: list[tuple[Head, list[Entry]]]) -> bytes:
    return b"".join(write(WRITERS[name](), DAY, made))


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(statements())
def test_any_statement_is_read_as_it_was_written(name: str, made: list[tuple[Head, list[Entry]]]) -> None:
    assert list(known_of(name, file_of(name, made))) == expected(name, made)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(statements())
def test_camt_is_valid_by_the_schema(made: list[tuple[Head, list[Entry]]]) -> None:
    document = etree.fromstring(file_of("camt053", made))
    for schema in schemas():
        schema.assertValid(document)


def schemas() -> list[etree.XMLSchema]:
    """Our own schema of what the bank writes, and ISO's where it is at hand."""
    files = [Path(__file__).parents[1] / "camt.053.001.08.subset.xsd"]
    if OFFICIAL_SCHEMA:
        files.append(Path(OFFICIAL_SCHEMA))
    return [etree.XMLSchema(etree.parse(str(file))) for file in files]


def test_the_schema_refuses_what_the_standard_does() -> None:
    good = file_of("camt053", [(head(), [entry()])]).decode()
    for old, new in (
        ("<Sts><Cd>BOOK</Cd></Sts>", ""),
        ("CRDT", "CREDIT"),
        ('Ccy="EUR"', ""),
        ('<Amt Ccy="EUR">1.00</Amt><CdtDbtInd>CRDT</CdtDbtInd><Sts>', "<CdtDbtInd>CRDT</CdtDbtInd><Sts>"),
        ("2026-11-26</Dt>", "26.11.2026</Dt>"),
        ("<Ustrd>", f"<Ustrd>{'x' * 140}"),
        ("<Id>shop", f"<Id>{'x' * 35}shop"),
    ):
        assert old in good
        document = etree.fromstring(good.replace(old, new).encode())
        assert not any(schema.validate(document) for schema in schemas()), old


def head(closing_minor: int = 100) -> Head:
    return Head(330, "shop.EUR", "EUR", DAY - timedelta(days=1), 0, DAY, closing_minor)


def entry(amount_minor: int = 100, text: str = "Order 17") -> Entry:
    part = Part(Kind.CAPTURE, amount_minor, 0, "pay_1/capture/3", "cap_1", "batch_1", text)
    return Entry(part, DAY, DAY)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(statements())
def test_other_readers_see_the_same_amounts(made: list[tuple[Head, list[Entry]]]) -> None:
    wanted = [entry.whole.amount_minor for _, listed in made for entry in listed]
    places = [minor for head, listed in made for minor in [_places(head.currency)] * len(listed)]

    (group,) = bai2.parse_from_string(file_of("bai2", made).decode()).children
    theirs = [
        -t.amount if t.type_code.transaction.value == "debit" else t.amount
        for account in group.children
        for t in account.children
    ]
    assert theirs == wanted

    parsed = mt940.parse_statements(file_of("mt940", made).decode(), options=mt940.Options.all())
    amounts = [line.data["amount"].amount for statement in parsed for line in statement.transactions]
    assert [minor_units(str(a), p) for a, p in zip(amounts, places, strict=True)] == wanted

    details = [
        (part.amount_minor, _places(head.currency))
        for head, listed in made
        for entry in listed
        for part in entry.parts or (entry.whole,)
    ]
    said = Camt053Parser(file_of("camt053", made)).get_transactions()
    signed = [
        minor_units(str(s["Amount"]), places) * (1 if s["CreditDebitIndicator"] == "CRDT" else -1)
        for s, (_, places) in zip(said, details, strict=True)
    ]
    assert signed == [amount_minor for amount_minor, _ in details]


def _places(currency: str) -> int:
    return {"EUR": 2, "USD": 2, "JPY": 0, "KWD": 3}[currency]


def test_a_statement_of_nothing_is_written_and_read() -> None:
    for name in WRITERS:
        events = read(file_of(name, [(head(0), [])]))
        assert [type(event) for event in events] == [Opened, Closed]


def test_amounts_have_the_decimals_of_their_currency() -> None:
    assert [decimal_text(minor, 2, ".") for minor in (0, 5, -5, 123456)] == [
        "0.00",
        "0.05",
        "0.05",
        "1234.56",
    ]
    assert [decimal_text(1234, places, ",") for places in (0, 2, 3)] == ["1234,", "12,34", "1,234"]


def test_accounts_of_different_merchants_have_different_numbers() -> None:
    names = ["shop", "sh-op", "sh_op", "x" * 31, "x" * 32, "x" * 33, "X" * 64]
    numbers = {account_number(name, "EUR") for name in names}
    assert len(numbers) == len(names)
    assert all(len(number) <= 34 for number in numbers)


@pytest.mark.parametrize("reference", ["", "a,b", "a/", "-a", "a b", "/EREF/x", "a/REMI/b", "ü", "x" * 121])
def test_a_reference_that_not_every_format_can_carry_is_known(reference: str) -> None:
    assert not is_printable_reference(reference)
    assert is_printable_reference("pay_019ab2c4f3d07c61b6a3f2f1d9a4e5b7/capture/3")
