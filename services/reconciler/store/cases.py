"""Cases and what belongs to them, for those who look at them and for those who resolve them.

Lock order: cases, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

import orjson

from services.kit.db import Database, Transaction
from services.kit.money import Money
from services.reconciler.domain.cases import (
    Case,
    CaseKind,
    Correction,
    Happened,
    Outcome,
    Proposal,
    State,
)

CASE_COLUMNS = """
c.merchant_id, c.case_no, c.kind, c.state, c.reference, c.lines, c.items, c.since,
(extract(epoch FROM c.opened_at) * 1000)::bigint, c.version, c.bank_minor, c.bank_currency, c.ledger_minor,
c.ledger_currency, c.owner, c.outcome, (extract(epoch FROM c.closed_at) * 1000)::bigint, c.proposal, c.reason,
c.proposed_by, c.approved_by, c.debit_account, c.credit_account, c.correct_minor, c.correct_currency, c.journal_id
"""
MEMBERS_MAX = 1_000
"""Lines, and items, that are shown of one case."""

CaseKey = tuple[str, int]
"""(merchant, number of the case)."""


class LineRow(NamedTuple):
    """A line as it is shown."""

    line_no: int
    account: str
    statement_id: str
    number: int
    booking_date: date
    value_date: date
    amount_minor: int
    currency: str
    reference: str
    counterpart_reference: str
    batch_reference: str
    kind: str
    text: str
    reversal: bool


class ItemRow(NamedTuple):
    """An item as it is shown."""

    item_no: int
    item_id: str
    kind: str
    payment_id: str
    settlement_id: str
    bank_reference: str
    batch_reference: str
    amount_minor: int
    fee_minor: int
    currency: str
    booked_on: date
    value_on: date


class EventRow(NamedTuple):
    """A step in the life of a case as it is shown."""

    number: int
    type: str
    actor: str
    data_json: str
    recorded_at_ms: int


class Wanted(NamedTuple):
    """Which cases."""

    states: Sequence[str]
    kinds: Sequence[str]
    """Empty: all."""
    owner: str
    """Empty: anybody's."""
    since_until: date
    """Only differences of this day or earlier."""


def case_of(row: Sequence[Any]) -> Case:
    """The case in a row of CASE_COLUMNS."""
    proposal = None
    if row[19]:
        correction = Correction(row[21], row[22], Money(row[23], row[24])) if row[23] is not None else None
        proposal = Proposal(
            number=row[17],
            reason=row[18],
            proposed_by=row[19],
            approved_by=row[20],
            correction=correction,
            journal_id=row[25],
        )
    return Case(
        merchant_id=row[0],
        case_no=row[1],
        kind=CaseKind(row[2]),
        state=State(row[3]),
        reference=row[4],
        lines=row[5],
        items=row[6],
        since=row[7],
        opened_at_ms=row[8],
        version=row[9],
        at_bank=Money(row[10], row[11]) if row[10] is not None else None,
        in_ledger=Money(row[12], row[13]) if row[12] is not None else None,
        owner=row[14],
        outcome=Outcome(row[15]),
        closed_at_ms=row[16],
        proposal=proposal,
        proposals=row[17],
    )


async def lock_cases(tx: Transaction, keys: Sequence[CaseKey]) -> dict[CaseKey, Case]:
    """Lock cases, ascending; unknown ones are missing from the result."""
    ordered = sorted(set(keys))
    rows = await tx.fetch(
        f"""
        SELECT {CASE_COLUMNS} FROM cases AS c
        WHERE (c.merchant_id, c.case_no) IN (SELECT * FROM unnest(%(merchants)s::text[], %(numbers)s::bigint[]))
        ORDER BY c.merchant_id, c.case_no
        FOR NO KEY UPDATE
        """,
        {"merchants": [m for m, _ in ordered], "numbers": [n for _, n in ordered]},
    )
    return {(row[0], row[1]): case_of(row) for row in rows}


async def find_case(database: Database, merchant_id: str, case_no: int) -> Case | None:
    """One case."""
    rows = await database.fetch(
        f"SELECT {CASE_COLUMNS} FROM cases AS c WHERE c.merchant_id = %(merchant)s AND c.case_no = %(case)s",
        {"merchant": merchant_id, "case": case_no},
    )
    return case_of(rows[0]) if rows else None


