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

from collections.abc import Mapping
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
    "next_step",
    "onward",
    "order_id_of",
    "resumed",
    "saga_id_of",
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
