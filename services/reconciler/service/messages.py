"""Between the contract and the domain."""

from __future__ import annotations

from datetime import UTC, date, datetime

from paymesh.money.v1 import money_pb2
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from services.kit.clock import now_ms
from services.kit.money import Money
from services.kit.rpc.values import write_money, write_timestamp
from services.reconciler.domain.cases import Case, CaseKind, Outcome, Proposal, State
from services.reconciler.reconciliation import Report
from services.reconciler.store.cases import EventRow, ItemRow, LineRow
from services.reconciler.store.statements import StatementRow

KINDS = {
    CaseKind.MISSING_IN_BANK: pb.CASE_KIND_MISSING_IN_BANK,
    CaseKind.MISSING_IN_LEDGER: pb.CASE_KIND_MISSING_IN_LEDGER,
    CaseKind.AMOUNT: pb.CASE_KIND_AMOUNT,
    CaseKind.CURRENCY: pb.CASE_KIND_CURRENCY,
    CaseKind.DUPLICATE: pb.CASE_KIND_DUPLICATE,
    CaseKind.LATE: pb.CASE_KIND_LATE,
}
STATES = {
    State.OPEN: pb.CASE_STATE_OPEN,
    State.PROPOSED: pb.CASE_STATE_PROPOSED,
    State.RESOLVING: pb.CASE_STATE_RESOLVING,
    State.CLOSED: pb.CASE_STATE_CLOSED,
}
OUTCOMES = {
    Outcome.NONE: pb.CASE_OUTCOME_UNSPECIFIED,
    Outcome.MATCHED: pb.CASE_OUTCOME_MATCHED,
    Outcome.MERGED: pb.CASE_OUTCOME_MERGED,
    Outcome.EXPLAINED: pb.CASE_OUTCOME_EXPLAINED,
    Outcome.CORRECTED: pb.CASE_OUTCOME_CORRECTED,
}


def case_message(case: Case) -> pb.Case:
    """A case."""
    message = pb.Case(
        merchant_id=case.merchant_id,
        case_id=case.case_id,
        kind=KINDS[case.kind],
        state=STATES[case.state],
        reference=case.reference,
        lines=case.lines,
        items=case.items,
        since=case.since.isoformat(),
        age_days=age_days(case, now_ms()),
        owner=case.owner,
        outcome=OUTCOMES[case.outcome],
    )
    if case.at_bank is not None:
        write_money(message.at_bank, case.at_bank)
    if case.in_ledger is not None:
        write_money(message.in_ledger, case.in_ledger)
    write_timestamp(message.opened_at, case.opened_at_ms)
    if case.closed_at_ms is not None:
        write_timestamp(message.closed_at, case.closed_at_ms)
    if case.proposal is not None:
        message.resolution.CopyFrom(_resolution(case.proposal))
    return message


def age_days(case: Case, at_ms: int) -> int:
    """How many days a case has taken."""
    end = datetime.fromtimestamp((case.closed_at_ms or at_ms) / 1000, UTC).date()
    return max(0, (end - case.since).days)


def _resolution(proposal: Proposal) -> pb.Resolution:
    message = pb.Resolution(
        proposal=proposal.number,
        reason=proposal.reason,
        proposed_by=proposal.proposed_by,
        approved_by=proposal.approved_by,
        journal_id=proposal.journal_id,
    )
    if proposal.correction is not None:
        message.correction.debit_account = proposal.correction.debit_account
        message.correction.credit_account = proposal.correction.credit_account
        write_money(message.correction.amount, proposal.correction.amount)
    return message


def line_message(row: LineRow) -> pb.StatementLine:
    """A line."""
    return pb.StatementLine(
        line_no=row.line_no,
        account=row.account,
        statement_id=row.statement_id,
        number=row.number,
        booking_date=row.booking_date.isoformat(),
        value_date=row.value_date.isoformat(),
        amount=money(row.amount_minor, row.currency),
        reference=row.reference,
        counterpart_reference=row.counterpart_reference,
        batch_reference=row.batch_reference,
        kind=row.kind,
        text=row.text,
        reversal=row.reversal,
    )


def item_message(row: ItemRow) -> pb.LedgerItem:
    """An item."""
    return pb.LedgerItem(
        item_no=row.item_no,
        item_id=row.item_id,
        kind=row.kind,
        payment_id=row.payment_id,
        settlement_id=row.settlement_id,
        bank_reference=row.bank_reference,
        batch_reference=row.batch_reference,
        amount=money(row.amount_minor, row.currency),
        fee=money(row.fee_minor, row.currency),
        booked_on=row.booked_on.isoformat(),
        value_on=row.value_on.isoformat(),
    )


def event_message(row: EventRow) -> pb.CaseEvent:
    """A step in the life of a case."""
    message = pb.CaseEvent(number=row.number, type=row.type, actor=row.actor, data_json=row.data_json)
    write_timestamp(message.recorded_at, row.recorded_at_ms)
    return message


def statement_message(row: StatementRow) -> pb.Statement:
    """A statement."""
    message = pb.Statement(
        account=row.account,
        currency=row.currency,
        statement_id=row.statement_id,
        opening=money(row.opening_minor, row.currency),
        closing=money(row.closing_minor, row.currency),
        lines=row.lines,
        file_name=row.file_name,
        file_sha256=row.sha256.hex(),
        closing_date=row.closing_date.isoformat() if row.closing_date is not None else "",
        unproved=row.unproved,
    )
    write_timestamp(message.imported_at, row.imported_at_ms)
    return message


def summary_message(report: Report) -> pb.Summary:
    """What a run has found, without the differences one by one."""
    return pb.Summary(
        merchant_id=report.job.merchant_id,
        date=report.job.until.isoformat(),
        dry_run=not report.job.keep,
        run_id=report.run_id,
        files=[
            pb.Summary.File(
                name=file.name,
                statements=file.statements,
                lines_new=file.lines_new,
                lines_known=file.lines_known,
                already_imported=file.already_imported,
            )
            for file in report.files
        ],
        items_copied=report.job.items_copied,
        rules=[
            pb.Summary.Rule(name=rule.rule, matches=rule.matches, lines=rule.lines, items=rule.items)
            for rule in report.rules
        ],
        differences=[
            pb.Summary.Count(
                kind=KINDS[count.kind],
                currency=count.currency,
                new=count.new,
                standing=count.standing,
                closed=count.closed,
                difference_minor=count.difference_minor,
            )
            for count in report.counts
        ],
        lines_waiting=report.lines_waiting,
        items_waiting=report.items_waiting,
        more_differences=report.more_differences,
        took_ms=report.took_ms,
    )


def money(amount_minor: int, currency: str) -> money_pb2.Money:
    """An amount."""
    return money_pb2.Money(amount_minor=amount_minor, currency=currency)


def money_of(message: money_pb2.Money) -> Money:
    """An amount."""
    return Money(message.amount_minor, message.currency)


def day_of(text: str) -> date | None:
    """A day, "2026-11-25"; None for anything else."""
    try:
        return date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        return None
