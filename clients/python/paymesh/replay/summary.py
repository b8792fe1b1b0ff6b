"""Adds a replay up against its file: every line, row and invoice is counted in exactly one place. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from paymesh.errors import Kind
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.replay.invoices import Export, Invoice, Return
from paymesh.replay.rows import RowReading
from paymesh.replay.run import Answer, Replayed

_BUCKET_BY_STATE = {
    orchestrator_pb2.SAGA_STATE_COMPLETED: "completed",
    orchestrator_pb2.SAGA_STATE_COMPENSATED: "compensated",
    orchestrator_pb2.SAGA_STATE_PARKED: "parked",
}

BUCKETS = ("completed", "compensated", "parked", "refused", "unresolved")
"""Where an invoice ends that was sent: three final states of its order; refused by the service before there
was an order; or without a final answer, in which case the file can be run again."""


RETURN_BUCKETS = ("returned", "parked", "refused", "unresolved")
"""Where a return ends, likewise. One that is refused has changed nothing; that may also be because its order did not
complete."""


@dataclass(frozen=True)
class SentReturn:
    """What became of one return."""

    taken_back: Return
    bucket: str
    """One of RETURN_BUCKETS."""
    reason: str
    """UPPER_SNAKE; empty when returned."""
    replayed: bool
    """True when an earlier run had already been given this answer."""


@dataclass(frozen=True)
class PlacedInvoice:
    """What became of one invoice that was sent."""

    invoice: Invoice
    bucket: str
    """One of BUCKETS."""
    reason: str
    """UPPER_SNAKE; empty when completed."""
    order_id: str
    """Empty when there is no order, or none that is known."""
    replayed: bool
    """True when an earlier run had already been given this answer."""


@dataclass
class Summary:
    """A replay in numbers."""

    lines: int
    blank_lines: int
    continuation_lines: int
    lines_not_utf8: int
    rows: int
    rows_ordered: int
    """In invoices that were sent, or would be without `--dry-run`."""
    rows_rejected: dict[str, int]
    """By reason."""
    rows_of_rejected_invoices: int
    """Good rows whose invoice was rejected as a whole."""
    rows_taken_back: int
    """Of cancellations, in returns."""
    invoices: int
    invoices_to_place: int
    invoices_taken_back: int
    """Cancellations with at least one return."""
    returns: int
    """A cancellation that takes back from two orders is two returns."""
    invoices_rejected: dict[str, int]
    """By reason."""
    currency: str
    amount_minor: int
    """Of all invoices to place."""
    amount_to_return_minor: int = 0
    amount_completed_minor: int = 0
    amount_returned_minor: int = 0
    placed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bucket, then reason ("" for completed): number of invoices. Empty after a dry run."""
    returned: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bucket, then reason ("" for returned): number of returns. Empty after a dry run."""
    replayed: int = 0
    """Of the answers, how many an earlier run had been given already."""

    def adds_up(self) -> bool:
        """True when every line, row and invoice is counted once, and, if sent, each invoice and return has a bucket."""
        header_lines = 1
        sent = sum(count for reasons in self.placed.values() for count in reasons.values())
        returned = sum(count for reasons in self.returned.values() for count in reasons.values())
        return (
            self.lines == header_lines + self.blank_lines + self.continuation_lines + self.rows
            and self.rows
            == self.rows_ordered
            + self.rows_taken_back
            + sum(self.rows_rejected.values())
            + self.rows_of_rejected_invoices
            and self.invoices
            == self.invoices_to_place + self.invoices_taken_back + sum(self.invoices_rejected.values())
            and (not self.placed or sent == self.invoices_to_place)
            and (not self.placed or returned == self.returns)
        )

    def count(self, bucket: str) -> int:
        """Number of invoices in a bucket."""
        return sum(self.placed.get(bucket, {}).values())

    def count_returns(self, bucket: str) -> int:
        """Number of returns in a bucket."""
        return sum(self.returned.get(bucket, {}).values())


def place_invoice(invoice: Invoice, answer: Answer[orchestrator_pb2.PlaceOrderResult]) -> PlacedInvoice:
    """Which bucket the answer to an invoice's order puts it into."""
    error, replayed = answer.error, answer.replayed
    if error is not None:
        final = (Kind.REFUSED, Kind.INVALID, Kind.NOT_FOUND)
        bucket = "refused" if error.kind in final else "unresolved"
        return PlacedInvoice(invoice, bucket, error.reason, error.facts.get("order_id", ""), replayed)
    if answer.result is None:
        return PlacedInvoice(invoice, "unresolved", "NO_ANSWER", "", False)
    order = answer.result.response.order
    bucket = _BUCKET_BY_STATE.get(order.state, "unresolved")
    reason = (
        "" if bucket == "completed" else order.reason.code or orchestrator_pb2.SagaState.Name(order.state)
    )
    return PlacedInvoice(invoice, bucket, reason, order.order_id, replayed)


