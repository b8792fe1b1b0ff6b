"""`paymesh reconcile`: sends statements, shows what matches and what does not."""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from paymesh.amounts import format_amount
from paymesh.cli.calls import connected, run
from paymesh.cli.options import MERCHANT, RECONCILER_TARGET, Merchant, ReconcilerTarget
from paymesh.cli.program import UserError
from paymesh.cli.story import console
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from paymesh.reconciler.v1 import reconciler_pb2_grpc
from paymesh.reconciliation.files import csv_text, json_text, page
from paymesh.reconciliation.sending import Findings, StatementFile, examine, reconcile
from paymesh.reconciliation.words import RULE_WORDS, kind_word, row_of

EXIT_DIFFERENCES = 2
SHOWN_MAX = 30
"""Differences that the text shows; files have up to DIFFERENCES_MAX."""
DIFFERENCES_MAX = 10_000


def reconcile_statements(
    statement: Annotated[
        list[Path] | None,
        typer.Option(
            "--statement",
            "-s",
            metavar="FILE",
            help="A bank statement: camt.053, MT940, BAI2 or CSV. Repeatable; none: match what is there.",
        ),
    ] = None,
    day: Annotated[
        str,
        typer.Option("--date", metavar="YYYY-MM-DD", help="Look for what is due by then; today by default."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything and keep nothing: say what a run would do.")
    ] = False,
    accept_unproved: Annotated[
        bool,
        typer.Option(
            "--accept-unproved", help="Take statements too whose balances do not prove that they are whole."
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page to look at and to print.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the differences for a spreadsheet.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write everything for machines; - for stdout."),
    ] = None,
    merchant: Merchant = MERCHANT,
    target: ReconcilerTarget = RECONCILER_TARGET,
) -> None:
    """Compare bank statements with our books, and show what does not match.

    Statements are read whole or not at all: one that cannot be read, or whose opening balance and lines do not add
    up to its closing balance, is refused with its line and field, and nothing changes. A file, a statement and a
    line are imported once, however often they are given.

    Every difference is a case. It closes by itself when what was missing arrives; the others are resolved with
    `paymesh case`.

    **Exit codes.** 0 everything matches; 1 the run failed; 2 differences remain, or an option or a statement is
    wrong (then nothing was changed); 3 no service answers.

    **Examples.**

    - `paymesh reconcile --statement 2026-11-25.xml`

    - `paymesh reconcile --date 2026-11-25 -s gbp.sta -s usd.sta --html report.html`

    - `paymesh reconcile --statement 2026-11-25.xml --dry-run`
    """
    until = _day(day)
    quiet = json is not None and str(json) == "-"
    with _progress(quiet) as progress:
        bar = _Bar(progress)
        files = _examined(statement or (), bar)
        begin = pb.ReconcileRequest.Begin(
            merchant_id=merchant,
            date=until.isoformat(),
            dry_run=dry_run,
            differences_max=DIFFERENCES_MAX,
            accept_unproved=accept_unproved,
        )

        async def work() -> Findings:
            async with connected(target) as channel:
                stub = reconciler_pb2_grpc.ReconcilerServiceStub(channel)
                return await reconcile(stub, begin, files, bar)

        findings = run(work(), as_json=quiet)
    _write(html, page, findings)
    _write(csv, csv_text, findings)
    if quiet:
        sys.stdout.write(json_text(findings))
    else:
        _write(json, json_text, findings)
        _print(console(), findings)
    if findings.standing:
        raise typer.Exit(EXIT_DIFFERENCES)


def _day(text: str) -> date:
    if not text:
        return datetime.now(UTC).date()
    try:
        if len(text) != len("2026-11-25"):
            raise ValueError(text)
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"--date {text}: expected a day such as 2026-11-25") from None


def _examined(paths: Sequence[Path], bar: "_Bar") -> list[StatementFile]:
    """Read every file once; what cannot be read is the user's to know before anything is sent."""
    try:
        total, done = sum(path.stat().st_size for path in paths), 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            bar("reading", done, total)

        return [examine(path, told) for path in paths]
    except OSError as error:
        raise UserError(f"--statement {error.filename}: {error.strerror}") from None


class _Bar:
    """One line that says what is being done, and how much of it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._phase = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._phase = self._progress.add_task(phase, total=total or None), phase
        self._progress.update(self._task, completed=done, total=total or None)


def _progress(quiet: bool) -> Progress:
    """On stderr, so that stdout holds the report alone; none where nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


def _write(path: Path | None, make: Callable[[Findings], str], findings: Findings) -> None:
    if path is None:
        return
    try:
        path.write_text(make(findings), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _print(out: Console, findings: Findings) -> None:
    summary = findings.summary
    for file in summary.files:
        what = "imported before" if file.already_imported else f"{file.lines_new:,} new lines"
        known = f", {file.lines_known:,} known" if file.lines_known and not file.already_imported else ""
        out.print(Text(f"{file.name}: {file.statements} statement(s), {what}{known}"))
    if summary.items_copied:
        out.print(f"{summary.items_copied:,} items were new in our books")
    for rule in summary.rules:
        name = RULE_WORDS.get(rule.name, rule.name.replace("_", " "))
        out.print(f"matched by {name}: {rule.matches:,} ({rule.lines:,} lines, {rule.items:,} items)")
    if summary.lines_waiting or summary.items_waiting:
        out.print(f"not due yet: {summary.lines_waiting:,} lines, {summary.items_waiting:,} items")
    if findings.differences:
        out.print(difference_table([d.case for d in findings.differences[:SHOWN_MAX]]))
        if len(findings.differences) > SHOWN_MAX or summary.more_differences:
            out.print(
                f"and more: --html, --csv or --json has up to {DIFFERENCES_MAX:,}, `paymesh case list` all"
            )
    for count in summary.differences:
        difference = format_amount(count.difference_minor, count.currency) if count.currency else ""
        out.print(
            f"{kind_word(count.kind)} {count.currency}: {count.new:,} new, {count.standing:,} standing,"
            f" {count.closed:,} closed by themselves; bank less ledger {difference}"
        )
    kept = "nothing was kept: this was a dry run" if summary.dry_run else f"run {summary.run_id}"
    if findings.standing:
        verdict = Text(f"{findings.standing:,} differences remain", style="bold red")
    else:
        verdict = Text("everything is accounted for", style="bold green")
    out.print(verdict.append(f"  ({kept}, {summary.took_ms / 1000:.1f} s)", style="dim"))


def difference_table(cases: Sequence[pb.Case]) -> Table:
    """Cases, one a row."""
    table = Table(box=None, pad_edge=False)
    for heading in (
        "case",
        "kind",
        "reference",
        "at the bank",
        "in the ledger",
        "since",
        "days",
        "owner",
        "state",
    ):
        right = heading in ("at the bank", "in the ledger", "days")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for case in cases:
        row = row_of(case)
        style = "dim" if case.state == pb.CASE_STATE_CLOSED else ""
        table.add_row(
            row.case_id,
            row.kind,
            Text(row.reference),
            row.at_bank or "-",
            row.in_ledger or "-",
            row.since,
            str(row.age_days),
            Text(row.owner or "-"),
            row.state,
            style=style,
        )
    return table
