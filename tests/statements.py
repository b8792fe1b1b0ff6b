"""Bank statements for tests: small ones in all formats, written by hand, and how to read them."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from services.reconciler.domain.statement import Event, Line, Refusal, checked
from services.reconciler.statements.columns import ColumnMap
from services.reconciler.statements.formats import read_statement

REAL_FILES = Path(__file__).parents[2] / "shared" / "data" / "statements"
NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:camt.053.001."


def read(data: bytes | str, *maps: ColumnMap, accept_unproved: bool = False) -> list[Event]:
    """All events of a file. Raises Refusal."""
    stream = BytesIO(data.encode() if isinstance(data, str) else data)
    return list(checked(read_statement(stream, name="a file", maps=maps), accept_unproved=accept_unproved))


def lines(data: bytes | str, *maps: ColumnMap) -> list[Line]:
    return [event for event in read(data, *maps) if isinstance(event, Line)]


def refusal(data: bytes | str, *maps: ColumnMap) -> Refusal:
    """Why a file is refused."""
    with pytest.raises(Refusal) as caught:
        read(data, *maps)
    return caught.value


def camt(
    *entries: str, closing: str = "0.00", version: str = "08", extra: str = "", balances: str | None = None
) -> str:
    """A document with one statement in EUR that opens with 0.00; each part on its own line, entries from line 8."""
    if balances is None:
        balances = balance("OPBD", "0.00") + balance("CLBD", closing)
    inside = "\n".join(entries)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Document xmlns="{NAMESPACE}{version}"><BkToCstmrStmt>\n'
        "<GrpHdr><MsgId>M1</MsgId><CreDtTm>2026-11-26T23:59:00</CreDtTm></GrpHdr>\n"
        "<Stmt><Id>S1</Id>\n"
        "<Acct><Id><IBAN>GB00 PAYM 0000 0001</IBAN></Id><Ccy>EUR</Ccy></Acct>\n"
        f"{balances}\n{extra}\n{inside}\n</Stmt></BkToCstmrStmt></Document>\n"
    )


def balance(
    code: str, amount: str, direction: str = "CRDT", currency: str = "EUR", day: str = "2026-11-26"
) -> str:
    return (
        f"<Bal><Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp>"
        f'<Amt Ccy="{currency}">{amount}</Amt><CdtDbtInd>{direction}</CdtDbtInd><Dt><Dt>{day}</Dt></Dt></Bal>'
    )


def entry(
    amount: str, inside: str = "", *, direction: str = "CRDT", currency: str = "EUR", status: str = "<Cd>BOOK</Cd>",
    dates: str = "<BookgDt><Dt>2026-11-26</Dt></BookgDt><ValDt><Dt>2026-11-27</Dt></ValDt>",
) -> str:  # fmt: skip
    return (
        f'<Ntry><Amt Ccy="{currency}">{amount}</Amt><CdtDbtInd>{direction}</CdtDbtInd><Sts>{status}</Sts>{dates}'
        f"<AcctSvcrRef>B1</AcctSvcrRef><BkTxCd><Domn><Cd>PMNT</Cd><Fmly><Cd>RCDT</Cd><SubFmlyCd>ESCT</SubFmlyCd></Fmly>"
        f"</Domn></BkTxCd>{inside}</Ntry>"
    )


def details(*transactions: str, batch: str = "") -> str:
    return f"<NtryDtls>{batch}{''.join(transactions)}</NtryDtls>"


def transaction(
    reference: str, amount: str = "", *, direction: str = "", currency: str = "EUR", text: str = ""
) -> str:
    said = f'<Amt Ccy="{currency}">{amount}</Amt>' if amount else ""
    said += f"<CdtDbtInd>{direction}</CdtDbtInd>" if direction else ""
    said += f"<RmtInf><Ustrd>{text}</Ustrd></RmtInf>" if text else ""
    return f"<TxDtls><Refs><EndToEndId>{reference}</EndToEndId></Refs>{said}</TxDtls>"


MT940 = """\
{1:F01PAYMGB2LAXXX0000000000}{2:O9401200261126PAYMGB2LAXXX00000000002611261200N}{4:
:20:STMT261126
:25:GB00PAYM00000001
:28C:330/1
:60F:C261125EUR1000,00
:61:2611271126C12,34NTRFNONREF//B1
:86:/EREF/pay_1/PREF/batch_7/REMI/Order 17, two mu
gs
:61:2611261126RC2,34NCHGfee-1//B2
take back
:86:free text
:62F:C261126EUR1010,00
-}
"""

BAI2 = """\
01,PAYMESH,SHOP,261126,2359,1,80,,2/
02,SHOP,PAYMESH,1,261126,2359,USD,2/
03,123456789,USD,010,+10000,,,015,+12500,,/
88,100,5000,2,,400,2500,1,/
16,195,3000,V,261127,,B1,pay_1,first text, with a comma
88, goes on
16,195,2000,0,B2,pay_2/
16,495,2500,Z,B3,pay_3,BATCH=batch_7 text/
49,37500,7/
98,37500,1,9/
99,37500,1,11/
"""

CSV = """\
record,statement,account,currency,booking date,value date,amount,reference,bank reference,batch reference,kind,text
opening,S1,A1,EUR,2026-11-25,,10.00,,,,,
line,S1,A1,EUR,2026-11-26,2026-11-27,-1.50,pay_1,B1,batch_7,FEE,"a ""quoted"", text"
line,S1,A1,EUR,2026-11-26,,2,pay_2,,,,
closing,S1,A1,EUR,2026-11-26,,10.50,,,,,
"""

CAMT = camt(
    entry("12.34", details(transaction("pay_1", text="Order 17"))),
    entry("2.34", direction="DBIT"),
    closing="10.00",
)

SAMPLES = {"camt053": CAMT, "mt940": MT940, "bai2": BAI2, "csv": CSV}


class Endless:
    """A stream that goes on, without ever being in memory: what comes first, then pieces over and over."""

    def __init__(self, head: bytes, piece: bytes, size: int, tail: bytes = b"") -> None:
        self._chunks = self._made(head, piece, size, tail)
        self._rest = b""

    @staticmethod
    def _made(head: bytes, piece: bytes, size: int, tail: bytes) -> Iterator[bytes]:
        yield head
        block = piece * max(1, 65536 // len(piece))
        for _ in range(size // len(block)):
            yield block
        if tail:
            yield tail

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = chunk
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def drain(stream: object, format_name: str = "") -> int:
    """How many events a stream has, its balance checked."""
    events = read_statement(cast("BinaryIO", stream), name="a file", format_name=format_name)
    return len([None for _ in checked(events)])


LARGE = {
    "camt053": (
        camt().partition("</Stmt>")[0],
        entry("0.00", "<NtryDtls><TxDtls/></NtryDtls>") + "\n",
        "</Stmt></BkToCstmrStmt></Document>",
    ),
    "mt940": (
        ":20:A\n:25:B\n:28C:1\n:60F:C261126EUR0,\n",
        ":61:261126C0,NTRFpay_1//B1\n:86:/EREF/pay_1/REMI/Order 17\n",
        ":62F:C261126EUR0,\n-\n",
    ),
    "bai2": (
        "01,A,B,261126,0000,1,,,2/\n02,B,A,1,261126,,EUR,2/\n03,C,EUR,010,0,,,015,0,,/\n",
        "16,195,0,Z,B1,pay_1,Order 17\n",
        "",
    ),
    "csv": (
        SAMPLES["csv"].split("\n")[0] + "\nopening,S,A,EUR,2026-11-26,,0,,,,,\n",
        "line,S,A,EUR,2026-11-26,2026-11-27,0.00,pay_1,B1,b,k,Order 17\n",
        "closing,S,A,EUR,2026-11-26,,0,,,,,\n",
    ),
}
"""What comes first, what comes over and over, and what comes last."""