async def list_cases(
    database: Database, merchant_id: str, wanted: Wanted, after: tuple[date, int], limit: int
) -> list[Case]:
    """A merchant's cases behind (day, number), by day and number."""
    rows = await database.fetch(
        f"""
        SELECT {CASE_COLUMNS} FROM cases AS c
        WHERE c.merchant_id = %(merchant)s AND (c.since, c.case_no) > (%(since)s::date, %(case)s)
          AND c.state = ANY (%(states)s::text[]) AND c.since <= %(until)s::date
          AND (cardinality(%(kinds)s::text[]) = 0 OR c.kind = ANY (%(kinds)s::text[]))
          AND (%(owner)s = '' OR c.owner = %(owner)s)
        ORDER BY c.since, c.case_no LIMIT %(limit)s
        """,
        {
            "merchant": merchant_id,
            "since": after[0].isoformat(),
            "case": after[1],
            "states": list(wanted.states),
            "kinds": list(wanted.kinds),
            "owner": wanted.owner,
            "until": wanted.since_until.isoformat(),
            "limit": limit,
        },
    )
    return [case_of(row) for row in rows]


async def list_lines(database: Database, case: Case) -> list[LineRow]:
    """The first lines of a case; of one that stands, those that it stands for."""
    rows = await database.fetch(
        """
        SELECT l.line_no, s.account, s.statement_id, l.number, l.booking_date, l.value_date, l.amount_minor, l.currency,
               l.reference, l.counterpart_reference, l.batch_reference, l.kind, l.text, l.reversal
        FROM case_lines AS c JOIN lines AS l USING (merchant_id, line_no)
        JOIN statements AS s USING (merchant_id, statement_no)
        WHERE c.merchant_id = %(merchant)s AND c.case_no = %(case)s AND (c.standing OR %(closed)s)
        ORDER BY l.line_no LIMIT %(limit)s
        """,
        _members_of(case),
    )
    return [LineRow(*row) for row in rows]


async def list_items(database: Database, case: Case) -> list[ItemRow]:
    """The first items of a case; of one that stands, those that it stands for."""
    rows = await database.fetch(
        """
        SELECT i.item_no, i.item_id, i.kind, i.payment_id, i.settlement_id, i.bank_reference, i.batch_reference,
               i.amount_minor, i.fee_minor, i.currency, i.booked_on, i.value_on
        FROM case_items AS c JOIN items AS i USING (merchant_id, item_no)
        WHERE c.merchant_id = %(merchant)s AND c.case_no = %(case)s AND (c.standing OR %(closed)s)
        ORDER BY i.item_no LIMIT %(limit)s
        """,
        _members_of(case),
    )
    return [ItemRow(*row) for row in rows]


def _members_of(case: Case) -> dict[str, object]:
    return {
        "merchant": case.merchant_id,
        "case": case.case_no,
        "closed": case.state is State.CLOSED,
        "limit": MEMBERS_MAX,
    }


async def list_events(database: Database, merchant_id: str, case_no: int) -> list[EventRow]:
    """The life of a case, oldest first."""
    rows = await database.fetch(
        """
        SELECT number, type, actor, data::text, (extract(epoch FROM recorded_at) * 1000)::bigint FROM case_events
        WHERE merchant_id = %(merchant)s AND case_no = %(case)s ORDER BY number
        """,
        {"merchant": merchant_id, "case": case_no},
    )
    return [EventRow(*row) for row in rows]


def save_cases(tx: Transaction, changes: Sequence[tuple[Case, Happened]]) -> None:
    """Write locked cases, each as it is after its last step, and all steps. One that two people have closed takes its
    lines and items out of what is open, for good."""
    if not changes:
        return
    last = {(case.merchant_id, case.case_no): case for case, _ in changes}
    cases = list(last.values())
    tx.later(_SAVE, _columns(cases))
    tx.later(
        """
        INSERT INTO case_events (merchant_id, case_no, number, type, actor, data)
        SELECT merchant_id, case_no, number, type, actor, data::json
        FROM unnest(%(merchants)s::text[], %(cases)s::bigint[], %(numbers)s::int[], %(types)s::text[],
                    %(actors)s::text[], %(data)s::text[]) AS new (merchant_id, case_no, number, type, actor, data)
        """,
        {
            "merchants": [case.merchant_id for case, _ in changes],
            "cases": [case.case_no for case, _ in changes],
            "numbers": [case.version for case, _ in changes],
            "types": [happened.type for _, happened in changes],
            "actors": [happened.actor for _, happened in changes],
            "data": [orjson.dumps(happened.data).decode() for _, happened in changes],
        },
    )
    closed = [case for case in cases if case.state is State.CLOSED]
    if closed:
        of = {"merchants": [c.merchant_id for c in closed], "cases": [c.case_no for c in closed]}
        for side, key in (("lines", "line_no"), ("items", "item_no")):
            for statement in (_RESOLVE, _FORGET, _LEAVE):
                tx.later(statement.format(side=side, key=key), of)


