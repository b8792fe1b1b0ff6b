"""What do the ledger and the chain of hashes cost? Two fresh meshes, one that writes neither, take turns with
authorizations. See `bench.compare` for why they take turns, and `services.payment.bench_only` for the switch.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from bench.board import Board
from bench.compare import PAIRS, cpu_us, in_turns, overall, show_turns, turn
from bench.machine import machine_facts, read_settings, revision
from bench.report import LEDGER_LOSS_MAX, Measured, loss, ratio
from bench.run import Bench, audit_problems
from bench.subject import environment_of_subject, fresh_subject
from deploy.local.mesh import ROOT

PHASE = "authorizations"


async def run(
    console: Console, callers: int, batch_size: int, seconds: float, *, keep: bool = False
) -> dict[str, Any]:
    """Measure, show, and return the results."""
    phase, duration = turn(PHASE, callers, batch_size, seconds)
    with Board(console, [phase] * (2 * PAIRS), {phase.name: duration}) as board:
        board.say("starts two meshes")
        environment = environment_of_subject()
        async with (
            fresh_subject(environment, keep=keep) as whole,
            fresh_subject(environment, keep=keep, without_history=True) as bare,
        ):
            machine = machine_facts(whole.mesh.folder.path)
            settings = await read_settings(whole.dsns)
            without, with_ledger = await in_turns(
                phase, duration, Bench(bare, board.show), Bench(whole, board.show)
            )
            board.say("checks the books")
            problems = [problem for one in without + with_ledger for problem in one.problems()]
            # The other has no books to check: that it has none is what was measured.
            problems += (await audit_problems(whole))[1]
            if entries := await bare.count_entries():
                problems.append(f"the mesh without a ledger has {entries:,} ledger entries")
            whole.keep_logs = bare.keep_logs = bool(problems)
    return _told(console, without, with_ledger, problems) | {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "bench_seconds": seconds,
        "machine": machine,
        "settings": settings,
        "git": revision(ROOT),
    }


def _told(
    console: Console, without: list[Measured], with_ledger: list[Measured], problems: list[str]
) -> dict[str, Any]:
    lost = loss(overall(without), overall(with_ledger))
    show_turns(console, "ledger and chain of hashes", PHASE, without, with_ledger)
    cpu_loss = loss(cpu_us(with_ledger), cpu_us(without))
    verdict = "[green]met[/]" if lost < LEDGER_LOSS_MAX else "[yellow]not met[/]"
    console.print(
        f"  ledger and chain cost {lost:.1%} of the authorizations a second, and are {cpu_loss:.1%} of the processor"
        f" time of each: less than {LEDGER_LOSS_MAX:.0%} wanted: {verdict}",
        highlight=False,
        soft_wrap=True,
    )
    return {
        "loss": round(lost, 4),
        "loss_max": LEDGER_LOSS_MAX,
        "cpu_share": round(cpu_loss, 4),
        "cpu_ratio": ratio(cpu_us(with_ledger), cpu_us(without)),
        "authorizations_per_s_without": round(overall(without), 1),
        "authorizations_per_s_with": round(overall(with_ledger), 1),
        "turns_without": [one.to_json() for one in without],
        "turns_with": [one.to_json() for one in with_ledger],
        "problems": problems,
    }
