"""The saga engine's decisions. Pure and total: a saga in, what to do next out.

A saga is a set of steps, each with a do and an undo. A step starts when all steps that it comes `after` are done;
steps without an edge between them run side by side. When a step is refused, or is given up after its last attempt,
the saga turns back: every step that was done *or may have been done* is undone, those that came last first. An undo
that is refused or runs out of attempts parks the saga for a person; the other undos are carried out all the same.

    PENDING ─► CALLING ─► DONE ─► UNDOING ─► UNDONE
                 │ │               ▲   └───► STUCK
                 │ └─► GIVEN_UP ───┘
                 └───► REFUSED
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from services.kit.backoff import Backoff

SagaKey = tuple[str, str]
"""(merchant, saga id)."""


class State(StrEnum):
    """Where a saga stands."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    COMPENSATING = "COMPENSATING"
    COMPENSATED = "COMPENSATED"
    PARKED = "PARKED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (State.COMPLETED, State.COMPENSATED, State.PARKED)


class StepState(StrEnum):
    """How far a step is."""

    PENDING = "PENDING"
    CALLING = "CALLING"
    DONE = "DONE"
    REFUSED = "REFUSED"
    GIVEN_UP = "GIVEN_UP"
    """The last attempt failed; it may have been done all the same, so it is undone like one that was."""
    UNDOING = "UNDOING"
    UNDONE = "UNDONE"
    STUCK = "STUCK"


class Direction(StrEnum):
    """Which way a step is taken."""

    DO = "DO"
    UNDO = "UNDO"


class Outcome(StrEnum):
    """What one attempt came to."""

    DONE = "DONE"
    REFUSED = "REFUSED"
    RETRYABLE = "RETRYABLE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step as it is designed."""

    name: str
    after: tuple[str, ...]
    """Steps that must be done before this one starts."""
    do: Backoff
    undo: Backoff
    seconds: float
    """Deadline of one attempt, either way."""


@dataclass(frozen=True)
class Plan:
    """A kind of saga."""

    kind: str
    steps: tuple[StepPlan, ...]

    @cached_property
    def by_name(self) -> dict[str, StepPlan]:
        """The steps by their names."""
        return {step.name: step for step in self.steps}

    @cached_property
    def followers(self) -> dict[str, list[str]]:
        """The steps that come directly after a step, by its name."""
        return {name: [step.name for step in self.steps if name in step.after] for name in self.by_name}


_DO = Backoff(first_ms=100, factor=2, max_ms=5_000, attempts_max=14)
"""About 40 s of trying: longer than any service's restart and than the payment resolver needs for a lost answer."""
_UNDO = Backoff(first_ms=200, factor=2, max_ms=30_000, attempts_max=20)
"""About six minutes of trying before a person is called: an undo has nothing better to do than to succeed."""

PLACE = Plan(
    "place",
    (
        StepPlan("reserve", (), _DO, _UNDO, seconds=5.0),
        StepPlan("authorize", ("reserve",), _DO, _UNDO, seconds=9.0),
        StepPlan("ship", ("authorize",), _DO, _UNDO, seconds=5.0),
    ),
)
"""Places an order: stock first, for it is the cheapest to give back; the carrier last, for it is the dearest."""

PLANS: Mapping[str, Plan] = {PLACE.kind: PLACE}


class Attempt(NamedTuple):
    """One attempt at a step; times in milliseconds since 1970."""

    step: str
    direction: Direction
    number: int
    outcome: Outcome
    reason: str
    message: str
    facts: Mapping[str, str]
    started_at_ms: int
    ended_at_ms: int
    retry_after_ms: int = 0
    """The least that the callee asked us to wait."""


_NO_FACTS: Mapping[str, str] = {}


class Progress(NamedTuple):
    """How far one step of one saga is."""

    state: StepState = StepState.PENDING
    attempts: int = 0
    """In the present direction."""
    facts: Mapping[str, str] = _NO_FACTS
    """What the do answered, for example the identifier of what it made."""


class Reason(NamedTuple):
    """Why a saga turned back or was parked."""

    step: str
    code: str
    message: str


