"""An audit's report for people: a line per invariant, and the first offenders below those that are violated."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from audit.report import Line, Offence, Report

SHOWN = 3
"""Offenders that are told one by one; `--json` has more."""
NAME_WIDTH = 27


def show(report: Report, out: Console) -> None:
    """Print it."""
    for line in report.lines:
        out.print(_verdict(line))
        if not line.ok:
            out.print(Text(f"            not true: {line.sentence}", style="red"))
            _print(out, line.first, line.offences)
        if line.notes:
            _print(out, line.first_notes, line.notes)
    violated = len(report.violated)
    judged = f"{len(report.lines)} invariants in {report.seconds:.1f} s"
    under_way = ", ".join(f"{count:,} {what}" for what, count in report.in_flight.items() if count)
    waiting = f"; in flight and not judged: {under_way}" if under_way else "; nothing was in flight"
    if violated:
        out.print(Text(f"{violated} violated of {judged}{waiting}", style="bold red"))
    else:
        out.print(Text(f"all hold: {judged}{waiting}", style="bold green"))


def _verdict(line: Line) -> Text:
    text = Text()
    text.append("ok        " if line.ok else "VIOLATED  ", style="green" if line.ok else "bold red")
    text.append(f"{line.number:>2} {line.name:<{NAME_WIDTH}}")
    text.append(" ".join(_counts(line)))
    text.append(f": {line.compared}", style="dim")
    return text


def _counts(line: Line) -> list[str]:
    counts = [", ".join(f"{count:,} {what}" for what, count in line.counted.items())]
    if line.in_flight:
        counts.append(f"({line.in_flight:,} in flight)")
    if line.offences:
        counts.append(f"({line.offences:,} offences)")
    if line.notes:
        counts.append(f"({line.notes:,} {line.noted_as})")
    return counts


def _print(out: Console, first: Sequence[Offence], total: int) -> None:
    for offence in first[:SHOWN]:
        out.print(Text(f"            {offence}"))
    if total > SHOWN:
        out.print(Text(f"            and {total - SHOWN:,} more"))
