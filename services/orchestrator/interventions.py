"""What people may do with a saga that is PARKED. Pure: a saga and a wish in, what became of it out.

A saga is *tried again* when its cause is gone. What was done stays done; what was refused, or given up, is asked for
anew. Under which key decides over money: an attempt that was *refused* has an answer that is kept under its key for
ever, and it says that nothing was done, so the next one goes out under a key of its own. An attempt of which nobody
knows what came of it goes out under the same key again: whatever it asked for is done once.

A saga is *closed* when people have settled it outside. Nothing moves; it just waits for nobody any more. Where money is
concerned one person proposes and another one approves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from services.kit.errors import NotFound, PaymeshError, Refused
from services.orchestrator.domain import Direction, Outcome, Reason, Saga
from services.orchestrator.plans import CANCEL, DISPATCH, PLACE, PLANS, RETURN
from services.orchestrator.positions import Position, Progress, State, StepState


class Kind(StrEnum):
    """What a person has done."""

    RETRIED = "RETRIED"
    CLOSE_PROPOSED = "CLOSE_PROPOSED"
    CLOSED = "CLOSED"


class Intervention(NamedTuple):
    """Something that a person has done with a saga."""

    kind: Kind
    actor: str
    reason: str
    at_ms: int


class Retry(NamedTuple):
    """A wish to have a saga tried again."""

    merchant_id: str
    saga_id: str
    actor: str
    reason: str


class Close(NamedTuple):
    """A wish to have a saga closed."""

    merchant_id: str
    saga_id: str
    actor: str
    reason: str
    proposal: int = 0
    """The proposal that is approved; 0 for none."""


_RIGHT: Mapping[str, Mapping[str, frozenset[StepState]]] = {
    PLACE.kind: {"authorize": frozenset({StepState.PENDING, StepState.REFUSED, StepState.UNDONE})},
    DISPATCH.kind: {"capture": frozenset({StepState.DONE}), "dispatch": frozenset({StepState.DONE})},
    CANCEL.kind: {"void": frozenset({StepState.DONE})},
    RETURN.kind: {"refund": frozenset({StepState.DONE})},
}
"""By kind of saga, where its steps stand when no money is where it should not be: let go of, taken for goods that have
left, or given back."""
_BACK = frozenset({StepState.UNDOING, StepState.UNDONE, StepState.GIVEN_UP, StepState.REFUSED})
"""Of a step of a saga that has turned back."""


def about_money(saga: Saga) -> bool:
    """Whether money may be where it should not be."""
    steps = saga.steps
    return any(steps[name].state not in right for name, right in _RIGHT[saga.kind].items())


def is_closed(interventions: Sequence[Intervention]) -> bool:
    """Whether nobody is waited for any more."""
    return bool(interventions) and interventions[-1].kind is Kind.CLOSED


def retry(
    saga: Saga, interventions: Sequence[Intervention], wish: Retry, now_ms: int
) -> Saga | PaymeshError | None:
    """The saga under way again; None when it is not parked, and there is nothing to try again."""
    if saga.state is not State.PARKED:
        return None
    if is_closed(interventions):
        return Refused("SAGA_CLOSED", f"saga {saga.saga_id} was closed by {interventions[-1].actor}")
    back = any(p.state in _BACK for _, p in saga.position.steps) or any(
        attempt.direction is Direction.UNDO for attempt in saga.history
    )
    steps = tuple((name, _again(progress, back=back)) for name, progress in saga.position.steps)
    state = State.COMPENSATING if back else State.RUNNING
    return saga._replace(
        position=Position(state, steps, taken_over=True),
        reason=_why_back(saga) if back else None,
        ended_at_ms=0,
    )


def _again(progress: Progress, *, back: bool) -> Progress:
    if progress.state in (StepState.STUCK, StepState.UNDOING):
        return Progress(StepState.GIVEN_UP if back else StepState.PENDING)
    return progress


def _why_back(saga: Saga) -> Reason | None:
    """Why it had turned back, which the reason for parking it has taken the place of."""
    for attempt in reversed(saga.history):
        if attempt.direction is Direction.DO and attempt.outcome is not Outcome.DONE:
            return Reason(attempt.step, attempt.reason, attempt.message)
    return saga.reason


def close(
    saga: Saga, interventions: Sequence[Intervention], wish: Close, now_ms: int
) -> Intervention | PaymeshError | None:
    """What the wish comes to; None when it is closed already."""
    if saga.state is not State.PARKED:
        return Refused("SAGA_NOT_PARKED", f"saga {saga.saga_id} is {saga.state}, and waits for nobody")
    if is_closed(interventions):
        return None
    kind = Kind.CLOSED
    if wish.proposal:
        standing = _standing(saga, interventions, wish)
        if isinstance(standing, Refused):
            return standing
    elif about_money(saga):
        kind = Kind.CLOSE_PROPOSED
    return Intervention(kind, wish.actor, wish.reason, now_ms)


def _standing(saga: Saga, interventions: Sequence[Intervention], wish: Close) -> Intervention | Refused:
    """The proposal that the wish is about: what was done last, and by somebody else."""
    if not interventions or interventions[-1].kind is not Kind.CLOSE_PROPOSED:
        return Refused("NOTHING_PROPOSED", f"nothing is proposed for saga {saga.saga_id}")
    if wish.proposal != len(interventions):
        return Refused(
            "PROPOSAL_CHANGED",
            f"proposal {len(interventions)} stands, and not {wish.proposal}: look at it before you decide",
            facts={"proposal": str(len(interventions))},
        )
    proposed = interventions[-1]
    if proposed.actor.strip().lower() == wish.actor.strip().lower():
        return Refused("SAME_PERSON", f"{wish.actor} has proposed it: another person has to approve it")
    return proposed


def no_saga(saga_id: str) -> NotFound:
    """A saga was named that does not exist."""
    return NotFound("UNKNOWN_SAGA", f"there is no saga {saga_id!r}")


assert set(_RIGHT) == set(PLANS), "of every kind of saga it is known when its money is right"