def place_invoices(invoices: Sequence[Invoice], replayed: Replayed) -> list[PlacedInvoice]:
    """`place_invoice` for all, in order."""
    return [place_invoice(*pair) for pair in zip(invoices, replayed.orders, strict=True)]


_RETURN_BUCKET_BY_STATE = {
    orchestrator_pb2.SAGA_STATE_COMPLETED: "returned",
    orchestrator_pb2.SAGA_STATE_COMPENSATED: "refused",
    orchestrator_pb2.SAGA_STATE_PARKED: "parked",
}


def sent_returns(returns: Sequence[Return], answers: Sequence[Answer[Any]]) -> list[SentReturn]:
    """Which bucket each return's answer puts it into, in order."""
    return [_sent_return(*pair) for pair in zip(returns, answers, strict=True)]


def _sent_return(one: Return, answer: Answer[Any]) -> SentReturn:
    error = answer.error
    if error is not None:
        final = (Kind.REFUSED, Kind.INVALID, Kind.NOT_FOUND)
        bucket = "refused" if error.kind in final else "unresolved"
        return SentReturn(one, bucket, error.reason, answer.replayed)
    if answer.result is None:
        return SentReturn(one, "unresolved", "NO_ANSWER", False)
    saga = answer.result.response.saga
    bucket = _RETURN_BUCKET_BY_STATE.get(saga.state, "unresolved")
    reason = "" if bucket == "returned" else saga.reason.code
    return SentReturn(one, bucket, reason, answer.replayed)


def summarize(
    reading: RowReading,
    export: Export,
    currency: str,
    placed: Sequence[PlacedInvoice],
    returned: Sequence[SentReturn] = (),
) -> Summary:
    """Add up a file and, unless it was a dry run, what became of its invoices and returns."""
    taken_back = {one.number for one in export.returns}
    numbers = {one.number for one in export.invoices} | {one.number for one in export.rejected_invoices}
    numbers |= taken_back
    summary = Summary(
        lines=reading.lines,
        blank_lines=reading.blank_lines,
        continuation_lines=reading.continuation_lines,
        lines_not_utf8=reading.lines_not_utf8,
        rows=len(reading.rows),
        rows_ordered=sum(len(invoice.lines) for invoice in export.invoices),
        rows_rejected=_count(row.reason for row in export.rejected_rows),
        rows_of_rejected_invoices=sum(len(invoice.good_lines) for invoice in export.rejected_invoices),
        rows_taken_back=sum(len(one.lines) for one in export.returns),
        invoices=len(numbers),
        invoices_to_place=len(export.invoices),
        invoices_taken_back=len(taken_back),
        returns=len(export.returns),
        invoices_rejected=_count(invoice.reason for invoice in export.rejected_invoices),
        currency=currency,
        amount_minor=sum(invoice.amount_minor for invoice in export.invoices),
        amount_to_return_minor=sum(one.amount_minor for one in export.returns),
    )
    for one in placed:
        reasons = summary.placed.setdefault(one.bucket, {})
        reasons[one.reason] = reasons.get(one.reason, 0) + 1
        summary.replayed += one.replayed
        if one.bucket == "completed":
            summary.amount_completed_minor += one.invoice.amount_minor
    for back in returned:
        reasons = summary.returned.setdefault(back.bucket, {})
        reasons[back.reason] = reasons.get(back.reason, 0) + 1
        summary.replayed += back.replayed
        if back.bucket == "returned":
            summary.amount_returned_minor += back.taken_back.amount_minor
    return summary


