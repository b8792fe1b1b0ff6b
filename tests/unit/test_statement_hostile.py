"""Files that nobody should send: bombs, other encodings, damage of every kind. They are refused, or read, and that is
all: no other exception, no hang, no memory that grows with the file.

The size of the large files is PAYMESH_STATEMENT_TEST_MB (default 4): `PAYMESH_STATEMENT_TEST_MB=1024` reads a gigabyte
in each format. `depth` says how many damaged files there are of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from io import BytesIO
from itertools import cycle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.reconciler.domain.statement import (
    BALANCE_MINOR_MAX,
    Closed,
    Event,
    Line,
    Opened,
    Refusal,
    checked,
)
from services.reconciler.statements.formats import FORMATS, read_statement
from tests.depth import examples
from tests.statements import CAMT, LARGE, SAMPLES, Endless, camt, drain, lines, read, refusal
from tests.verify.repository import ROOT

LARGE_MB = int(os.environ.get("PAYMESH_STATEMENT_TEST_MB", "4"))
MEMORY_MB_MAX = 48
"""Most that reading may add to what the process has held before."""


LAUGHS = '<!ENTITY a "lol">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
LAUGHING = CAMT.replace("<Document", f"<!DOCTYPE Document [{LAUGHS}]><Document", 1)
BOMBS = {
    "billion laughs": LAUGHING.replace("12.34", "&j;"),
    "laughs in an attribute": LAUGHING.replace('"EUR"', '"&j;"'),
    "external entity": CAMT.replace(
        "<Document", '<!DOCTYPE Document [<!ENTITY x SYSTEM "file:///etc/passwd">]><Document', 1
    ).replace("Order 17", "&x;"),
    "external subset": CAMT.replace("<Document", '<!DOCTYPE Document SYSTEM "http://127.0.0.1:9/x.dtd"><Document', 1),
    "parameter entity": CAMT.replace(
        "<Document", '<!DOCTYPE Document [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]><Document', 1
    ),
    "quadratic": CAMT.replace("<Document", f'<!DOCTYPE Document [<!ENTITY x "{"x" * 50_000}">]><Document', 1).replace(
        "Order 17", "&x;" * 50_000
    ),
    "an entity behind a long comment": CAMT.replace(
        "<Document", f'<!--{"x" * 600_000}--><!DOCTYPE Document [<!ENTITY x "1">]><Document', 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.timeout(20)
def test_a_document_type_is_refused_whatever_is_in_it(name: str, encoding: str) -> None:
    assert refusal(BOMBS[name].encode(encoding)).field == "DOCTYPE"


STRUCTURES = {
    "deep": (CAMT.replace("Order 17", "<a>" * 5_000 + "</a>" * 5_000), "XML"),
    "a gigantic attribute": (CAMT.replace("<Ntry>", f'<Ntry x="{"y" * 11_000_000}">', 1), "Document"),
    "a gigantic text": (CAMT.replace("Order 17", "y" * 11_000_000), "Document"),
    "not closed": (CAMT[: CAMT.index("</Ntry>")], "XML"),
    "an entity that nobody declared": (CAMT.replace("Order 17", "&x;"), "XML"),
    "a character that XML does not have": (CAMT.replace("Order 17", "\x01"), "XML"),
    "a reference to one": (CAMT.replace("Order 17", "&#0;"), "XML"),
    "another document": ("<html><body>504 Gateway Time-out</body></html>", "BkToCstmrStmt/Stmt"),
    "nothing in it": ("<Document/>", "BkToCstmrStmt/Stmt"),
    "not XML at all": ("< this is not XML", "XML"),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.timeout(20)
def test_xml_that_is_no_statement_is_refused(name: str) -> None:
    text, field = STRUCTURES[name]
    assert refusal(text).field == field


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_xml_is_read_in_the_encoding_that_it_has(encoding: str) -> None:
    text = CAMT.replace("Order 17", "Grüße")
    if encoding == "latin-1":
        text = text.replace("UTF-8", "ISO-8859-1")
    assert lines(text.encode(encoding))[0].text == "Grüße"


def test_xml_that_is_not_in_the_encoding_that_it_names_is_refused() -> None:
    assert refusal(CAMT.replace("Order 17", "Grüße").encode("latin-1")).field == "XML"
    assert refusal(CAMT.replace("UTF-8", "UTF-99")).field == "XML"


@pytest.mark.parametrize("name", ["mt940", "bai2", "csv"])
def test_a_nul_byte_in_text_is_refused_with_its_line(name: str) -> None:
    data = SAMPLES[name].encode()
    cut = data.index(b"\n", data.index(b"\n", len(data) // 2) + 1) - 3
    refused = refusal(data[:cut] + b"\0" + data[cut:])
    assert (refused.line, refused.field) == (data[:cut].count(b"\n") + 1, "encoding")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 100, "ZIP"),
        (b"\x1f\x8b" + b"\0" * 100, "gzip"),
        (b"%PDF-1.7", "PDF"),
        (b"\0" * 1000, "NUL"),
        (b"\xff\xfe\x00", "UTF-16"),
        (b"hello", "column map"),
        (b"\n\n\n", "column map"),
        (b"x" * 3_000_000, "column map"),
    ],
)
def test_what_is_no_statement_says_what_it_is(data: bytes, said: str) -> None:
    assert said in str(refusal(data))


@pytest.mark.parametrize("name", SAMPLES)
@settings(
    max_examples=examples(20, 1_000),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.data())
def test_damage_of_any_kind_gives_values_or_a_refusal_and_never_anything_else(
    name: str, data: st.DataObject
) -> None:
    damaged = bytearray(
        SAMPLES[name].encode(data.draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16"])))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged)))
        length = data.draw(st.sampled_from([0, 0, 1, 2, 30]))
        other = data.draw(st.integers(0, len(damaged)))
        damaged[place : place + length] = data.draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    [
                        b"0",
                        b"9" * 30,
                        b"-",
                        b",",
                        b"/",
                        b"\n",
                        b"\r",
                        b'"',
                        b"&",
                        b"<",
                        b"\xc3",
                        b":61:",
                        b"88,",
                    ]
                ),
                st.just(bytes(damaged[other : other + 40])),
            )
        )
    chosen = data.draw(st.sampled_from(["", name]))
    refused: Refusal | None = None
    events: list[Event] = []
    try:
        events = list(checked(read_statement(BytesIO(bytes(damaged)), name="a file", format_name=chosen)))
    except Refusal as why:
        refused = why
    if refused is not None:
        assert refused.field
        assert refused.reason
        assert len(str(refused)) < 1_000
        assert refused.line >= 0
    # What was read before a refusal is thrown away by whoever reads.
    for event in events:
        if isinstance(event, Line):
            assert abs(event.amount_minor) <= BALANCE_MINOR_MAX
            assert len(event.currency) == 3
        elif isinstance(event, Opened):
            assert event.statement_id
            assert event.account
        assert "\0" not in "".join(field for field in event if isinstance(field, str))


READ_LARGE = """
import json, resource, sys
from services.reconciler.domain.statement import Refusal
from tests.statements import LARGE, Endless, drain
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
name, size = sys.argv[1], int(sys.argv[2]) * 1024 * 1024
head, piece, tail = (part.encode() for part in LARGE[name])
try:
    count, refused = drain(Endless(head, piece, size, tail), name), ""
