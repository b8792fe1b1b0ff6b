"""The words for what was found, the same in every kind of report."""

from dataclasses import dataclass

from paymesh.amounts import format_amount
from paymesh.money.v1 import money_pb2
from paymesh.reconciler.v1 import reconciler_pb2 as pb

KIND_WORDS: dict[int, str] = {
    pb.CASE_KIND_MISSING_IN_BANK: "missing in bank",
    pb.CASE_KIND_MISSING_IN_LEDGER: "missing in ledger",
    pb.CASE_KIND_AMOUNT: "amount",
    pb.CASE_KIND_CURRENCY: "currency",
    pb.CASE_KIND_DUPLICATE: "duplicate",
    pb.CASE_KIND_LATE: "late",
}
KIND_SENTENCES: dict[int, str] = {
    pb.CASE_KIND_MISSING_IN_BANK: "our books have it and no statement does, long after it was due",
    pb.CASE_KIND_MISSING_IN_LEDGER: "a statement has it and our books do not",
    pb.CASE_KIND_AMOUNT: "both have it, with different amounts",
    pb.CASE_KIND_CURRENCY: "both have it, in different currencies",
    pb.CASE_KIND_DUPLICATE: "a statement has it a second time",
    pb.CASE_KIND_LATE: "overdue, or it came on another day than it may",
}
STATE_WORDS: dict[int, str] = {
    pb.CASE_STATE_OPEN: "open",
    pb.CASE_STATE_PROPOSED: "proposed",
    pb.CASE_STATE_RESOLVING: "resolving",
    pb.CASE_STATE_CLOSED: "closed",
}
OUTCOME_WORDS: dict[int, str] = {
    pb.CASE_OUTCOME_MATCHED: "matched",
    pb.CASE_OUTCOME_MERGED: "merged",
    pb.CASE_OUTCOME_EXPLAINED: "explained",
    pb.CASE_OUTCOME_CORRECTED: "corrected",
}
RULE_WORDS = {"nothing_moved": "nothing moved"}


@dataclass(frozen=True, slots=True)
class Row:
    """A case as one line of a report."""

    case_id: str
    kind: str
    state: str
    reference: str
    at_bank: str
    """An amount with its currency; empty when there is none."""
    in_ledger: str
    difference: str
    """At the bank less in the ledger; empty where they are in different currencies."""
    since: str
    age_days: int
    owner: str


def row_of(case: pb.Case) -> Row:
    """A case in words."""
    state = STATE_WORDS.get(case.state, "?")
    if case.state == pb.CASE_STATE_CLOSED:
        state = OUTCOME_WORDS.get(case.outcome, state)
    return Row(
        case_id=case.case_id,
        kind=kind_word(case.kind),
        state=state,
        reference=case.reference,
        at_bank=amount(case.at_bank) if case.HasField("at_bank") else "",
        in_ledger=amount(case.in_ledger) if case.HasField("in_ledger") else "",
        difference=_difference(case),
        since=case.since,
        age_days=case.age_days,
        owner=case.owner,
    )


def kind_word(kind: int) -> str:
    """What people call a kind."""
    return KIND_WORDS.get(kind, "?")


def amount(money: money_pb2.Money) -> str:
    """For example "12.34 GBP"."""
    return format_amount(money.amount_minor, money.currency)


def _difference(case: pb.Case) -> str:
    bank, ledger = case.at_bank, case.in_ledger
    if bank.currency and ledger.currency and bank.currency != ledger.currency:
        return ""
    currency = bank.currency or ledger.currency
    return format_amount(bank.amount_minor - ledger.amount_minor, currency) if currency else ""