def summary_json(
    summary: Summary,
    export: Export,
    placed: Sequence[PlacedInvoice],
    dry_run: bool,
    returned: Sequence[SentReturn] = (),
) -> dict[str, Any]:
    """Everything for machines: the counts, each rejected row and invoice, each return, each order not completed."""
    orders: dict[str, Any] = {"completed": summary.count("completed")}
    for bucket in BUCKETS[1:]:
        orders[bucket] = summary.placed.get(bucket, {})
    return {
        "dry_run": dry_run,
        "adds_up": summary.adds_up(),
        "lines": {
            "total": summary.lines,
            "header": 1,
            "blank": summary.blank_lines,
            "continuation": summary.continuation_lines,
            "rows": summary.rows,
            "not_utf8": summary.lines_not_utf8,
        },
        "rows": {
            "total": summary.rows,
            "ordered": summary.rows_ordered,
            "taken_back": summary.rows_taken_back,
            "rejected": summary.rows_rejected,
            "of_rejected_invoices": summary.rows_of_rejected_invoices,
        },
        "invoices": {
            "total": summary.invoices,
            "to_place": summary.invoices_to_place,
            "taken_back": summary.invoices_taken_back,
            "rejected": summary.invoices_rejected,
            **({} if dry_run else orders),
            "replayed": summary.replayed,
        },
        "returns": {
            "total": summary.returns,
            **({} if dry_run else _return_buckets(summary)),
        },
        "amount": {
            "currency": summary.currency,
            "to_place_minor": summary.amount_minor,
            "completed_minor": summary.amount_completed_minor,
            "to_return_minor": summary.amount_to_return_minor,
            "returned_minor": summary.amount_returned_minor,
        },
        "taken_back": [_return_json(one, sent) for one, sent in zip_longest(export.returns, returned)],
        "rejected_rows": [
            {"line": row.line, "invoice": row.invoice, "reason": row.reason, "detail": row.detail}
            for row in export.rejected_rows
        ],
        "rejected_invoices": [
            {
                "invoice": invoice.number,
                "reason": invoice.reason,
                "detail": invoice.detail,
                "good_lines": list(invoice.good_lines),
            }
            for invoice in export.rejected_invoices
        ],
        "not_completed": [
            {
                "invoice": one.invoice.number,
                "order_id": one.order_id,
                "outcome": one.bucket,
                "reason": one.reason,
            }
            for one in placed
            if one.bucket != "completed"
        ],
    }


def _return_buckets(summary: Summary) -> dict[str, Any]:
    found: dict[str, Any] = {"returned": summary.count_returns("returned")}
    return found | {bucket: summary.returned.get(bucket, {}) for bucket in RETURN_BUCKETS[1:]}


def _return_json(one: Return, sent: SentReturn | None) -> dict[str, Any]:
    return {
        "invoice": one.number,
        "original": one.original,
        "lines": list(one.lines),
        "amount_minor": one.amount_minor,
        **({} if sent is None else {"outcome": sent.bucket, "reason": sent.reason}),
    }


def _count(reasons: Any) -> dict[str, int]:
    """Reasons with their counts, most frequent first."""
    return dict(Counter(reasons).most_common())
