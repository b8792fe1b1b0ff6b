"""What a person is shown at the end of a bench."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.report import SHARES, Measured, bars

OTHERS_CORES_MAX = 0.25
"""The system's own work for the mesh, such as writing to the disk, is nobody's processor time and stays below this."""


def table(measured: Sequence[Measured]) -> Table:
    """A row per phase; 80 columns are enough for it."""
    shown = Table(
        title="paymesh bench", caption="cpu: processor time of all processes for one, load included"
    )
    shown.add_column("what", min_width=24)
    for heading in ("per s", "p50 ms", "p95 ms", "p99 ms", "cpu µs"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for one in measured:
        fields = one.to_json()
        total = fields["cpu_us_per_item"].get("total")
        shown.add_row(
            one.phase.title,
            f"{one.per_second:,.0f}" if one.phase.measures_rate else "",
            *(_number(fields[share]) for share in SHARES),
            "" if total is None else f"{total:,.0f}",
        )
    return shown


def lines(
    measured: Sequence[Measured], figures: Mapping[str, float | None], machine: Mapping[str, Any]
) -> Iterator[str]:
    """The sentences below the table, in rich's markup."""
    for bar in bars(figures):
        sense, wanted = ("at most", bar["at_most"]) if "at_most" in bar else ("at least", bar["at_least"])
        verdict = "[green]met[/]" if bar["met"] else "[yellow]not met[/]"
        yield f"{bar['figure']}: {bar['is']:,}, {sense} {wanted:,} wanted: {verdict}"
    for name in ("orders", "authorizations"):
        if share := figures.get(f"{name}_per_floor_row"):
            yield f"one of the {name} takes as long as {1 / share:,.0f} plain rows"
    yield (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['filesystem']}, "
        f"{machine['python']}, load average before: {machine['load_average_before']}"
    )
    for one in measured:
        if one.shed or one.tally.repeated:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in one.tally.repeated.most_common())
            yield f"{one.phase.title}: {one.shed:,} shed, sent again: {reasons or 'none'}"
    if (others := max((one.cores_busy_of_others for one in measured), default=0.0)) > OTHERS_CORES_MAX:
        yield f"[yellow]other programs kept up to {others:.1f} cores busy: a quiet machine does more[/]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