_SAVE = """
UPDATE cases AS c
SET state = s.state, outcome = s.outcome, owner = s.owner, version = s.version, proposal = s.proposal,
    reason = s.reason, proposed_by = s.proposed_by, approved_by = s.approved_by, debit_account = s.debit,
    credit_account = s.credit, correct_minor = s.amount, correct_currency = s.currency, journal_id = s.journal,
    closed_at = timestamptz 'epoch' + s.closed_ms * interval '1 millisecond',
    post_at = CASE WHEN s.state = 'RESOLVING' THEN coalesce(c.post_at, now()) END,
    post_attempts = CASE WHEN s.state = 'RESOLVING' THEN c.post_attempts ELSE 0 END
FROM unnest(%(merchants)s::text[], %(cases)s::bigint[], %(states)s::text[], %(outcomes)s::text[], %(owners)s::text[],
            %(versions)s::int[], %(proposals)s::int[], %(reasons)s::text[], %(proposers)s::text[],
            %(approvers)s::text[], %(debits)s::text[], %(credits)s::text[], %(amounts)s::bigint[],
            %(currencies)s::text[], %(journals)s::text[], %(closed)s::bigint[])
     AS s (merchant_id, case_no, state, outcome, owner, version, proposal, reason, proposed_by, approved_by, debit,
           credit, amount, currency, journal, closed_ms)
WHERE c.merchant_id = s.merchant_id AND c.case_no = s.case_no
"""

# What two people have settled is matched with the case itself.
_RESOLVE = """
INSERT INTO matched_{side} (merchant_id, {key}, match_no, rule, run_id)
SELECT m.merchant_id, m.{key}, coalesce(
           (SELECT min(l.line_no) FROM case_lines AS l
            WHERE l.merchant_id = m.merchant_id AND l.case_no = m.case_no AND l.standing),
           (SELECT -min(i.item_no) FROM case_items AS i
            WHERE i.merchant_id = m.merchant_id AND i.case_no = m.case_no AND i.standing)), 'case', m.case_no::text
FROM unnest(%(merchants)s::text[], %(cases)s::bigint[]) AS c (merchant_id, case_no)
JOIN case_{side} AS m USING (merchant_id, case_no) WHERE m.standing
"""
_FORGET = """
DELETE FROM open_{side} AS o
USING unnest(%(merchants)s::text[], %(cases)s::bigint[]) AS c (merchant_id, case_no)
JOIN case_{side} AS m USING (merchant_id, case_no)
WHERE m.standing AND o.merchant_id = m.merchant_id AND o.{key} = m.{key}
"""
_LEAVE = """
UPDATE case_{side} AS m SET standing = false
FROM unnest(%(merchants)s::text[], %(cases)s::bigint[]) AS c (merchant_id, case_no)
WHERE m.merchant_id = c.merchant_id AND m.case_no = c.case_no AND m.standing
"""


def _columns(cases: Sequence[Case]) -> dict[str, object]:
    proposals = [case.proposal for case in cases]
    corrections = [p.correction if p is not None else None for p in proposals]
    return {
        "merchants": [c.merchant_id for c in cases],
        "cases": [c.case_no for c in cases],
        "states": [str(c.state) for c in cases],
        "outcomes": [str(c.outcome) for c in cases],
        "owners": [c.owner for c in cases],
        "versions": [c.version for c in cases],
        "proposals": [c.proposals for c in cases],
        "reasons": [p.reason if p else "" for p in proposals],
        "proposers": [p.proposed_by if p else "" for p in proposals],
        "approvers": [p.approved_by if p else "" for p in proposals],
        "debits": [c.debit_account if c else "" for c in corrections],
        "credits": [c.credit_account if c else "" for c in corrections],
        "amounts": [c.amount.amount_minor if c else None for c in corrections],
        "currencies": [c.amount.currency if c else None for c in corrections],
        "journals": [p.journal_id if p else "" for p in proposals],
        "closed": [c.closed_at_ms for c in cases],
    }


async def take_due(tx: Transaction, limit: int, retry_ms: int, retry_ms_max: int) -> list[Case]:
    """Lock approved corrections that are due to be posted, and put each off: to its next attempt, should this one not
    come to an end. Every attempt waits twice as long."""
    rows = await tx.fetch(
        f"""
        WITH due AS (
            SELECT merchant_id, case_no FROM cases WHERE state = 'RESOLVING' AND post_at <= now()
            ORDER BY post_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE cases AS c SET post_attempts = c.post_attempts + 1,
               post_at = now() + least(%(first)s * 2 ^ least(c.post_attempts, 20), %(max)s) * interval '1 millisecond'
        FROM due WHERE c.merchant_id = due.merchant_id AND c.case_no = due.case_no
        RETURNING {CASE_COLUMNS}
        """,
        {"limit": limit, "first": retry_ms, "max": retry_ms_max},
    )
    return [case_of(row) for row in rows]
