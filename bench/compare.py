"""What does tracing cost? Two fresh meshes, one that traces a share of its orders and one that does not, take turns.

Side by side on one machine and in turns, because two runs a minute apart differ by more than what is looked for. The
order of each pair is the reverse of the one before, so that whatever drifts in time falls on both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.board import Board
from bench.machine import machine_facts, read_settings, revision
from bench.phases import Duration, Phase, all_phases
from bench.report import TRACING_LOSS_MAX, Measured, loss, rate, ratio
from bench.run import Bench, audit_problems
from bench.spans import SpanSink
from bench.subject import environment_of_subject, fresh_subject
from deploy.local.mesh import ROOT

PAIRS = 4
RATIO = 0.01
WARM_UP_SECONDS_MAX = 1.0
PHASE = "orders"


async def run(
    console: Console, callers: int, batch_size: int, seconds: float, *, keep: bool = False
) -> dict[str, Any]:
    """Measure, show, and return the results."""
    phase, duration = turn(PHASE, callers, batch_size, seconds)
    with (
        SpanSink() as sink,
        Board(console, [phase] * (2 * PAIRS), {phase.name: duration}) as board,
    ):
        board.say("starts two meshes")
        traced_environment = environment_of_subject(trace_endpoint=sink.endpoint, trace_ratio=RATIO)
        async with (
            fresh_subject(environment_of_subject(), keep=keep) as plain,
            fresh_subject(traced_environment, keep=keep) as traced,
        ):
            machine = machine_facts(plain.mesh.folder.path)
            settings = await read_settings(plain.dsns)
            without, with_tracing = await in_turns(
                phase, duration, Bench(plain, board.show), Bench(traced, board.show)
            )
            board.say("checks the books")
            problems = [problem for one in without + with_tracing for problem in one.problems()]
            for subject in (plain, traced):
                found = (await audit_problems(subject))[1]
                problems += found
                subject.keep_logs = bool(problems)
        spans = sink.spans()
    if not spans:
        problems.append("tracing was on, but no duration arrived")
    return _told(console, without, with_tracing, spans, problems) | {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sampler_ratio": RATIO,
        "bench_seconds": seconds,
        "machine": machine,
        "settings": settings,
        "git": revision(ROOT),
    }


def turn(phase_name: str, callers: int, batch_size: int, seconds: float) -> tuple[Phase, Duration]:
    """A phase, and how long each of its turns is when all of them take `seconds`."""
    phase = next(phase for phase in all_phases(callers, batch_size) if phase.name == phase_name)
    share = seconds / (2 * PAIRS)
    warm_up = min(WARM_UP_SECONDS_MAX, share / 5)
    return phase, Duration(warm_up, share - warm_up)


async def in_turns(
    phase: Phase, duration: Duration, plain: Bench, other: Bench
) -> tuple[list[Measured], list[Measured]]:
    """Measure the mesh without and the mesh with what is looked at, `PAIRS` times."""
    without: list[Measured] = []
    with_it: list[Measured] = []
    for pair in range(PAIRS):
        turns = [(plain, without), (other, with_it)]
        for place, (bench, into) in enumerate(turns if pair % 2 == 0 else reversed(turns)):
            into.append(await bench.measure(phase, duration, 2 * pair + place))
    return without, with_it


def show_turns(
    console: Console, title: str, items: str, without: Sequence[Measured], with_it: Sequence[Measured]
) -> None:
    """A table of every turn. `items` is what was counted."""
    shown = Table(title=title)
    for heading in ("", f"{items}/s", "cpu µs each", *(f"turn {number + 1}" for number in range(PAIRS))):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, measured in (("off", without), ("on", with_it)):
        turns = [f"{one.per_second:,.0f}" for one in measured]
        shown.add_row(name, f"{overall(measured):,.0f}", f"{cpu_us(measured):,.0f}", *turns)
    console.print(shown)


def overall(measured: Sequence[Measured]) -> float:
    """The median, so that one turn in which the machine had something else to do does not decide."""
    return statistics.median(one.per_second for one in measured)


def cpu_us(measured: Sequence[Measured]) -> float:
    """Microseconds of processor time for one item."""
    seconds = sum(sum(one.cpu_seconds.values()) for one in measured)
    return rate(1, sum(one.done for one in measured)) * seconds * 1_000_000


def _told(
    console: Console,
    without: list[Measured],
    with_tracing: list[Measured],
    spans: dict[str, int],
    problems: list[str],
) -> dict[str, Any]:
    lost = loss(overall(without), overall(with_tracing))
    show_turns(console, f"tracing {RATIO:.0%} of the orders", "orders", without, with_tracing)
    cpu_ratio = ratio(cpu_us(with_tracing), cpu_us(without))
    console.print(
        f"  tracing costs {lost:.1%} of the orders a second (less than {TRACING_LOSS_MAX:.0%} wanted), "
        f"processor time per order is {cpu_ratio} times as much; {sum(spans.values()):,} spans arrived",
        highlight=False,
        soft_wrap=True,
    )
    if lost >= TRACING_LOSS_MAX:
        problems = [*problems, f"tracing costs {lost:.1%}, not less than {TRACING_LOSS_MAX:.0%}"]
    return {
        "loss": round(lost, 4),
        "loss_max": TRACING_LOSS_MAX,
        "cpu_ratio": cpu_ratio,
        "orders_per_s_without": round(overall(without), 1),
        "orders_per_s_with": round(overall(with_tracing), 1),
        "turns_without": [one.to_json() for one in without],
        "turns_with": [one.to_json() for one in with_tracing],
        "spans": spans,
        "problems": problems,
    }
