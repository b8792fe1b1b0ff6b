"""What is measured, as data: the phases of a bench, and the task that the load generator is given for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

CALLERS_DEFAULT = 8
BATCH_SIZE_DEFAULT = 100
"""Six batches of a hundred are under way: enough to keep two cores busy, few enough for a p95 below 500 ms."""

MERCHANTS_PER_PHASE = 8
"""Merchants of every phase are its own, so that one query counts its orders."""

WARM_UP_SECONDS_MAX = 1.0
WARM_UP_SHARE_MAX = 0.2
IDLE_PAUSE_SECONDS = 0.02
"""An order meets a mesh at rest: what the one before it left behind, such as the outbox, is done by then."""


class What(StrEnum):
    """What is sent."""

    ORDERS = "orders"
    CHOREOGRAPHED_ORDERS = "choreographed_orders"
    AUTHORIZATIONS = "authorizations"
    ROWS = "rows"
    CALLS = "calls"
    CAPTURES = "captures"
    REFUNDS = "refunds"
    HTTP_PAYMENTS = "http_payments"
    HTTP_READS = "http_reads"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One measurement."""

    name: str
    """As `--phases` and the results call it."""
    title: str
    """As the table calls it; "6 x 100" is six callers with batches of a hundred."""
    what: What
    callers: int
    """Callers at once, each of which waits for its answer before it asks again."""
    batch_size: int = 0
    """Items per call of a batch; 0 for single calls."""
    channels: int = 1
    """Connections that the callers share."""
    pause_seconds: float = 0.0
    """What each caller waits between two calls."""
    weight: float
    """Share of the seconds there are, relative to the other phases."""
    after: str = ""
    """The phase whose payments it goes on with; it has that phase's merchants."""

    @property
    def measures_rate(self) -> bool:
        """False when callers pause: their rate says nothing about the mesh."""
        return self.pause_seconds == 0


FLOOR_CONNECTIONS = 2
FLOOR_ROWS_PER_COMMIT = 250
FLOOR_CALLERS = 64


def all_phases(callers: int = CALLERS_DEFAULT, batch_size: int = BATCH_SIZE_DEFAULT) -> tuple[Phase, ...]:
    """Every phase, in the order in which they run."""
    orders, authorizations = What.ORDERS, What.AUTHORIZATIONS
    return (
        Phase(
            name="floor",
            title="plain inserts",
            what=What.ROWS,
            callers=FLOOR_CONNECTIONS,
            batch_size=FLOOR_ROWS_PER_COMMIT,
            weight=4,
        ),
        Phase(
            name="floor_calls",
            title="bare gRPC calls",
            what=What.CALLS,
            callers=FLOOR_CALLERS,
            channels=2,
            weight=3,
        ),
        Phase(
            name="idle_order",
            title="one order, idle machine",
            what=orders,
            callers=1,
            pause_seconds=IDLE_PAUSE_SECONDS,
            weight=5,
        ),
        Phase(
            name="orders",
            title=f"orders, {callers} x {batch_size}",
            what=orders,
            callers=callers,
            batch_size=batch_size,
            channels=2,
            weight=15,
        ),
        Phase(
            name="orders_64_callers",
            title="orders, 64 single",
            what=orders,
            callers=64,
            channels=2,
            weight=10,
        ),
        Phase(
            name="orders_512_callers",
            title="orders, 512 single",
            what=orders,
            callers=512,
            channels=4,
            weight=10,
        ),
        Phase(
            name="choreographed_orders",
            title=f"choreographed, {callers} x {batch_size}",
            what=What.CHOREOGRAPHED_ORDERS,
            callers=callers,
            batch_size=batch_size,
            channels=2,
            weight=8,
        ),
        Phase(
            name="authorizations",
            title=f"authorizations, {callers} x {batch_size}",
            what=authorizations,
            callers=callers,
            batch_size=batch_size,
            channels=2,
            weight=9,
        ),
        # They end when the authorizations of the phase before are used up, should that be before their time.
        Phase(
            name="captures",
            title=f"captures, {callers} x {batch_size}",
            what=What.CAPTURES,
            callers=callers,
            batch_size=batch_size,
            channels=2,
            weight=5,
            after="authorizations",
        ),
        Phase(
            name="refunds",
            title=f"refunds, {callers} x {batch_size}",
            what=What.REFUNDS,
            callers=callers,
            batch_size=batch_size,
            channels=2,
            weight=4,
            after="captures",
        ),
        Phase(
            name="authorizations_64_callers",
            title="authorizations, 64 single",
            what=authorizations,
            callers=64,
            channels=2,
            weight=7,
        ),
        Phase(
            name="edge_requests",
            title="POST payments, HTTP, 64",
            what=What.HTTP_PAYMENTS,
            callers=64,
            channels=64,
            weight=5,
        ),
        Phase(
            name="edge_reads",
            title="GET payments, HTTP, 64",
            what=What.HTTP_READS,
            callers=64,
            channels=64,
            weight=3,
            after="edge_requests",
        ),
    )


def choose(phases: Sequence[Phase], names: Sequence[str]) -> tuple[Phase, ...]:
    """The phases of these names, and those whose payments they go on with, in their own order; all of them for no
    names.

    Raises ValueError, with what there is, for a name that is none.
    """
    known = {phase.name for phase in phases}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"there is no phase {unknown[0]!r}; there are {', '.join(p.name for p in phases)}")
    wanted = set(names)
    for phase in reversed(phases):  # what a phase goes on with comes before it
        if phase.name in wanted and phase.after:
            wanted.add(phase.after)
    return tuple(phase for phase in phases if not names or phase.name in wanted)


@dataclass(frozen=True)
class Duration:
    """How long a phase is warmed up and measured, in seconds."""

    warm_up_seconds: float
    seconds: float


def split(total_seconds: float, phases: Sequence[Phase]) -> dict[str, Duration]:
    """Shares the seconds out by weight; a phase's share includes its warm-up."""
    weights = sum(phase.weight for phase in phases)
    durations = {}
    for phase in phases:
        share = total_seconds * phase.weight / weights
        warm_up = min(WARM_UP_SECONDS_MAX, share * WARM_UP_SHARE_MAX)
        durations[phase.name] = Duration(warm_up, share - warm_up)
    return durations


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the load generator is told: one line of JSON on its standard input."""

    what: What
    target: str
    """gRPC target, or the DSN of an empty database for rows."""
    callers: int
    batch_size: int
    channels: int
    pause_seconds: float
    warm_up_seconds: float
    seconds: float
    merchants: tuple[str, ...]
    warm_up_merchants: tuple[str, ...]
    currencies: Mapping[str, str]
    """By merchant."""
    first_number: int
    """Orders are numbered from here; no other task may reach into these numbers."""
    made_file: str = ""
    """The payments that an earlier phase has made, for one that goes on with them; see `bench.movements`."""
    api_keys: Mapping[str, str] = field(default_factory=dict)
    """By merchant, for requests over HTTP."""

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> Task:
        """Back from `to_json`."""
        fields: dict[str, Any] = json.loads(line)
        merchants = {name: tuple(fields[name]) for name in ("merchants", "warm_up_merchants")}
        return Task(**fields | merchants | {"what": What(fields["what"])})
