"""What people may do with parked sagas: how one goes on that is tried again, under which keys, and who may close one.
Pure: sagas are driven by hand through the engine's own decisions."""

from __future__ import annotations

import pytest

from services.kit.errors import Refused
from services.orchestrator import domain, interventions
from services.orchestrator.clients.waves import Wave
from services.orchestrator.domain import (
    PLANS,
    Attempt,
    Call,
    Direction,
    Finish,
    Outcome,
    Park,
    Reason,
    Saga,
    State,
    StepState,
    Turn,
)
from services.orchestrator.interventions import Close, Intervention, Kind, Retry

RETRY = Retry("mer_1", "saga_1", "ann", "the bank is back")


def _drive(saga: Saga, outcomes: dict[tuple[str, Direction], Outcome]) -> Saga:
    """Let the engine go on to its end; a step comes to DONE unless `outcomes` says otherwise."""
    while not saga.state.ended:
        decision = domain.next_step(saga)
        match decision:
            case Call(step, direction):
                saga = domain.calling(saga, decision)
                outcome = outcomes.get((step, direction), Outcome.DONE)
                wait_ms: int | None = 0
                while wait_ms is not None:
                    number = domain.attempt_number(saga, step)
                    reason = "" if outcome is Outcome.DONE else f"{outcome}_{step}"
                    attempt = Attempt(step, direction, number, outcome, reason, "", {}, 1, 2)
                    saga, wait_ms = domain.attempted(saga, attempt)
            case Turn():
                saga = domain.turned(saga, decision)
            case Finish() | Park():
                saga = domain.ended(saga, decision, 9)
            case _:
                raise AssertionError("nothing is under way")
    return saga


def _parked(kind: str, stuck: str, outcome: Outcome) -> Saga:
    """A saga that is parked because of one step: an undo of a saga that places an order, a do of any other."""
    begun = domain.begin(PLANS[kind], "mer_1", "saga_1", "ord_1", 1)
    outcomes = {(stuck, Direction.UNDO if kind == "place" else Direction.DO): outcome}
    if kind == "place":
        outcomes[("ship", Direction.DO)] = Outcome.REFUSED
    saga = _drive(begun, outcomes)
    assert saga.state is State.PARKED
    return saga


def _retried(saga: Saga) -> Saga:
    again = interventions.retry(saga, (), RETRY, 10)
    assert isinstance(again, Saga)
    return again


CASES = [
    ("place", "authorize"),
    ("place", "reserve"),
    ("dispatch", "dispatch"),
    ("dispatch", "commit"),
    ("cancel", "call_off"),
    ("cancel", "void"),
    ("cancel", "release"),
    ("return", "restock"),
]


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.UNKNOWN, Outcome.RETRYABLE])
@pytest.mark.parametrize(("kind", "stuck"), CASES)
def test_what_is_tried_again_goes_on_where_it_stood_and_does_nothing_twice(
    kind: str, stuck: str, outcome: Outcome
) -> None:
    parked = _parked(kind, stuck, outcome)
    again = _retried(parked)
    assert (again.state, again.ended_at_ms) == (
        State.COMPENSATING if kind == "place" else State.RUNNING,
        0,
    )
    ended = _drive(again, {})
    assert ended.state is (State.COMPENSATED if kind == "place" else State.COMPLETED)
    more = ended.history[len(parked.history) :]
    direction = Direction.UNDO if kind == "place" else Direction.DO
    done = {a.step for a in parked.history if a.outcome is Outcome.DONE and a.direction is direction}
    assert more[0].step == stuck
    assert not {a.step for a in more} & done
    assert all(a.direction is direction for a in more)
    if kind == "place":
        assert ended.reason == Reason(
            "ship", "REFUSED_ship", ""
        )  # why it turned back, and not why it was parked


