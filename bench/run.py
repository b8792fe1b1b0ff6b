"""Carries out a bench: for each phase a load generator, meters read before and after, a count in the database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit.run import run_audit
from bench import meters
from bench.movements import write_made
from bench.orders import CURRENCIES
from bench.phases import MERCHANTS_PER_PHASE, Duration, Phase, Task, What
from bench.report import Measured
from bench.subject import Subject
from bench.tally import Tally
from deploy.local import tether
from deploy.local.errors import last_log_lines
from deploy.local.mesh import ROOT

LINE_BYTES_MAX = 64 * 1024 * 1024
"""The last line has a sample per call."""
NUMBERS_PER_PHASE = 20_000_000
AUDIT_WAIT_SECONDS = 10.0
STUCK_SECONDS = 90.0
"""A load generator that says nothing for so long will say nothing any more."""

OnProgress = Callable[[int, str, float], None]
"""Which phase, counted from 0, what it does, and which share of it is done."""


class BenchError(Exception):
    """The bench cannot be carried out; the text is for a person."""


@dataclass(frozen=True)
class Bench:
    """What to do to one mesh."""

    subject: Subject
    on_progress: OnProgress
    merchants: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    """By phase that was carried out: those that counted, and those of its warm-up."""
    sent: dict[str, What] = field(default_factory=dict)
    """By phase that was carried out."""

    async def measure(self, phase: Phase, duration: Duration, number: int) -> Measured:
        """Carry out one phase. `number` tells apart what would otherwise be sent twice."""
        if phase.after:
            merchants, warm_up = self.merchants[phase.after]
        else:
            merchants = tuple(f"mer_{phase.name}_{number}_{one}" for one in range(MERCHANTS_PER_PHASE))
            warm_up = tuple(f"mer_{phase.name}_{number}_warm_up_{one}" for one in range(2))
        self.merchants[phase.name] = merchants, warm_up
        self.sent[phase.name] = phase.what
        if phase.what in (What.ORDERS, What.CHOREOGRAPHED_ORDERS):
            await self.subject.stock(merchants + warm_up)
        task = Task(
            what=phase.what,
            target=self.subject.target(phase.what),
            callers=phase.callers,
            batch_size=phase.batch_size,
            channels=phase.channels,
            pause_seconds=phase.pause_seconds,
            warm_up_seconds=duration.warm_up_seconds,
            seconds=duration.seconds,
            merchants=merchants,
            warm_up_merchants=warm_up,
            currencies={one: CURRENCIES[place % 3] for place, one in enumerate(merchants + warm_up)},
            first_number=number * NUMBERS_PER_PHASE,
            made_file=await self._made_file(phase, merchants + warm_up),
            api_keys=await self._api_keys(phase, merchants + warm_up),
        )
        before, tally, after = await self._drive(phase, number, task)
        cpu = meters.cpu_between(before, after) | {"load": tally.cpu_seconds}
        return Measured(
            phase=phase,
            tally=tally,
            in_database=await self.subject.count(phase, merchants),
            cpu_seconds=cpu,
            machine_busy_seconds=after.machine_busy_seconds - before.machine_busy_seconds,
            set_sizes=meters.set_sizes(before, after),
            shed=int(after.shed - before.shed),
        )

    async def _made_file(self, phase: Phase, merchants: Sequence[str]) -> str:
        if not phase.after:
            return ""
        path = self.subject.mesh.folder.path / f"made-{phase.name}"
        write_made(path, await self.subject.made(self.sent[phase.after], merchants))
        return str(path)

    async def _api_keys(self, phase: Phase, merchants: Sequence[str]) -> dict[str, str]:
        over_http = phase.what in (What.HTTP_PAYMENTS, What.HTTP_READS)
        return await self.subject.api_keys(merchants) if over_http else {}

    async def _drive(
        self, phase: Phase, number: int, task: Task
    ) -> tuple[meters.Reading, Tally, meters.Reading]:
        mesh = self.subject.mesh
        log = mesh.folder.log_file(f"load-{phase.name}")
        before = None
        started_at = 0.0
        clock = asyncio.get_running_loop().time
        self.on_progress(number, "draws its orders", 0.0)
        async with _load_generator(log) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(task.to_json().encode() + b"\n")
            while line := await asyncio.wait_for(process.stdout.readline(), STUCK_SECONDS):
                said: dict[str, Any] = json.loads(line)
                match said["event"]:
                    case "warming_up":
                        self.on_progress(number, "warms up", 0.0)
                    case "ready":
                        before = await meters.read_before(mesh)
                        process.stdin.write(b"go\n")
                        started_at = clock()
                    case "progress":
                        share = min(1.0, (clock() - started_at) / task.seconds)
                        self.on_progress(number, f"{said['done']:,} done", share)
                    case "finished":
                        after = await meters.read_after(mesh)
                        assert before is not None
                        self.on_progress(number, "done", 1.0)
                        return before, Tally.from_json(said["tally"]), after
            raise BenchError(f"the load generator of {phase.name} ended early:\n{last_log_lines(log)}")


async def run_phases(bench: Bench, phases: Sequence[Phase], durations: dict[str, Duration]) -> list[Measured]:
    """All phases, one after the other."""
    return [await bench.measure(phase, durations[phase.name], number) for number, phase in enumerate(phases)]


@asynccontextmanager
async def _load_generator(log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A load generator that dies with us, and is ended in the end."""
    tied = [
        sys.executable,
        "-I",
        "-S",
        tether.__file__,
        str(os.getpid()),
        str(int(signal.SIGKILL)),
        "-",
        "-",
        "--",
    ]
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "clients" / "python")])
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *tied,
            sys.executable,
            "-m",
            "bench.load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"PYTHONPATH": path.strip(os.pathsep)},
            limit=LINE_BYTES_MAX,
            start_new_session=True,
        )
    try:
        yield process
        await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def audit_problems(subject: Subject) -> tuple[dict[str, Any], list[str]]:
    """What the audit says of the databases, and in one line each what does not hold."""
    found = await run_audit(subject.dsns, wait_seconds=AUDIT_WAIT_SECONDS)
    problems = [f"audit: {name} does not hold" for name in found.violated]
    if not found.settled:
        problems.append(f"audit: work is still under way ({dict(found.in_flight)})")
    said = {
        "ok": found.ok,
        "seconds": round(found.seconds, 2),
        "in_flight": dict(found.in_flight),
        "offences": {line.name: line.offences for line in found.lines},
    }
    return said, problems
