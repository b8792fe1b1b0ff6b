"""The report of a replay for people: where every line and every invoice of the file ended."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paymesh.amounts import format_amount
from paymesh.replay.invoices import Export
from paymesh.replay.summary import BUCKETS, RETURN_BUCKETS, PlacedInvoice, SentReturn, Summary

NAMED_MAX = 20
"""Orders that did not complete are shown one by one up to this many per reason; `--json` has them all."""


def print_report(
    out: Console,
    summary: Summary,
    export: Export,
    placed: Sequence[PlacedInvoice],
    dry_run: bool,
    returned: Sequence[SentReturn] = (),
) -> None:
    """Print what was rejected by line number, then the sums."""
    by_reason: dict[str, list[int]] = {}
    for row in export.rejected_rows:
        by_reason.setdefault(row.reason, []).append(row.line)
    if by_reason:
        out.print(Text("rejected rows, by line number", style="bold"))
        for reason, lines in by_reason.items():
            out.print(Text(f"  {reason}: {line_ranges(lines)}"))
    if export.rejected_invoices:
        out.print(Text("invoices that are not orders", style="bold"))
        _print_names(out, ((one.reason, one.number, len(one.good_lines)) for one in export.rejected_invoices))
    not_completed = [one for one in placed if one.bucket != "completed"]
    if not_completed:
        out.print(Text("orders that did not complete", style="bold"))
        for one in not_completed[:NAMED_MAX]:
            out.print(Text(f"  {one.invoice.number}  {one.bucket}  {one.reason}  {one.order_id}"))
        if len(not_completed) > NAMED_MAX:
            out.print(Text(f"  and {len(not_completed) - NAMED_MAX} more; --json has them all"))
    not_returned = [one for one in returned if one.bucket != "returned"]
    if not_returned:
        out.print(Text("returns that were not carried out", style="bold"))
        for back in not_returned[:NAMED_MAX]:
            what = f"{back.taken_back.number} of {back.taken_back.original}"
            out.print(Text(f"  {what}  {back.bucket}  {back.reason}"))
        if len(not_returned) > NAMED_MAX:
            out.print(Text(f"  and {len(not_returned) - NAMED_MAX} more; --json has them all"))
    out.print(_sums(summary, dry_run))
    _print_notes(out, summary, dry_run)


def line_ranges(lines: Iterable[int]) -> str:
    """Ascending line numbers, runs of them shortened: 3, 5-8, 12."""
    runs: list[list[int]] = []
    for line in sorted(lines):
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _print_names(out: Console, rejected: Iterable[tuple[str, str, int]]) -> None:
    by_reason: dict[str, list[str]] = {}
    for reason, number, good_lines in rejected:
        note = f" ({good_lines} good rows)" if good_lines else ""
        by_reason.setdefault(reason, []).append(f"{number}{note}")
    for reason, numbers in by_reason.items():
        out.print(Text(f"  {reason}: {', '.join(numbers)}"))


def _sums(summary: Summary, dry_run: bool) -> Table:
    """Two sums: the parts of the file's lines, the parts of its invoices."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")

    def part(name: str, count: int) -> None:
        table.add_row(Text(f"  {name}"), f"{count:,}")

    table.add_row(Text("lines in the file", style="bold"), Text(f"{summary.lines:,}", style="bold"))
    part("header", 1)
    part("blank", summary.blank_lines)
    part("continued rows", summary.continuation_lines)
    part("rows of orders", summary.rows_ordered)
    part("rows of returns", summary.rows_taken_back)
    part("good rows of invoices that are not orders", summary.rows_of_rejected_invoices)
    for reason, count in summary.rows_rejected.items():
        part(f"rejected {reason}", count)
    table.add_row(Text("invoices in the file", style="bold"), Text(f"{summary.invoices:,}", style="bold"))
    if dry_run:
        part("orders to place", summary.invoices_to_place)
    for bucket in () if dry_run else BUCKETS:
        if not summary.placed.get(bucket):
            part(bucket, 0)
        for reason, count in summary.placed.get(bucket, {}).items():
            part(f"{bucket} {reason}".rstrip(), count)
    part("taken back", summary.invoices_taken_back)
    for reason, count in summary.invoices_rejected.items():
        part(f"not an order {reason}", count)
    if summary.returns:
        table.add_row(Text("returns", style="bold"), Text(f"{summary.returns:,}", style="bold"))
    for bucket in RETURN_BUCKETS:
        for reason, count in summary.returned.get(bucket, {}).items():
            part(f"{bucket} {reason}".rstrip(), count)
    return table


def _print_notes(out: Console, summary: Summary, dry_run: bool) -> None:
    to_place = format_amount(summary.amount_minor, summary.currency)
    if dry_run:
        out.print(f"dry run: nothing was sent; the orders come to {to_place}")
    else:
        completed = format_amount(summary.amount_completed_minor, summary.currency)
        out.print(f"completed orders come to {completed} of {to_place}")
        if summary.returns:
            back = format_amount(summary.amount_returned_minor, summary.currency)
            of = format_amount(summary.amount_to_return_minor, summary.currency)
            out.print(f"returns come to {back} of {of}")
        out.print(f"{summary.replayed:,} answers had been given to an earlier run already")
    if summary.lines_not_utf8:
        out.print(f"{summary.lines_not_utf8:,} lines are not UTF-8 and were read as Windows-1252")
    if summary.count("unresolved") or summary.count_returns("unresolved"):
        out.print("some orders have no answer yet: run the same file again, nothing happens twice")
