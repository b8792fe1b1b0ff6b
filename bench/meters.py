"""Looks at a mesh from outside while it works: processor time by process, and what the services count themselves."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from deploy.local.supervisor import Mesh

SCRAPE_SECONDS_MAX = 10.0
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment; all numbers only ever grow."""

    cpu_seconds: Mapping[str, float]
    """By process. PostgreSQL's are told apart by the database they serve: postgres/payment."""
    machine_busy_seconds: float
    """Of all processors of this machine together, whoever used them."""
    sets: Mapping[str, tuple[float, float]]
    """By service and method: commands, and the sets they came in."""
    shed: float
    """Commands refused because a queue was full."""


async def read_before(mesh: Mesh) -> Reading:
    """Read all meters, processor time last: answering is no part of what is measured."""
    sets, shed = await _scrape_all(mesh)
    return Reading(_cpu_seconds(mesh), _busy_seconds(), sets, shed)


async def read_after(mesh: Mesh) -> Reading:
    """Read all meters, processor time first."""
    cpu, busy = _cpu_seconds(mesh), _busy_seconds()
    sets, shed = await _scrape_all(mesh)
    return Reading(cpu, busy, sets, shed)


def set_sizes(before: Reading, after: Reading) -> dict[str, dict[str, float]]:
    """Commands, sets and mean size by service and method, for those that had any in between."""
    sizes = {}
    for name, (commands, sets) in sorted(after.sets.items()):
        commands_before, sets_before = before.sets.get(name, (0.0, 0.0))
        commands, sets = commands - commands_before, sets - sets_before
        if sets > 0:
            sizes[name] = {"commands": int(commands), "sets": int(sets), "mean": round(commands / sets, 1)}
    return sizes


def cpu_between(before: Reading, after: Reading) -> dict[str, float]:
    """Processor seconds by process, for those that used any.

    A process of PostgreSQL that ended in between is counted with its whole life, under "postgres".
    """
    used = {name: seconds - before.cpu_seconds.get(name, 0.0) for name, seconds in after.cpu_seconds.items()}
    return {name: seconds for name, seconds in sorted(used.items()) if seconds > 0}


def _cpu_seconds(mesh: Mesh) -> dict[str, float]:
    """Empty on a system without /proc."""
    seconds: defaultdict[str, float] = defaultdict(float)
    seconds["bench"] = sum(os.times()[:2])
    for name in mesh.keepers:
        if (pid := mesh.pid(name)) is None:
            continue
        if name == "postgres":
            for child, serves in _postgres_processes(pid):
                seconds[serves] += _of_process(child)
            seconds[name] += _of_process(pid, with_ended_children=True)
        else:
            seconds[name] += _of_process(pid)
    return dict(seconds)


def postgres_cpu_seconds(postmaster: int) -> float:
    """Processor seconds of a server with all its processes, those that have ended included."""
    children = sum(_of_process(child) for child, _ in _postgres_processes(postmaster))
    return children + _of_process(postmaster, with_ended_children=True)


def _postgres_processes(postmaster: int) -> list[tuple[int, str]]:
    """The server's processes, each with what it serves: a database, or the server as a whole."""
    found = []
    with suppress(OSError):
        for pid in (PROC / f"{postmaster}/task/{postmaster}/children").read_text().split():
            with suppress(OSError):
                # "postgres: payment payment 127.0.0.1(40000) idle", or "postgres: checkpointer"
                title = (PROC / pid / "cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace").split()
                backend = len(title) > 3 and "(" in title[3]
                found.append((int(pid), f"postgres/{title[2]}" if backend else "postgres"))
    return found


def _of_process(pid: int, *, with_ended_children: bool = False) -> float:
    """User and system time so far; 0 for a process that has ended."""
    with suppress(OSError):
        # The name, in parentheses, may hold anything; the fields after it are numbers.
        fields = (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        if with_ended_children:
            ticks += int(fields[13]) + int(fields[14])
        return ticks / os.sysconf("SC_CLK_TCK")
    return 0.0


def _busy_seconds() -> float:
    with suppress(OSError):
        user, nice, system, _idle, _iowait, irq, softirq, *_ = (
            int(ticks) for ticks in (PROC / "stat").read_text().splitlines()[0].split()[1:]
        )
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return 0.0


async def _scrape_all(mesh: Mesh) -> tuple[dict[str, tuple[float, float]], float]:
    texts = await asyncio.gather(
        *(asyncio.to_thread(_scrape, instance.metrics_address) for instance in mesh.plan.instances)
    )
    sums: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, float] = defaultdict(float)
    shed = 0.0
    for instance, text in zip(mesh.plan.instances, texts, strict=True):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                method = sample.labels.get("rpc_method", "").rpartition("/")[2]
                name = f"{instance.service.name}/{method}"
                if sample.name == "paymesh_set_size_sum":
                    sums[name] += sample.value
                elif sample.name == "paymesh_set_size_count":
                    counts[name] += sample.value
                elif sample.name == "paymesh_shed_commands_total":
                    shed += sample.value
    return {name: (sums[name], counts[name]) for name in sums}, shed


def _scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=SCRAPE_SECONDS_MAX) as answer:
        text: str = answer.read().decode()
        return text
