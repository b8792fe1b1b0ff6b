"""What the orchestrator reads from the slips of an order that nobody conducts: whatever order news come in, and however
often, it sees the end that there was, and never an end before everything that was done is undone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator import domain
from services.orchestrator.domain import PLACE, Attempt, Direction, Outcome, Saga, State

STEPS = [step.name for step in PLACE.steps]


def attempt(step: str, direction: Direction, outcome: Outcome = Outcome.DONE) -> Attempt:
    """A step that was taken."""
    reason = "" if outcome is Outcome.DONE else "NO"
    return Attempt(step, direction, 1, outcome, reason, "", {f"{step}_id": "x"}, 1, 2)


def story(refused: int) -> list[Attempt]:
    """All of it, for an order whose step of that number is refused; 3 for none."""
    done = [attempt(step, Direction.DO) for step in STEPS[:refused]]
    if refused == len(STEPS):
        return done
    no = attempt(STEPS[refused], Direction.DO, Outcome.REFUSED)
    return [*done, no, *(attempt(step, Direction.UNDO) for step in reversed(STEPS[:refused]))]


def new_saga() -> Saga:
    """Nothing is known of it."""
    return domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 0)


@given(refused=st.integers(0, 3), data=st.data())
def test_the_end_is_seen_whatever_order_the_news_come_in(refused: int, data: st.DataObject) -> None:
    whole = story(refused)
    slips = [whole[:end] for end in range(1, len(whole) + 1)]
    news = data.draw(st.permutations([*slips, *data.draw(st.lists(st.sampled_from(slips), max_size=4))]))
    saga = new_saga()
    for slip in news:
        saga = domain.observed(saga, slip, 9)
        if saga.state.ended:
            assert slip == whole or len(saga.history) == len(whole), "an end is seen when all is known"
    assert saga.state is (State.COMPLETED if refused == len(STEPS) else State.COMPENSATED)
    assert [(a.step, a.direction) for a in saga.history] == [(a.step, a.direction) for a in whole]
    if refused < len(STEPS):
        assert saga.reason is not None
        assert saga.reason.step == STEPS[refused]


@given(known=st.integers(0, 2), late=st.integers(0, 3), data=st.data())
def test_what_took_too_long_ends_when_everybody_has_undone(
    known: int, late: int, data: st.DataObject
) -> None:
    saga = domain.observed(new_saga(), story(3)[:known], 8)
    saga = domain.timed_out(saga, 9)
    assert saga.state.value == "COMPENSATING"
    undos = [[attempt(step, Direction.UNDO)] for step in STEPS]
    late_dos = [story(3)[:end] for end in range(1, late + 1)]
    for slip in data.draw(st.permutations([*undos, *undos[:1], *late_dos])):
        undone = {a.step for a in saga.history if a.direction is Direction.UNDO}
        assert saga.state.ended == (undone == set(STEPS))
        saga = domain.observed(saga, slip, 10)
    assert saga.state is State.COMPENSATED
    assert saga.reason is not None
    assert saga.reason.code == domain.TIMED_OUT


def test_what_is_never_undone_is_parked_at_the_step_that_waits() -> None:
    saga = domain.timed_out(domain.observed(new_saga(), story(3)[:2], 8), 9)
    saga = domain.observed(saga, [attempt("ship", Direction.UNDO)], 10)
    parked = domain.given_up(saga, 11)
    assert parked.state is State.PARKED
    assert parked.reason is not None
    assert parked.reason.step == "authorize"
