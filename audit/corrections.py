"""Corrections as two databases have them: what two people have agreed on in a case, and what payment has posted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from audit.merge import Key, Stream, merge
from audit.snapshot import Snapshots

# Cases that are corrected or about to be; a case names a correction by its own identifier.
_CASES = """
SELECT merchant_id, 'case_' || case_no AS id, state, outcome, version, journal_id, debit_account, credit_account,
       correct_minor, correct_currency::text, proposed_by, approved_by
FROM cases WHERE outcome = 'CORRECTED' OR state = 'RESOLVING'
ORDER BY merchant_id/*bytes*/, ('case_' || case_no)/*bytes*/
"""
_POSTED = """
SELECT merchant_id, reference, correction_id, debit_account, credit_account, amount_minor, currency::text, proposed_by,
       approved_by
FROM corrections WHERE reference LIKE 'case\\_%'
ORDER BY merchant_id/*bytes*/, reference/*bytes*/, correction_id/*bytes*/
"""
_VERSIONS = """
SELECT merchant_id, 'case_' || case_no, version FROM cases
WHERE (merchant_id, 'case_' || case_no) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
  AND (outcome = 'CORRECTED' OR state = 'RESOLVING')
"""


class Terms(NamedTuple):
    """What is booked, and who stands behind it."""

    debit_account: str
    credit_account: str
    amount_minor: int
    currency: str
    proposed_by: str
    approved_by: str


class Agreed(NamedTuple):
    """A case that is corrected, or about to be."""

    state: str
    version: int
    journal_id: str
    terms: Terms


class Posted(NamedTuple):
    """A correction of payment."""

    correction_id: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class CorrectionBook:
    """All that is known of the correction of one case."""

    merchant_id: str
    id: str
    case: Agreed | None
    posted: Sequence[Posted]

    @property
    def in_flight(self) -> bool:
        """Whether payment is being asked."""
        return self.case is not None and self.case.state == "RESOLVING"


async def read_corrections(snapshots: Snapshots) -> AsyncIterator[CorrectionBook]:
    """Every correction, by ascending (merchant, case)."""
    streams = [Stream(snapshots["reconciler"], _CASES), Stream(snapshots["payment"], _POSTED)]
    async for (merchant_id, case_id), (cases, posted) in merge(streams):
        yield CorrectionBook(
            merchant_id,
            case_id,
            Agreed(cases[0][2], cases[0][4], cases[0][5], Terms(*cases[0][6:])) if cases else None,
            [Posted(row[2], Terms(*row[3:])) for row in posted],
        )


async def unmoved_corrections(snapshots: Snapshots, books: Sequence[CorrectionBook]) -> set[Key]:
    """Those whose case is the same at present as it was in the snapshot."""
    rows = await snapshots["reconciler"].fetch_present(
        _VERSIONS, {"merchants": [b.merchant_id for b in books], "ids": [b.id for b in books]}
    )
    now = {(merchant, case_id): version for merchant, case_id, version in rows}
    return {
        (book.merchant_id, book.id)
        for book in books
        if now.get((book.merchant_id, book.id)) == (book.case.version if book.case else None)
    }


def is_posted_once(book: CorrectionBook) -> Iterator[str]:
    """A case that was closed by a correction has it in payment's ledger, once and as it was agreed on."""
    if book.case is None:
        for one in book.posted:
            yield f"is not corrected, and payment has posted {one.correction_id} for it"
        return
    ids = [one.correction_id for one in book.posted]
    if ids != [book.case.journal_id]:
        yield f"is corrected by {book.case.journal_id}, and payment has posted {', '.join(ids) or 'nothing'} for it"
    for one in book.posted:
        if one.terms != book.case.terms:
            yield f"is corrected by {tuple(book.case.terms)}, and {one.correction_id} says {tuple(one.terms)}"
