"""What may become of a case. Pure: a case and a wish in, the case and what happened out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from enum import StrEnum
from typing import NamedTuple

from services.kit.errors import NotFound, PaymeshError, Refused
from services.kit.money import Money

CORRECTABLE = ("suspense", "processor_receivable", "processor_fees", "cash", "payouts")
"""Accounts that a correction may book on. What merchants are owed and what is held on cards is never corrected from
here: it follows from payments alone."""
RECONCILER = "reconciler"
"""Who does what happens by itself."""


class CaseKind(StrEnum):
    """What a difference is."""

    MISSING_IN_BANK = "MISSING_IN_BANK"
    MISSING_IN_LEDGER = "MISSING_IN_LEDGER"
    AMOUNT = "AMOUNT"
    CURRENCY = "CURRENCY"
    DUPLICATE = "DUPLICATE"
    LATE = "LATE"


class State(StrEnum):
    """Where a case stands."""

    OPEN = "OPEN"
    PROPOSED = "PROPOSED"
    RESOLVING = "RESOLVING"
    CLOSED = "CLOSED"


class Outcome(StrEnum):
    """Why a case is closed."""

    NONE = ""
    MATCHED = "MATCHED"
    MERGED = "MERGED"
    EXPLAINED = "EXPLAINED"
    CORRECTED = "CORRECTED"


class Correction(NamedTuple):
    """A journal of two entries in payment's ledger; the amount is positive."""

    debit_account: str
    credit_account: str
    amount: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """How somebody wants a case resolved."""

    number: int
    reason: str
    proposed_by: str
    correction: Correction | None = None
    approved_by: str = ""
    journal_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A difference between the statements and our books."""

    merchant_id: str
    case_no: int
    kind: CaseKind
    state: State
    reference: str
    lines: int
    items: int
    since: date
    opened_at_ms: int
    version: int
    """How many events it has."""
    at_bank: Money | None = None
    """What its lines add up to."""
    in_ledger: Money | None = None
    """What its items add up to."""
    owner: str = ""
    outcome: Outcome = Outcome.NONE
    closed_at_ms: int | None = None
    proposal: Proposal | None = None
    proposals: int = 0
    """How many proposals it has had."""

    @property
    def case_id(self) -> str:
        """For people and contracts."""
        return case_id(self.case_no)


class Happened(NamedTuple):
    """A step in the life of a case."""

    type: str
    actor: str
    data: Mapping[str, object]


Decision = tuple[Case, Happened | None] | PaymeshError
"""The case as it is then and what happened to it, nothing if it was so already; or why not."""


class Assign(NamedTuple):
    """A wish to give a case to somebody; nobody when empty."""

    owner: str
    actor: str


@dataclass(frozen=True, slots=True)
class Propose:
    """A wish to have a case resolved."""

    reason: str
    actor: str
    correction: Correction | None = field(default=None)


class Approve(NamedTuple):
    """A second person agrees with a proposal."""

    proposal: int
    actor: str


class Reject(NamedTuple):
    """A person does not agree, or takes a proposal back."""

    proposal: int
    reason: str
    actor: str


Wish = Assign | Propose | Approve | Reject


def case_id(case_no: int) -> str:
    """The identifier of a case."""
    return f"case_{case_no}"


def case_no(identifier: str) -> int:
    """The number in an identifier; 0, which no case has, when it is none."""
    digits = identifier.removeprefix("case_")
    if digits == identifier or not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        return 0
    return int(digits)


def decide(case: Case, wish: Wish, now_ms: int) -> Decision:
    """What becomes of a case that is locked."""
    if case.state is State.CLOSED and not _settled(case, wish):
        return Refused("CASE_CLOSED", f"{case.case_id} is closed: {case.outcome.lower()}")
    match wish:
        case Assign():
            return _assign(case, wish)
        case Propose():
            return _propose(case, wish)
        case Approve():
            return _approve(case, wish, now_ms)
        case Reject():
            return _reject(case, wish)


def posted(case: Case, journal_id: str, now_ms: int) -> tuple[Case, Happened]:
    """Payment has booked the correction of a RESOLVING case."""
    assert case.state is State.RESOLVING, "only an approved correction is posted"
    assert case.proposal is not None
    closed = _closed(
        replace(case, proposal=replace(case.proposal, journal_id=journal_id)), Outcome.CORRECTED, now_ms
    )
    return _happened(
        closed, "closed", RECONCILER, {"outcome": str(Outcome.CORRECTED), "journal_id": journal_id}
    )


def not_posted(case: Case, reason: str, message: str) -> tuple[Case, Happened]:
    """Payment has refused the correction of a RESOLVING case for good: it is to be resolved otherwise."""
    assert case.state is State.RESOLVING, "only an approved correction is refused"
    reopened = replace(case, state=State.OPEN, proposal=None)
    return _happened(reopened, "refused", RECONCILER, {"reason": reason, "message": message})


def _settled(case: Case, wish: Wish) -> bool:
    """Whether a wish about a closed case says nothing that is not so."""
    return isinstance(wish, Assign) and wish.owner == case.owner


def _assign(case: Case, wish: Assign) -> Decision:
    if case.owner == wish.owner:
        return case, None
    return _happened(replace(case, owner=wish.owner), "assigned", wish.actor, {"owner": wish.owner})


def _propose(case: Case, wish: Propose) -> Decision:
    if case.state is State.RESOLVING:
        return _resolving(case)
    correction = wish.correction
    if correction is not None and not _allowed(correction):
        return Refused(
            "CORRECTION_NOT_ALLOWED",
            f"a correction books on two of {', '.join(CORRECTABLE)};"
            f" {correction.debit_account!r} and {correction.credit_account!r} were given",
        )
    proposal = Proposal(
        number=case.proposals + 1, reason=wish.reason, proposed_by=wish.actor, correction=correction
    )
    data: dict[str, object] = {"proposal": proposal.number, "reason": wish.reason}
    if correction is not None:
        data |= {
            "debit": correction.debit_account,
            "credit": correction.credit_account,
            "amount_minor": correction.amount.amount_minor,
            "currency": correction.amount.currency,
        }
    proposed = replace(case, state=State.PROPOSED, proposal=proposal, proposals=proposal.number)
    return _happened(proposed, "proposed", wish.actor, data)


def _allowed(correction: Correction) -> bool:
    accounts = {correction.debit_account, correction.credit_account}
    return len(accounts) == 2 and accounts <= set(CORRECTABLE)


def _approve(case: Case, wish: Approve, now_ms: int) -> Decision:
    proposal = _standing(case, wish.proposal)
    if isinstance(proposal, Refused):
        return proposal
    if same_person(proposal.proposed_by, wish.actor):
        return Refused("SAME_PERSON", f"{wish.actor} has proposed it: another person has to approve it")
    approved = replace(case, proposal=replace(proposal, approved_by=wish.actor))
    data: dict[str, object] = {"proposal": proposal.number}
    if proposal.correction is not None:
        return _happened(replace(approved, state=State.RESOLVING), "approved", wish.actor, data)
    data["outcome"] = str(Outcome.EXPLAINED)
    return _happened(_closed(approved, Outcome.EXPLAINED, now_ms), "closed", wish.actor, data)


def _reject(case: Case, wish: Reject) -> Decision:
    proposal = _standing(case, wish.proposal)
    if isinstance(proposal, Refused):
        return proposal
    data = {"proposal": proposal.number, "reason": wish.reason}
    return _happened(replace(case, state=State.OPEN, proposal=None), "rejected", wish.actor, data)


def _standing(case: Case, number: int) -> Proposal | Refused:
    """The proposal that the wish is about."""
    if case.state is State.RESOLVING:
        return _resolving(case)
    if case.state is not State.PROPOSED or case.proposal is None:
        return Refused("NOTHING_PROPOSED", f"nothing is proposed for {case.case_id}")
    if case.proposal.number != number:
        return Refused(
            "PROPOSAL_CHANGED",
            f"proposal {case.proposal.number} stands, and not {number}: look at it before you decide",
            facts={"proposal": str(case.proposal.number)},
        )
    return case.proposal


def same_person(one: str, other: str) -> bool:
    """Whether two names are those of one person, as the database compares them too."""
    return one.strip().lower() == other.strip().lower()


def _resolving(case: Case) -> Refused:
    return Refused("CASE_RESOLVING", f"the approved correction of {case.case_id} is being posted")


def _closed(case: Case, outcome: Outcome, now_ms: int) -> Case:
    return replace(case, state=State.CLOSED, outcome=outcome, closed_at_ms=now_ms)


def _happened(case: Case, kind: str, actor: str, data: Mapping[str, object]) -> tuple[Case, Happened]:
    return replace(case, version=case.version + 1), Happened(kind, actor, data)


def no_case(identifier: str) -> NotFound:
    """A case was named that does not exist."""
    return NotFound("UNKNOWN_CASE", f"there is no case {identifier!r}")
