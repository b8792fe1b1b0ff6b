"""Writes ISO 20022 camt.053.001.08. Pure.

References are at most 35 characters there, and the mesh's are longer. One that does not fit is "NOTPROVIDED" in its own
element, and stands in the remittance information behind a mark, as in MT940: /EREF/ the customer's, /SREF/ the bank's,
/PREF/ that of the settlement.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from xml.sax.saxutils import escape

from sandbox.bank.statements.statement import Entry, Head, Kind, Part, decimal_text, one_line
from services.kit.money import exponent

NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:camt.053.001.08"
SHORT_LENGTH_MAX = 35
TEXT_LENGTH_MAX = 140

_CODES = {
    Kind.CAPTURE: ("MCRD", "POSP"),
    Kind.REFUND: ("MCRD", "DAJT"),
    Kind.SETTLEMENT: ("MCRD", "OTHR"),
    Kind.PAYOUT: ("ICDT", "DMCT"),
    Kind.OTHER: ("OTHR", "OTHR"),
}


class CamtWriter:
    """See `Writer`."""

    def __init__(self) -> None:
        self._places = 2
        self._currency = ""

    def begin_file(self, day: date) -> bytes:
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<Document xmlns="{NAMESPACE}"><BkToCstmrStmt><GrpHdr><MsgId>PAYMESH-{day:%Y%m%d}</MsgId>'
            f"<CreDtTm>{day}T23:59:59Z</CreDtTm></GrpHdr>\n"
        ).encode()

    def begin(self, head: Head) -> bytes:
        self._currency = head.currency
        self._places = exponent(head.currency)
        return (
            f"<Stmt><Id>{escape(head.statement_id)}</Id><ElctrncSeqNb>{head.number}</ElctrncSeqNb>"
            f"<CreDtTm>{head.day}T23:59:59Z</CreDtTm>"
            f"<Acct><Id><Othr><Id>{escape(head.account)}</Id></Othr></Id><Ccy>{head.currency}</Ccy></Acct>\n"
            f"{self._balance('OPBD', head.opening_minor, head.opened_on)}"
            f"{self._balance('CLBD', head.closing_minor, head.day)}"
        ).encode()

    def entry(self, entry: Entry) -> bytes:
        whole = entry.whole
        parts = entry.parts or (whole,)
        batch = self._batch(entry) if entry.parts else ""
        return (
            f"<Ntry>{self._amount(whole.amount_minor)}<Sts><Cd>BOOK</Cd></Sts>"
            f"<BookgDt><Dt>{entry.booked_on}</Dt></BookgDt><ValDt><Dt>{entry.value_on}</Dt></ValDt>"
            f"{_short('AcctSvcrRef', whole.bank_reference)}{_code(whole.kind)}"
            f"<NtryDtls>{batch}{''.join(self._transaction(part) for part in parts)}</NtryDtls></Ntry>\n"
        ).encode()

    def end(self) -> bytes:
        return b"</Stmt>\n"

    def end_file(self) -> bytes:
        return b"</BkToCstmrStmt></Document>\n"

    def _balance(self, code: str, amount_minor: int, day: date) -> str:
        return (
            f"<Bal><Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp>{self._amount(amount_minor)}"
            f"<Dt><Dt>{day}</Dt></Dt></Bal>\n"
        )

    def _amount(self, amount_minor: int, name: str = "Amt") -> str:
        direction = "CRDT" if amount_minor >= 0 else "DBIT"
        return (
            f'<{name} Ccy="{self._currency}">{decimal_text(amount_minor, self._places, ".")}</{name}>'
            f"<CdtDbtInd>{direction}</CdtDbtInd>"
        )

    def _batch(self, entry: Entry) -> str:
        return (
            f"<Btch>{_short('PmtInfId', entry.whole.batch_reference)}<NbOfTxs>{len(entry.parts)}</NbOfTxs>"
            f"{self._amount(entry.whole.amount_minor, 'TtlAmt')}</Btch>"
        )

    def _transaction(self, part: Part) -> str:
        references = "".join(
            _short(name, reference)
            for name, reference in (
                ("AcctSvcrRef", part.bank_reference),
                ("PmtInfId", part.batch_reference),
                ("EndToEndId", part.reference if len(part.reference) <= SHORT_LENGTH_MAX else "NOTPROVIDED"),
            )
        )
        charges = ""
        if part.fee_minor:
            charges = (
                f"<Chrgs><Rcrd>{self._amount(-part.fee_minor)}<ChrgInclInd>true</ChrgInclInd></Rcrd></Chrgs>"
            )
        remittance = "".join(f"<Ustrd>{escape(text)}</Ustrd>" for text in _remittance(part))
        return (
            f"<TxDtls>{f'<Refs>{references}</Refs>' if references else ''}{self._amount(part.amount_minor)}"
            f"{_code(part.kind)}{charges}{f'<RmtInf>{remittance}</RmtInf>' if remittance else ''}</TxDtls>"
        )


def _remittance(part: Part) -> Iterator[str]:
    for mark, reference in (
        ("EREF", part.reference),
        ("SREF", part.bank_reference),
        ("PREF", part.batch_reference),
    ):
        if len(reference) > SHORT_LENGTH_MAX:
            yield f"/{mark}/{reference}"
    if text := one_line(part.text, TEXT_LENGTH_MAX):
        yield text


def _short(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>" if 0 < len(text) <= SHORT_LENGTH_MAX else ""


def _code(kind: Kind) -> str:
    family, sub_family = _CODES[kind]
    inside = f"<Cd>{family}</Cd><SubFmlyCd>{sub_family}</SubFmlyCd>"
    return f"<BkTxCd><Domn><Cd>PMNT</Cd><Fmly>{inside}</Fmly></Domn></BkTxCd>"
