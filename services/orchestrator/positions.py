"""How far sagas are, and what that means for their next move: pure, total, and remembered.

A position is a value: where a saga and each of its steps stand, and nothing that is the saga's own. Together with the
plan it decides everything, so each decision is made once and then looked up: of a wave of sagas, all stand at the same
one or two positions.

    PENDING ─► CALLING ─► DONE ─► UNDOING ─► UNDONE
                 │ │               ▲   └───► STUCK
                 │ └─► GIVEN_UP ───┘
                 └───► REFUSED
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

from services.kit.backoff import Backoff

POSITIONS_KEPT = 4_096
"""Decisions that are remembered, of each sort, those used last: a few megabytes. A day on which everything is retried
comes to hundreds of positions, an ordinary one to a dozen."""


class State(StrEnum):
    """Where a saga stands."""

    # As its value has it: an Enum's own is a Python function, and positions are looked up for every saga at every step.
    __hash__ = str.__hash__

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    COMPENSATING = "COMPENSATING"
    COMPENSATED = "COMPENSATED"
    PARKED = "PARKED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in _ENDED


_ENDED = frozenset((State.COMPLETED, State.COMPENSATED, State.PARKED))


class StepState(StrEnum):
    """How far a step is."""

    __hash__ = str.__hash__

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

    __hash__ = str.__hash__

    DO = "DO"
    UNDO = "UNDO"


class Outcome(StrEnum):
    """What one attempt came to."""

    __hash__ = str.__hash__

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


@dataclass(frozen=True, eq=False)
class Plan:
    """A kind of saga. Equal to itself only: decisions are remembered by plan, and to compare two of them takes longer
    than to decide."""

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


class Progress(NamedTuple):
    """How far a step is."""

    state: StepState = StepState.PENDING
    attempts: int = 0
    """In the present direction."""


class Position(NamedTuple):
    """How far a saga is: all that the next decision depends on. A value that the sagas of a wave share."""

    state: State
    steps: tuple[tuple[str, Progress], ...]
    """By name, in the order of the plan."""
    taken_over: bool = False
    """Whether somebody else has driven the saga before."""


class Call(NamedTuple):
    """Take a step, or its undo, now."""

    step: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class Wait:
    """Something is under way; decide again when it has ended."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Go back, because of this step. The decision must be durable before the first undo."""

    step: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The saga has ended."""

    state: State


@dataclass(frozen=True, slots=True)
class Park:
    """A person is needed for this step."""

    step: str


Decision = Call | Wait | Turn | Finish | Park


class Onward(NamedTuple):
    """Everything to do now."""

    calls: tuple[Call, ...]
    """To be made side by side."""
    position: Position
    """With those calls under way."""
    then: Wait | Turn | Finish | Park


_FAILED = (StepState.REFUSED, StepState.GIVEN_UP)
_UNDER_WAY = (StepState.CALLING, StepState.UNDOING)
_TO_UNDO = (StepState.DONE, StepState.GIVEN_UP)
_SETTLED_BEHIND = (StepState.PENDING, StepState.REFUSED, StepState.UNDONE, StepState.STUCK)


@lru_cache(POSITIONS_KEPT)
def start(plan: Plan) -> Position:
    """Of a new saga."""
    return Position(State.RUNNING, tuple((step.name, Progress()) for step in plan.steps))


@lru_cache(POSITIONS_KEPT)
def onward(plan: Plan, position: Position) -> Onward:
    """The calls to make now, and what to do after they were begun."""
    calls: list[Call] = []
    while isinstance(decision := next_step(plan, position), Call):
        position = calling(position, decision)
        calls.append(decision)
    return Onward(tuple(calls), position, decision)


def next_step(plan: Plan, position: Position) -> Decision:
    """The first thing to do now; see `domain.next_step`."""
    if position.state is State.RUNNING:
        return _forward(plan, dict(position.steps))
    if position.state is State.COMPENSATING:
        return _backward(plan, dict(position.steps))
    return Finish(position.state)


def _forward(plan: Plan, steps: Mapping[str, Progress]) -> Decision:
    all_done = True
    startable: str | None = None
    for step in plan.steps:
        state = steps[step.name].state
        if state in _FAILED:
            return Turn(step.name)
        if state is not StepState.DONE:
            all_done = False
            if state is StepState.PENDING and startable is None and _all_done(steps, step.after):
                startable = step.name
    if startable is not None:
        return Call(startable, Direction.DO)
    return Finish(State.COMPLETED) if all_done else Wait()


def _all_done(steps: Mapping[str, Progress], names: tuple[str, ...]) -> bool:
    return all(steps[name].state is StepState.DONE for name in names)


def _backward(plan: Plan, steps: Mapping[str, Progress]) -> Decision:
    for name, progress in steps.items():
        if progress.state in _TO_UNDO and all(
            steps[f].state in _SETTLED_BEHIND for f in plan.followers[name]
        ):
            return Call(name, Direction.UNDO)
    if any(progress.state in _UNDER_WAY for progress in steps.values()):
        return Wait()
    stuck = next((name for name, progress in steps.items() if progress.state is StepState.STUCK), None)
    return Finish(State.COMPENSATED) if stuck is None else Park(stuck)


def calling(position: Position, call: Call) -> Position:
    """With the step under way."""
    state = StepState.CALLING if call.direction is Direction.DO else StepState.UNDOING
    return _with(position, call.step, Progress(state, 0))


@lru_cache(POSITIONS_KEPT)
def attempted(
    plan: Plan, position: Position, step: str, direction: Direction, outcome: Outcome
) -> tuple[Position, Backoff | None]:
    """The position after an attempt, and the policy of the next one at the same step, if there is one."""
    before = dict(position.steps)[step]
    forth = direction is Direction.DO
    policy = plan.by_name[step].do if forth else plan.by_name[step].undo
    number = before.attempts + 1
    turned_back = forth and position.state is State.COMPENSATING
    again: Backoff | None = None
    match outcome:
        case Outcome.DONE:
            after = Progress(StepState.DONE if forth else StepState.UNDONE, number)
        case Outcome.REFUSED:
            after = Progress(StepState.REFUSED if forth else StepState.STUCK, number)
            if position.state is State.COMPENSATING and _doubtful(after, position.taken_over):
                after = Progress(StepState.GIVEN_UP, number)
        case _:
            # Once the saga has turned back there is no point in trying on: what may have been done is undone.
            if policy.exhausted(number) or turned_back:
                after = Progress(StepState.GIVEN_UP if forth else StepState.STUCK, number)
            else:
                after = Progress(before.state, number)
                again = policy
    return _with(position, step, after), again


def turned(position: Position) -> Position:
    """Turned back; what may have been done by an attempt that we did not hear of counts as given up."""
    state, taken_over = StepState.GIVEN_UP, position.taken_over
    steps = tuple(
        (name, progress._replace(state=state) if _doubtful(progress, taken_over) else progress)
        for name, progress in position.steps
    )
    return Position(State.COMPENSATING, steps, taken_over)


def _doubtful(progress: Progress, taken_over: bool) -> bool:
    """Whether a step that we did not see done may have been done all the same."""
    if progress.state is StepState.REFUSED:
        return taken_over or progress.attempts > 1
    return progress.state is StepState.PENDING and taken_over


@lru_cache(POSITIONS_KEPT)
def ended(position: Position, state: State) -> Position:
    """At its end."""
    return Position(state, position.steps, position.taken_over)


def resumed(plan: Plan, position: Position) -> Position:
    """As its new owner begins with it: see `domain.resumed`."""
    stored = dict(position.steps)
    steps: list[tuple[str, Progress]] = []
    for name in plan.by_name:
        progress = stored.get(name, Progress())  # a saga that was never saved since its start has none
        if progress.state is StepState.CALLING:
            again = StepState.PENDING if position.state is State.RUNNING else StepState.GIVEN_UP
            progress = Progress(again, 0)
        elif progress.state is StepState.UNDOING:
            progress = Progress(StepState.GIVEN_UP, 0)
        steps.append((name, progress))
    return Position(position.state, tuple(steps), taken_over=True)


def _with(position: Position, step: str, progress: Progress) -> Position:
    steps = tuple((name, progress if name == step else known) for name, known in position.steps)
    return Position(position.state, steps, position.taken_over)
