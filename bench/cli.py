"""The command `paymesh bench`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from audit.report import AuditError
from bench import compare, ledger
from bench.board import Board
from bench.machine import NotDurableError, machine_facts, read_settings, revision
from bench.phases import BATCH_SIZE_DEFAULT, CALLERS_DEFAULT, Phase, all_phases, choose, split
from bench.report import Measured, bars, headline
from bench.run import Bench, BenchError, audit_problems, run_phases
from bench.spans import SpanSink
from bench.subject import environment_of_subject, fresh_subject, knobs
from bench.table import lines, table
from deploy.local.errors import LocalRunError
from deploy.local.mesh import ROOT
from paymesh.errors import PaymeshCallError

RESULTS = Path(__file__).with_name("results")
SECONDS_DEFAULT = 60.0
EXIT_NO = 1
EXIT_USAGE = 2
EXIT_STOPPED = 143


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for."""

    phases: tuple[Phase, ...]
    seconds: float
    trace_ratio: float
    keep: bool


def bench(
    seconds: Annotated[
        float, typer.Option(envvar="BENCH_SECONDS", min=2, help="Seconds of load, all phases together.")
    ] = SECONDS_DEFAULT,
    callers: Annotated[
        int, typer.Option(min=1, max=1_000, help="Callers that send batches.")
    ] = CALLERS_DEFAULT,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1_000, help="Orders in a batch.")
    ] = BATCH_SIZE_DEFAULT,
    phases: Annotated[str, typer.Option(help="Only these, separated by commas.", metavar="NAMES")] = "",
    trace_ratio: Annotated[float, typer.Option(min=0, max=1, help="Share of orders that is traced.")] = 0.0,
    compare_tracing: Annotated[
        bool, typer.Option("--compare-tracing", help="Measure what tracing 1 % costs, and nothing else.")
    ] = False,
    compare_ledger: Annotated[
        bool,
        typer.Option(
            "--compare-ledger", help="Measure what the ledger and the chain of hashes cost, and nothing else."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="File for the results.", dir_okay=False, show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the mesh's folder, with logs and data.")] = False,
) -> None:
    """Measure a fresh mesh under load, and check its books afterwards.

    Starts a mesh of its own in a temporary folder and drives it from another process. The results go to
    bench/results/latest.json. The exit code is 0 only if the database has what the callers were told, nothing
    failed, and every invariant holds.

    Examples:

    - `paymesh bench`

    - `paymesh bench --seconds 20 --phases floor,orders --callers 8 --batch-size 50`

    - `paymesh bench --compare-tracing`

    - `paymesh bench --compare-ledger`
    """
    try:
        chosen = choose(all_phases(callers, batch_size), [name for name in phases.split(",") if name])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from error
    if compare_tracing and compare_ledger:
        print(
            "error: --compare-tracing and --compare-ledger are two measurements: one at a time",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_USAGE)
    console = Console()
    try:
        if compare_tracing or compare_ledger:
            run = compare.run if compare_tracing else ledger.run
            result = asyncio.run(_stoppable(run(console, callers, batch_size, seconds, keep=keep)))
        else:
            options = Options(phases=chosen, seconds=seconds, trace_ratio=trace_ratio, keep=keep)
            result = asyncio.run(_stoppable(_run(console, options)))
    except LocalRunError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except TimeoutError as error:
        print("error: the load generator has gone silent", file=sys.stderr)
        raise typer.Exit(EXIT_NO) from error
    except asyncio.CancelledError:
        print("error: stopped", file=sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from None
    except (AuditError, BenchError, NotDurableError, PaymeshCallError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NO) from error
    name = "tracing.json" if compare_tracing else "ledger.json" if compare_ledger else "latest.json"
    path = output or RESULTS / name
    write(path, result)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    for problem in result["problems"]:
        print(f"error: {problem}", file=sys.stderr)
    if result["problems"]:
        raise typer.Exit(EXIT_NO)


async def _run(console: Console, options: Options) -> dict[str, Any]:
    with ExitStack() as stack:
        sink = stack.enter_context(SpanSink()) if options.trace_ratio else None
        environment = environment_of_subject(
            trace_endpoint=sink.endpoint if sink else "", trace_ratio=options.trace_ratio
        )
        durations = split(options.seconds, options.phases)
        board = stack.enter_context(Board(console, options.phases, durations))
        board.say("starts a mesh")
        async with fresh_subject(environment, keep=options.keep) as subject:
            machine = machine_facts(subject.mesh.folder.path)
            settings = await read_settings(subject.dsns)
            measured = await run_phases(Bench(subject, board.show), options.phases, durations)
            board.say("checks the books")
            audited, problems = await audit_problems(subject)
            problems += [
                f"{name} ended and was restarted {times} time(s)"
                for name, times in subject.restarted().items()
            ]
            problems = [problem for one in measured for problem in one.problems()] + problems
            subject.keep_logs = bool(problems)
        if sink is not None and not sink.spans():
            problems.append("tracing was on, but no span arrived")
    figures = headline(measured)
    _show(console, measured, figures, machine)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **figures,
        "problems": problems,
        "bars": bars(figures),
        "phases": {one.phase.name: one.to_json() for one in measured},
        "audit": audited,
        "sampler_ratio": options.trace_ratio,
        "spans": sink.spans() if sink else {},
        "bench_seconds": options.seconds,
        "machine": machine,
        "settings": settings,
        "knobs": knobs(environment),
        "git": revision(ROOT),
    }


def _show(
    console: Console, measured: list[Measured], figures: dict[str, float | None], machine: dict[str, Any]
) -> None:
    console.print(table(measured))
    for line in lines(measured, figures, machine):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


async def _stoppable(work: Any) -> dict[str, Any]:
    """Let SIGTERM end the work as Ctrl-C does: in order, with nothing left behind."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    result: dict[str, Any] = await task
    return result


def write(path: Path, result: dict[str, Any]) -> None:
    """Put the results in place as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)