except Refusal as why:
    count, refused = 0, str(why)
print(json.dumps([count, refused, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024]))
"""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.timeout(3600)
def test_a_large_file_takes_no_more_memory_than_a_small_one(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_LARGE, name, str(LARGE_MB)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}"},
        capture_output=True,
        check=True,
        text=True,
    )
    count, refused, grown_mb = json.loads(done.stdout)
    assert grown_mb < MEMORY_MB_MAX
    if name == "bai2":
        # Its trailers would have to state the sums.
        assert "record 99" in refused
    else:
        assert refused == ""
        assert count > 0.9 * LARGE_MB * 1024 * 1024 / len(LARGE[name][1])


SILENT = {
    "an entry that does not end": ("<Ntry>", "<Junk/>"),
    "a text that does not end": ("<Ntry><AddtlNtryInf>", "y" * 50),
    "elements that nobody knows": ("", "<Junk><Ntry/></Junk>"),
    "entries in the wrong place": ("<Junk>", "<Ntry><Amt/></Ntry>"),
    "transactions in the wrong place": ("<Ntry>", "<Junk><NtryDtls><TxDtls/></NtryDtls></Junk>"),
    "one entry with a million transactions": ("<Ntry>", "<NtryDtls><TxDtls/></NtryDtls>"),
    "balances without an end": ("", CAMT[CAMT.index("<Bal>") : CAMT.index("</Bal>") + 6]),
    "depth": ("", "<a>"),
    "comments": ("", "<!-- nothing -->"),
    "white space": ("", " " * 50),
}


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.timeout(60)
def test_a_document_that_goes_on_and_says_nothing_is_refused_before_it_fills_the_memory(name: str) -> None:
    head, piece = SILENT[name]
    began = time.monotonic()
    with pytest.raises(Refusal):
        drain(Endless((CAMT[: CAMT.index("<Ntry>")] + head).encode(), piece.encode(), 12 * 1024 * 1024))
    assert time.monotonic() - began < 50


def test_lines_without_an_end_are_refused() -> None:
    for head in (b":20:A\n:25:", b"01,", b'"'):
        with pytest.raises(Refusal):
            drain(Endless(head, b"x" * 1000, 12 * 1024 * 1024))


def test_a_field_of_mt940_without_an_end_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        drain(Endless(LARGE["mt940"][0].encode() + b":86:", b"goes on\n", 12 * 1024 * 1024))
    assert caught.value.field == ":86:"


def test_events_come_while_the_file_is_read() -> None:
    head, piece, _ = LARGE["camt053"]
    stream = Endless(head.encode(), piece.encode(), 1 << 60)
    events = read_statement(stream, name="a file")  # type: ignore[arg-type]
    assert isinstance(next(events), Opened)
    for number, event in zip(range(1, 5_000), events, strict=False):
        assert isinstance(event, Line)
        assert event.number == number


def test_a_statement_of_nothing_is_one() -> None:
    assert [type(event) for event in read(camt())] == [Opened, Closed]


def test_every_sample_is_read() -> None:
    for _, data in zip(range(len(SAMPLES)), cycle(SAMPLES.values()), strict=False):
        assert lines(data)