@pytest.mark.parametrize(("kind", "stuck"), CASES)
def test_a_no_is_asked_for_again_under_another_key_and_what_is_unknown_under_its_own(
    kind: str, stuck: str
) -> None:
    """A second capture, or a second heap of goods on the shelf, would be the price of getting this wrong."""

    def keys(saga: Saga) -> list[str]:
        wave = Wave(stuck, [saga], [None], [None])
        return wave.undo_keys() if kind == "place" else wave.do_keys()

    first = f"saga_1/{stuck}" + ("/undo" if kind == "place" else "")
    direction = Direction.UNDO if kind == "place" else Direction.DO
    unknown = _retried(_parked(kind, stuck, Outcome.UNKNOWN))
    assert keys(unknown) == [first]
    refused = _retried(_parked(kind, stuck, Outcome.REFUSED))
    assert keys(refused) == [f"{first}/2"]
    assert Wave(stuck, [refused], [None], [None]).undone_keys() == [f"saga_1/{stuck}"]
    lost = _retried(_drive(refused, {(stuck, direction): Outcome.UNKNOWN}))
    assert keys(lost) == [f"{first}/2"]
    again = _retried(_drive(lost, {(stuck, direction): Outcome.REFUSED}))
    assert keys(again) == [f"{first}/3"]


def test_a_capture_that_was_given_up_is_asked_for_under_its_key_and_its_no_undoes_the_dispatch() -> None:
    parked = _parked("dispatch", "capture", Outcome.UNKNOWN)
    again = _retried(parked)
    assert Wave("capture", [again], [None], [None]).do_keys() == ["saga_1/capture"]
    assert _drive(again, {}).state is State.COMPLETED
    assert _drive(again, {("capture", Direction.DO): Outcome.REFUSED}).state is State.COMPENSATED


def test_a_choreographed_order_that_nobody_undid_in_time_is_undone() -> None:
    begun = domain.begin(PLANS["place"], "mer_1", "saga_1", "ord_1", 1)
    parked = domain.given_up(domain.timed_out(begun, 2), 3)
    assert parked.state is State.PARKED
    again = _retried(parked)
    assert again.state is State.COMPENSATING
    ended = _drive(again, {})
    assert ended.state is State.COMPENSATED
    assert all(progress.state is StepState.UNDONE for progress in ended.steps.values())


@pytest.mark.parametrize("state", [s for s in State if s is not State.PARKED])
def test_only_what_is_parked_is_tried_again_or_closed(state: State) -> None:
    saga = domain.begin(PLANS["place"], "mer_1", "saga_1", "ord_1", 1)
    saga = saga._replace(position=saga.position._replace(state=state))
    assert interventions.retry(saga, (), RETRY, 10) is None
    decision = interventions.close(saga, (), Close("mer_1", "saga_1", "ann", "done"), 10)
    assert isinstance(decision, Refused)
    assert decision.reason == "SAGA_NOT_PARKED"


@pytest.mark.parametrize(
    ("kind", "stuck", "money"),
    [
        ("place", "authorize", True),
        ("place", "reserve", False),
        ("dispatch", "dispatch", True),
        ("dispatch", "commit", False),
        ("cancel", "call_off", True),
        ("cancel", "void", True),
        ("cancel", "release", False),
        ("return", "restock", False),
    ],
)
def test_two_people_close_what_is_about_money_and_one_closes_the_rest(
    kind: str, stuck: str, money: bool
) -> None:
    saga = _parked(kind, stuck, Outcome.REFUSED)
    assert interventions.about_money(saga) is money

    def close(done: tuple[Intervention, ...], actor: str, proposal: int = 0) -> object:
        return interventions.close(saga, done, Close("mer_1", "saga_1", actor, "settled", proposal), 10)

    first = close((), "ann")
    assert isinstance(first, Intervention)
    assert first.kind is (Kind.CLOSE_PROPOSED if money else Kind.CLOSED)
    refused = {
        "NOTHING_PROPOSED": close((), "bob", 1),
        "PROPOSAL_CHANGED": close((first._replace(kind=Kind.CLOSE_PROPOSED),), "bob", 2),
        "SAME_PERSON": close((first._replace(kind=Kind.CLOSE_PROPOSED),), " Ann ", 1),
    }
    for reason, decision in refused.items():
        assert isinstance(decision, Refused)
        assert decision.reason == reason
    if money:
        second = close((first,), "bob", 1)
        assert second == Intervention(Kind.CLOSED, "bob", "settled", 10)
        # Tried again meanwhile: what was proposed before does not stand any more.
        stale = close((first, Intervention(Kind.RETRIED, "eve", "", 11)), "bob", 1)
        assert isinstance(stale, Refused)
    closed = (Intervention(Kind.CLOSED, "ann", "", 1),)
    assert close(closed, "bob") is None
    assert interventions.is_closed(closed)
    again = interventions.retry(saga, closed, RETRY, 10)
    assert isinstance(again, Refused)
    assert again.reason == "SAGA_CLOSED"
