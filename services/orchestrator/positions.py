"""How far sagas are, and what that means for their next move: pure, total, and remembered.

A position is a value: where a saga and each of its steps stand, and nothing that is the saga's own. Together with the
plan it decides everything, so each decision is made once and then looked up: of a wave of sagas, all stand at the same
one or two positions.

    PENDING ─► CALLING ─► DONE ─► UNDOING ─► UNDONE
                 │ │               ▲   └───► STUCK
                 │ ├─► GIVEN_UP ───┘
                 │ └─► STUCK
                 └───► REFUSED

A plan has up to three parts, one after the other:

* steps that can be undone, with a do and an undo each;
* the pivot, a step that may still be refused and cannot be undone. Its no must be an answer that its participant keeps
  under the key (so it says that nothing was done, and nothing will be), never a guess;
* steps that only go forward. They are owed once the pivot is done. In a plan without a pivot that begins with them, the
  decision to begin was the pivot.

What cannot be turned back from and cannot be done, or whose outcome cannot be had, is STUCK, and a person is needed.
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
    """Its undo, or the step itself where there is no undo, was refused or has failed for the last time."""


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


class Bound(StrEnum):
    """Which way a step can be taken."""

    BOTH_WAYS = "BOTH_WAYS"
    """It has an undo."""
    PIVOT = "PIVOT"
    """It may be refused, and then what was before it is undone. Once it is done there is no way back."""
    ONWARD = "ONWARD"
    """It only goes forward: it is tried until it is done, or stuck."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step as it is designed."""

    name: str
    after: tuple[str, ...]
    """Steps that must be done before this one starts."""
    do: Backoff
    undo: Backoff | None
    """None exactly where it is not BOTH_WAYS."""
    seconds: float
    """Deadline of one attempt, either way."""
    bound: Bound = Bound.BOTH_WAYS


@dataclass(frozen=True, eq=False)
class Plan:
    """A kind of saga. Equal to itself only: decisions are remembered by plan, and to compare two of them takes longer
    than to decide."""

    kind: str
    steps: tuple[StepPlan, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for a plan that could neither go on nor back: one whose steps are not in the three parts
        that the module describes, or that has two pivots."""
        behind: dict[str, set[str]] = {}
        for step in self.steps:
            behind[step.name] = set(step.after).union(*(behind[name] for name in step.after))
        for step in self.steps:
            if (step.undo is None) is (step.bound is Bound.BOTH_WAYS):
                raise ValueError(f"{self.kind}: {step.name} is {step.bound} and has undo {step.undo}")
            earlier = {other.name for other in self.steps if _RANK[other.bound] < _RANK[step.bound]}
            if not earlier <= behind[step.name]:
                raise ValueError(
                    f"{self.kind}: {step.name} does not come after {earlier - behind[step.name]}"
                )
        if sum(step.bound is Bound.PIVOT for step in self.steps) > 1:
            raise ValueError(f"{self.kind}: two pivots")

    @cached_property
    def one_way(self) -> frozenset[str]:
        """The steps that cannot be undone."""
        return frozenset(step.name for step in self.steps if step.bound is not Bound.BOTH_WAYS)

    @cached_property
    def by_name(self) -> dict[str, StepPlan]:
        """The steps by their names."""
        return {step.name: step for step in self.steps}

    @cached_property
    def followers(self) -> dict[str, list[str]]:
        """The steps that come directly after a step, by its name."""
        return {name: [step.name for step in self.steps if name in step.after] for name in self.by_name}


_RANK = {Bound.BOTH_WAYS: 0, Bound.PIVOT: 1, Bound.ONWARD: 2}
"""The parts of a plan, in their order."""


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
    stuck: str | None = None
    for step in plan.steps:
        state = steps[step.name].state
        if state in _FAILED:
            return Turn(step.name)
        if state is not StepState.DONE:
            all_done = False
            if state is StepState.PENDING and startable is None and _all_done(steps, step.after):
                startable = step.name
            elif state is StepState.STUCK and stuck is None:
                stuck = step.name
    if startable is not None:
        return Call(startable, Direction.DO)
    if all_done:
        return Finish(State.COMPLETED)
    # What does not depend on the stuck one is done all the same, then a person is called.
    if stuck is not None and not any(progress.state in _UNDER_WAY for progress in steps.values()):
        return Park(stuck)
    return Wait()


def _all_done(steps: Mapping[str, Progress], names: tuple[str, ...]) -> bool:
    return all(steps[name].state is StepState.DONE for name in names)


def _backward(plan: Plan, steps: Mapping[str, Progress]) -> Decision:
    one_way = plan.one_way
    for name, progress in steps.items():
        if (
            progress.state in _TO_UNDO
            and name not in one_way
            and all(steps[f].state in _SETTLED_BEHIND or f in one_way for f in plan.followers[name])
        ):
            return Call(name, Direction.UNDO)
    if any(progress.state in _UNDER_WAY for progress in steps.values()):
        return Wait()
    for name, progress in steps.items():
        # The second cannot come about, for nobody turns back then; should somebody edit a row, it is not forgotten.
        if progress.state is StepState.STUCK or (name in one_way and progress.state in _TO_UNDO):
            return Park(name)
    return Finish(State.COMPENSATED)


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
    design = plan.by_name[step]
    policy = design.do if forth else design.undo
    assert policy is not None, f"{step} has no undo"
    number = before.attempts + 1
    turned_back = forth and position.state is State.COMPENSATING
    failed = _failed(plan, position, design) if forth else {}
    again: Backoff | None = None
    match outcome:
        case Outcome.DONE:
            after = Progress(StepState.DONE if forth else StepState.UNDONE, number)
        case Outcome.REFUSED:
            after = Progress(failed.get(outcome, StepState.STUCK), number)
            if position.state is State.COMPENSATING and _doubtful(after, position.taken_over):
                after = Progress(StepState.GIVEN_UP, number)
        case _:
            # Once the saga has turned back there is no point in trying on: what may have been done is undone.
            if policy.exhausted(number) or turned_back:
                after = Progress(failed.get(Outcome.UNKNOWN, StepState.STUCK), number)
            else:
                after = Progress(before.state, number)
                again = policy
    return _with(position, step, after), again


def _failed(plan: Plan, position: Position, step: StepPlan) -> dict[Outcome, StepState]:
    """Where a do leaves its step when it is refused, and when the last attempt failed; STUCK is not mentioned."""
    match step.bound:
        case Bound.ONWARD:
            return {}
        case Bound.PIVOT:
            # Its no is final. That nobody knows is none.
            return {Outcome.REFUSED: StepState.REFUSED}
    if plan.one_way and position.taken_over and position.state is State.RUNNING:
        # An earlier owner may have passed the pivot, and there is no way back from there.
        return {}
    return {Outcome.REFUSED: StepState.REFUSED, Outcome.UNKNOWN: StepState.GIVEN_UP}


@lru_cache(POSITIONS_KEPT)
def turned(plan: Plan, position: Position) -> Position:
    """Turned back; what may have been done by an attempt that we did not hear of counts as given up. What cannot be
    undone has not been done: nobody turns back otherwise."""
    state, taken_over = StepState.GIVEN_UP, position.taken_over
    steps = tuple(
        (
            name,
            progress._replace(state=state)
            if name not in plan.one_way and _doubtful(progress, taken_over)
            else progress,
        )
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
