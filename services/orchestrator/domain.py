"""The saga engine's decisions. Pure and total: a saga in, what to do next out.

A saga is a set of steps, each with a do and an undo. A step starts when all steps that it comes `after` are done;
steps without an edge between them run side by side. When a step is refused, or is given up after its last attempt,
the saga turns back: every step that was done *or may have been done* is undone, those that came last first. An undo
that is refused or runs out of attempts parks the saga for a person; the other undos are carried out all the same.
Behind its pivot a saga only goes forward, and what cannot be done there parks it, too.

What a saga does next depends on its plan and its *position* alone; that half of the decisions is in `positions`. What
is a saga's own (facts, history, reason) is kept beside its position here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.orchestrator import positions
from services.orchestrator.plans import CANCEL, DISPATCH, PLACE, PLANS, RETURN
from services.orchestrator.positions import (
    Bound,
    Call,
    Decision,
    Direction,
    Finish,
    Onward,
    Outcome,
    Park,
    Plan,
    Position,
    Progress,
    State,
    StepPlan,
    StepState,
    Turn,
    Wait,
)

__all__ = [
    "CANCEL",
    "DISPATCH",
    "PLACE",
    "PLANS",
    "RETURN",
    "Attempt",
    "Bound",
    "Call",
    "Decision",
    "Direction",
    "Finish",
    "Onward",
    "Outcome",
    "Park",
    "Plan",
    "Position",
    "Progress",
    "Reason",
    "Saga",
    "SagaKey",
    "State",
    "StepPlan",
    "StepState",
    "Turn",
    "Wait",
    "at",
    "attempt_number",
    "attempted",
    "begin",
    "calling",
    "ended",
    "facts",
    "given_up",
    "next_step",
    "observed",
    "onward",
    "order_id_of",
    "resumed",
    "saga_id_of",
    "timed_out",
    "turned",
]

SagaKey = tuple[str, str]
"""(merchant, saga id)."""


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


class Reason(NamedTuple):
    """Why a saga turned back or was parked."""

    step: str
    code: str
    message: str


TIMED_OUT = "TIMED_OUT"
"""Code of the reason of a saga that nobody conducts and that took too long."""

_NO_FACTS: Mapping[str, Mapping[str, str]] = {}


class Saga(NamedTuple):
    """A saga under way."""

    merchant_id: str
    saga_id: str
    order_id: str
    kind: str
    position: Position
    created_at_ms: int
    facts: Mapping[str, Mapping[str, str]] = _NO_FACTS
    """What the steps have answered, for example the identifier of what a step made: by step, then by name."""
    reason: Reason | None = None
    history: tuple[Attempt, ...] = ()
    ended_at_ms: int = 0

    @property
    def key(self) -> SagaKey:
        """What it is stored under."""
        return (self.merchant_id, self.saga_id)

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.position.state

    @property
    def steps(self) -> dict[str, Progress]:
        """How far its steps are, by their names."""
        return dict(self.position.steps)


def begin(plan: Plan, merchant_id: str, saga_id: str, order_id: str, now_ms: int) -> Saga:
    """A new saga."""
    return Saga(merchant_id, saga_id, order_id, plan.kind, positions.start(plan), now_ms)


def onward(saga: Saga) -> Onward:
    """The calls to make now, and what to do after they were begun."""
    return positions.onward(PLANS[saga.kind], saga.position)


def next_step(saga: Saga) -> Decision:
    """The first thing to do now. A `Call` is to be marked with `calling` and asked again, until `Wait` or an end comes;
    `onward` does that."""
    return positions.next_step(PLANS[saga.kind], saga.position)


def calling(saga: Saga, call: Call) -> Saga:
    """The saga with the step under way."""
    return at(saga, positions.calling(saga.position, call))


def at(saga: Saga, position: Position) -> Saga:
    """The saga at another position."""
    # Written out, here and for what else every saga passes at every step: `_replace` takes three times as long.
    return Saga(
        saga.merchant_id,
        saga.saga_id,
        saga.order_id,
        saga.kind,
        position,
        saga.created_at_ms,
        saga.facts,
        saga.reason,
        saga.history,
        saga.ended_at_ms,
    )


def turned(saga: Saga, turn: Turn) -> Saga:
    """The saga on its way back. What is still being called may come to be done: it is waited for, then undone. What may
    have been done by an attempt that we did not hear of is undone, too: in a saga that was taken over that can be any
    step, and a "no" to a repeat (a stricter check since, another fingerprint) says nothing of the first attempt."""
    position = positions.turned(PLANS[saga.kind], saga.position)
    return saga._replace(position=position, reason=_last_reason(saga, turn.step))


def _last_reason(saga: Saga, step: str) -> Reason:
    last = next((a for a in reversed(saga.history) if a.step == step), None)
    return (
        Reason(step, last.reason, last.message)
        if last
        else Reason(step, "UNKNOWN", "no attempt was recorded")
    )


def ended(saga: Saga, end: Finish | Park, now_ms: int) -> Saga:
    """The saga at its end."""
    state, reason = (
        (State.PARKED, _last_reason(saga, end.step)) if isinstance(end, Park) else (end.state, saga.reason)
    )
    return Saga(
        saga.merchant_id,
        saga.saga_id,
        saga.order_id,
        saga.kind,
        positions.ended(saga.position, state),
        saga.created_at_ms,
        saga.facts,
        reason,
        saga.history,
        now_ms,
    )


def attempted(saga: Saga, attempt: Attempt) -> tuple[Saga, int | None]:
    """The saga after an attempt, and how many milliseconds to wait before the next attempt at the same step; None when
    there is none."""
    step, forth, outcome = attempt.step, attempt.direction is Direction.DO, attempt.outcome
    facts = saga.facts
    if attempt.facts and (outcome is Outcome.REFUSED or (forth and outcome is Outcome.DONE)):
        known = facts.get(step)
        facts = {**facts, step: {**known, **attempt.facts} if known else attempt.facts}
    position, again = positions.attempted(PLANS[saga.kind], saga.position, step, attempt.direction, outcome)
    after = Saga(
        saga.merchant_id,
        saga.saga_id,
        saga.order_id,
        saga.kind,
        position,
        saga.created_at_ms,
        facts,
        saga.reason,
        (*saga.history, attempt),
        saga.ended_at_ms,
    )
    if again is None:
        return after, None
    return after, max(again.delay_ms(attempt_number(saga, step)), attempt.retry_after_ms)


def resumed(saga: Saga) -> Saga:
    """A saga as its new owner begins with it. Forward, everything is sent again: the keys make repeats harmless. Back,
    what was being called may have been done and is undone; what was being undone is undone again."""
    return saga._replace(position=positions.resumed(PLANS[saga.kind], saga.position))


def observed(saga: Saga, attempts: Iterable[Attempt], now_ms: int) -> Saga:
    """A saga that nobody conducts, after more of its story has become known: `attempts` in the order of their steps,
    some of them known before. The same decisions tell where it stands; that they are carried out is others'
    business."""
    for attempt in attempts:
        if saga.state.ended:
            break
        known = {(one.step, one.direction) for one in saga.history}
        if (attempt.step, attempt.direction) in known:
            continue
        if attempt.direction is Direction.DO and (attempt.step, Direction.UNDO) in known:
            # News of a do that has been undone since: by different ways it may come later.
            saga = saga._replace(history=(*saga.history, attempt))
            continue
        saga = _settled(attempted(saga, attempt)[0], now_ms)
    return saga


def _settled(saga: Saga, now_ms: int) -> Saga:
    """With every decision made that can be made."""
    while not saga.state.ended:
        decision = next_step(saga)
        match decision:
            case Call():
                saga = calling(saga, decision)
            case Turn():
                saga = turned(saga, decision)
            case Finish() | Park():
                saga = ended(saga, decision, now_ms)
            case Wait():
                break
    return saga


def timed_out(saga: Saga, now_ms: int) -> Saga:
    """A saga that nobody conducts and that has not come to its end in time: it turns back, and whatever was not heard
    of counts as possibly done."""
    waits = next((name for name, progress in saga.position.steps if progress.state is not StepState.DONE), "")
    saga = turned(resumed(saga), Turn(waits))
    return _settled(saga._replace(reason=Reason(waits, TIMED_OUT, "it has not ended in time")), now_ms)


def given_up(saga: Saga, now_ms: int) -> Saga:
    """A saga that nobody conducts and whose undos have not ended in time: a person is needed."""
    waits = next((name for name, progress in saga.position.steps if progress.state is StepState.UNDOING), "")
    return ended(saga, Park(waits), now_ms)._replace(
        reason=Reason(waits, TIMED_OUT, "what was done has not been undone in time")
    )


def facts(saga: Saga) -> dict[str, str]:
    """Everything that the steps have answered."""
    found: dict[str, str] = {}
    known = saga.facts
    for name, _ in saga.position.steps:
        if name in known:
            found |= known[name]
    return found


def attempt_number(saga: Saga, step: str) -> int:
    """The number of the attempt that is about to be made."""
    return saga.steps[step].attempts + 1


def order_id_of(saga_id: str) -> str:
    """The order that a place saga works on bears the same number."""
    return "ord_" + saga_id.removeprefix("saga_")


def saga_id_of(order_id: str) -> str:
    """The saga that places an order bears the same number."""
    return "saga_" + order_id.removeprefix("ord_")
