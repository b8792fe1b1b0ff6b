"""From what was counted to what is said. Everything here is pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.phases import Phase, What
from bench.tally import Tally

SHARES = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}
TRACING_LOSS_MAX = 0.05
"""Tracing one order in a hundred may cost less than this share of the throughput."""

LEDGER_LOSS_MAX = 0.20
"""The ledger and the chain of hashes together may cost less than this share of the authorizations a second."""


@dataclass(frozen=True)
class Bar:
    """What a machine with 2 cores should reach."""

    figure: str
    wanted: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether a value reaches it."""
        return value <= self.wanted if self.at_most else value >= self.wanted


BARS = (
    Bar("orders_per_s", 2_500),
    Bar("orders_p95_ms", 500, at_most=True),
    Bar("choreographed_orders_per_order", 0.5),
    Bar("orders_64_callers_per_s", 700),
    Bar("orders_512_callers_per_s", 1_200),
    Bar("idle_order_p50_ms", 30, at_most=True),
    Bar("authorizations_per_s", 6_000),
    Bar("authorizations_per_s", 8_000),
)


def percentile(samples: Sequence[tuple[int, int]], share: float) -> float:
    """The least value that `share` of the items do not exceed (nearest rank). `samples` are (value, items).

    NaN without items.
    """
    total = sum(items for _, items in samples)
    if not total:
        return math.nan
    rank = max(1, math.ceil(round(share * total, 9)))
    seen = 0
    for value, items in sorted(samples):
        seen += items
        if seen >= rank:
            return float(value)
    raise AssertionError("unreachable")


def rate(items: float, seconds: float) -> float:
    """Per second; 0 when no time passed."""
    return items / seconds if seconds > 0 else 0.0


def ratio(above: float, below: float) -> float | None:
    """None when there is nothing to compare with."""
    return round(above / below, 4) if below > 0 else None


def loss(without: float, with_it: float) -> float:
    """The share that is lost, negative when more was gained; 0 when there is nothing to compare with."""
    return 1 - with_it / without if without > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of one phase."""

    phase: Phase
    tally: Tally
    in_database: int | None
    """Items of the phase that the database has in the state that counts; None for a phase that leaves nothing there."""
    cpu_seconds: Mapping[str, float]
    """By process, the load generator included."""
    machine_busy_seconds: float
    set_sizes: Mapping[str, Mapping[str, float]]
    shed: int

    @property
    def done(self) -> int:
        """Items that count: those in the database, if that is where they go."""
        return self.tally.succeeded if self.in_database is None else self.in_database

    @property
    def per_second(self) -> float:
        """Items that count by the time from the first send to the last answer."""
        return rate(self.done, self.tally.seconds)

    @property
    def cores_busy_of_others(self) -> float:
        """Cores that other programs, and the system itself, kept busy meanwhile."""
        return max(0.0, rate(self.machine_busy_seconds - sum(self.cpu_seconds.values()), self.tally.seconds))

    def problems(self) -> list[str]:
        """What makes the figures worthless."""
        found = []
        name = self.phase.name
        if self.done != self.tally.succeeded:
            found.append(
                f"{name}: the callers were told of {self.tally.succeeded:,}, the database has {self.done:,}"
            )
        if self.tally.failed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.tally.failed.most_common(5))
            found.append(f"{name}: {self.tally.failed.total():,} failed ({reasons})")
        if not self.done:
            found.append(f"{name}: nothing was done")
        return found

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        tally, seconds = self.tally, self.tally.seconds
        return {
            "what": self.phase.what.value,
            "callers": self.phase.callers,
            "batch_size": self.phase.batch_size or None,
            "channels": self.phase.channels,
            "pause_ms": round(self.phase.pause_seconds * 1000, 1),
            "per_s": round(self.per_second, 1),
            **latencies(tally),
            "seconds": round(seconds, 3),
            "calls": tally.calls,
            "succeeded_for_callers": tally.succeeded,
            "succeeded_in_database": self.in_database,
            "failed": dict(tally.failed),
            "repeated": dict(tally.repeated),
            "shed": self.shed,
            "set_sizes": {name: dict(sizes) for name, sizes in self.set_sizes.items()},
            "cpu_us_per_item": self._cpu_us_per_item(),
            "cores_busy": round(rate(sum(self.cpu_seconds.values()), seconds), 2),
            "cores_busy_of_others": round(self.cores_busy_of_others, 2),
        }

    def _cpu_us_per_item(self) -> dict[str, float]:
        if not self.done:
            return {}
        used = {**self.cpu_seconds, "total": sum(self.cpu_seconds.values())}
        return {name: round(seconds * 1_000_000 / self.done, 1) for name, seconds in used.items()}


def latencies(tally: Tally) -> dict[str, float | None]:
    """Milliseconds from the first send of an item to its answer; all items of a call have the call's."""
    found: dict[str, float | None] = {}
    for name, share in SHARES.items():
        value = percentile(tally.samples, share)
        found[name] = None if math.isnan(value) else round(value / 1000, 2)
    longest = max((value for value, _ in tally.samples), default=None)
    return found | {"max_ms": None if longest is None else round(longest / 1000, 2)}


def headline(measured: Sequence[Measured]) -> dict[str, float | None]:
    """The figures by which one run is compared with another, by their names; only of the phases there were."""
    figures: dict[str, float | None] = {}
    for one in measured:
        name = one.phase.name
        if one.phase.what is What.ROWS:
            figures["floor_rows_per_s"] = round(one.per_second, 1)
            continue
        if one.phase.what is What.CALLS:
            figures["floor_calls_per_s"] = round(one.per_second, 1)
            continue
        if one.phase.measures_rate:
            figures[f"{name}_per_s"] = round(one.per_second, 1)
        figures |= {
            f"{name}_{share}": value for share, value in latencies(one.tally).items() if share in SHARES
        }
    floor = figures.get("floor_rows_per_s") or 0.0
    for name in ("orders", "authorizations"):
        if (per_second := figures.get(f"{name}_per_s")) is not None:
            figures[f"{name}_per_floor_row"] = ratio(per_second, floor)
    if figures.get("orders_per_s") and (danced := figures.get("choreographed_orders_per_s")) is not None:
        figures["choreographed_orders_per_order"] = ratio(danced, figures["orders_per_s"] or 0.0)
    bare = figures.get("floor_calls_per_s")
    for name in ("orders_64_callers", "orders_512_callers"):
        if bare and (per_second := figures.get(f"{name}_per_s")) is not None:
            figures[f"{name}_per_floor_call"] = ratio(per_second, bare)
    return figures


def bars(figures: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Every bar whose figure was measured, and whether it is met."""
    found = []
    for bar in BARS:
        if (value := figures.get(bar.figure)) is not None:
            sense = "at_most" if bar.at_most else "at_least"
            found.append({"figure": bar.figure, sense: bar.wanted, "is": value, "met": bar.met(value)})
    return found