class Saga(NamedTuple):
    """A saga under way."""

    merchant_id: str
    saga_id: str
    order_id: str
    kind: str
    state: State
    steps: Mapping[str, Progress]
    created_at_ms: int
    reason: Reason | None = None
    history: tuple[Attempt, ...] = ()
    ended_at_ms: int = 0
    taken_over: bool = False
    """Whether somebody else has driven it before."""

    @property
    def key(self) -> SagaKey:
        """What it is stored under."""
        return (self.merchant_id, self.saga_id)


class Call(NamedTuple):
    """Take a step, or its undo, now."""

    step: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class Wait:
    """Something is under way; decide again when it has ended."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Go back. The decision must be durable before the first undo."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Finish:
    """The saga has ended."""

    state: State


@dataclass(frozen=True, slots=True)
class Park:
    """A person is needed."""

    reason: Reason


Decision = Call | Wait | Turn | Finish | Park

_FAILED = (StepState.REFUSED, StepState.GIVEN_UP)
_UNDER_WAY = (StepState.CALLING, StepState.UNDOING)
_TO_UNDO = (StepState.DONE, StepState.GIVEN_UP)
_SETTLED_BEHIND = (StepState.PENDING, StepState.REFUSED, StepState.UNDONE, StepState.STUCK)


def begin(plan: Plan, merchant_id: str, saga_id: str, order_id: str, now_ms: int) -> Saga:
    """A new saga."""
    steps = {step.name: Progress() for step in plan.steps}
    return Saga(merchant_id, saga_id, order_id, plan.kind, State.RUNNING, steps, now_ms)


def next_step(saga: Saga) -> Decision:
    """What to do now. A `Call` is to be marked with `calling` and asked again, until `Wait` or an end comes."""
    if saga.state is State.RUNNING:
        return _forward(saga)
    if saga.state is State.COMPENSATING:
        return _backward(saga)
    return Finish(saga.state)


def _forward(saga: Saga) -> Decision:
    steps = saga.steps
    all_done = True
    startable: str | None = None
    for step in PLANS[saga.kind].steps:
        state = steps[step.name].state
        if state in _FAILED:
            return Turn(_last_reason(saga, step.name))
        if state is not StepState.DONE:
            all_done = False
            if state is StepState.PENDING and startable is None and _all_done(steps, step.after):
                startable = step.name
    if startable is not None:
        return Call(startable, Direction.DO)
    return Finish(State.COMPLETED) if all_done else Wait()


def _all_done(steps: Mapping[str, Progress], names: tuple[str, ...]) -> bool:
    return all(steps[name].state is StepState.DONE for name in names)


def _backward(saga: Saga) -> Decision:
    steps, plan = saga.steps, PLANS[saga.kind]
    for name, progress in steps.items():
        if progress.state in _TO_UNDO and all(
            steps[f].state in _SETTLED_BEHIND for f in plan.followers[name]
        ):
            return Call(name, Direction.UNDO)
    if any(progress.state in _UNDER_WAY for progress in steps.values()):
        return Wait()
    stuck = next((name for name, progress in steps.items() if progress.state is StepState.STUCK), None)
    return Finish(State.COMPENSATED) if stuck is None else Park(_last_reason(saga, stuck))


def _last_reason(saga: Saga, step: str) -> Reason:
    last = next((a for a in reversed(saga.history) if a.step == step), None)
    return (
        Reason(step, last.reason, last.message)
        if last
        else Reason(step, "UNKNOWN", "no attempt was recorded")
    )


def calling(saga: Saga, call: Call) -> Saga:
    """The saga with the step under way."""
    state = StepState.CALLING if call.direction is Direction.DO else StepState.UNDOING
    return _with(saga, call.step, Progress(state, 0, saga.steps[call.step].facts))


def turned(saga: Saga, turn: Turn) -> Saga:
    """The saga on its way back. What is still being called may come to be done: it is waited for, then undone. What may
    have been done by an attempt that we did not hear of is undone, too: in a saga that was taken over that can be any
    step, and a "no" to a repeat (a stricter check since, another fingerprint) says nothing of the first attempt."""
    return saga._replace(
        state=State.COMPENSATING,
        reason=turn.reason,
        steps={
            name: progress._replace(state=StepState.GIVEN_UP) if _doubtful(saga, progress) else progress
            for name, progress in saga.steps.items()
        },
    )


def _doubtful(saga: Saga, progress: Progress) -> bool:
    """Whether a step that we did not see done may have been done all the same."""
    if progress.state is StepState.REFUSED:
        return saga.taken_over or progress.attempts > 1
    return progress.state is StepState.PENDING and saga.taken_over


def ended(saga: Saga, end: Finish | Park, now_ms: int) -> Saga:
    """The saga at its end."""
    if isinstance(end, Park):
        return saga._replace(state=State.PARKED, reason=end.reason, ended_at_ms=now_ms)
    return saga._replace(state=end.state, ended_at_ms=now_ms)


def attempted(saga: Saga, attempt: Attempt) -> tuple[Saga, int | None]:
    """The saga after an attempt, and how many milliseconds to wait before the next attempt at the same step; None when
    there is none."""
    before = saga.steps[attempt.step]
    plan = PLANS[saga.kind].by_name[attempt.step]
    forth = attempt.direction is Direction.DO
    policy = plan.do if forth else plan.undo
    number = before.attempts + 1
    wait_ms: int | None = None
    match attempt.outcome:
        case Outcome.DONE:
            after = Progress(
                StepState.DONE if forth else StepState.UNDONE,
                number,
                {**before.facts, **attempt.facts} if forth else before.facts,
            )
        case Outcome.REFUSED:
            after = Progress(
                StepState.REFUSED if forth else StepState.STUCK, number, {**before.facts, **attempt.facts}
            )
            if saga.state is State.COMPENSATING and _doubtful(saga, after):
                after = after._replace(state=StepState.GIVEN_UP)
        case _:
            # Once the saga has turned back there is no point in trying on: what may have been done is undone.
            turned_back = forth and saga.state is State.COMPENSATING
            if policy.exhausted(number) or turned_back:
                after = Progress(StepState.GIVEN_UP if forth else StepState.STUCK, number, before.facts)
            else:
                after = Progress(before.state, number, before.facts)
                wait_ms = max(policy.delay_ms(number), attempt.retry_after_ms)
    steps = {**saga.steps, attempt.step: after}
    return saga._replace(steps=steps, history=(*saga.history, attempt)), wait_ms


def resumed(saga: Saga) -> Saga:
    """A saga as its new owner begins with it. Forward, everything is sent again: the keys make repeats harmless. Back,
    what was being called may have been done and is undone; what was being undone is undone again."""
    steps: dict[str, Progress] = {}
    for name in PLANS[saga.kind].by_name:
        progress = saga.steps.get(name, Progress())  # a saga that was never saved since its start has none
        if progress.state is StepState.CALLING:
            again = StepState.PENDING if saga.state is State.RUNNING else StepState.GIVEN_UP
            progress = progress._replace(state=again, attempts=0)
        elif progress.state is StepState.UNDOING:
            progress = progress._replace(state=StepState.GIVEN_UP, attempts=0)
        steps[name] = progress
    return saga._replace(steps=steps, taken_over=True)


def facts(saga: Saga) -> dict[str, str]:
    """Everything that the steps have answered."""
    return {key: value for progress in saga.steps.values() for key, value in progress.facts.items()}


def attempt_number(saga: Saga, step: str) -> int:
    """The number of the attempt that is about to be made."""
    return saga.steps[step].attempts + 1


def _with(saga: Saga, step: str, progress: Progress) -> Saga:
    return saga._replace(steps={**saga.steps, step: progress})


def order_id_of(saga_id: str) -> str:
    """The order that a place saga works on bears the same number."""
    return "ord_" + saga_id.removeprefix("saga_")


def saga_id_of(order_id: str) -> str:
    """The saga that places an order bears the same number."""
    return "saga_" + order_id.removeprefix("ord_")
