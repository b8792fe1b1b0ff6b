"""The saga engine's decisions, driven by a small interpreter against participants that can be looked into.

What is proved, for random plans with parallel steps, pivots and steps that only go forward, random failures and random
crashes: the engine always reaches an end; what the end is called agrees with what the participants hold; nothing is
undone before the decision to turn back is durable, nor before what was built upon it, nor ever when something that
cannot be undone was done or is yet to arrive; attempts and waits are bounded. The judge is the world of participants
below, which knows nothing of the engine's own states.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from services.kit.backoff import Backoff
from services.orchestrator import domain
from services.orchestrator.domain import (
    PLACE,
    Attempt,
    Bound,
    Call,
    Direction,
    Finish,
    Outcome,
    Park,
    Plan,
    Position,
    Progress,
    Reason,
    Saga,
    State,
    StepPlan,
    StepState,
    Turn,
    Wait,
)
from tests.depth import examples

EVENTS_MAX = 5_000
"""Far more than any saga here can need: beyond it the engine runs in circles."""
CRASHES_MAX = 3
ATTEMPTS_MAX = 1_000


class Holding(Enum):
    """What a participant has of one saga's step."""

    NOTHING = auto()
    HELD = auto()
    UNDONE = auto()
    BARRED = auto()
    """The undo came first: the do will be refused whenever it arrives."""


@dataclass
class Participant:
    """Answers for one step as the services do: repeats are recognized, an undo bars a do that has not arrived."""

    refuses_do: bool
    refuses_undo: bool
    fickle: bool = False
    """Says no to a repeat of what it has done, for example because its checks have become stricter since."""
    holding: Holding = Holding.NOTHING

    def take(self, direction: Direction) -> tuple[Outcome, str]:
        if direction is Direction.DO:
            if self.refuses_do or self.holding in (Holding.UNDONE, Holding.BARRED):
                return Outcome.REFUSED, "DO_REFUSED"
            if self.fickle and self.holding is Holding.HELD:
                return Outcome.REFUSED, "NO_MORE"
            self.holding = Holding.HELD
            return Outcome.DONE, ""
        if self.holding is Holding.HELD and self.refuses_undo:
            return Outcome.REFUSED, "UNDO_REFUSED"
        self.holding = Holding.UNDONE if self.holding is Holding.HELD else Holding.BARRED
        return Outcome.DONE, ""


class Line(Enum):
    """What the line between the engine and a participant does to one call."""

    GOOD = auto()
    LOST_BEFORE = auto()
    LOST_AFTER = auto()
    LATE = auto()
    """The caller gives up; the call arrives some time later."""
    BUSY = auto()


@dataclass
class World:
    """One saga, its engine, its participants, and every rule that must never be broken."""

    plan: Plan
    participants: dict[str, Participant]
    dice: random.Random
    bad_line_share: float
    saga: Saga = field(init=False)
    durable: Saga = field(init=False)
    under_way: list[Call] = field(default_factory=list)
    saving: bool = False
    late: list[Call] = field(default_factory=list)
    turn_is_durable: bool = False
    crashes: int = 0
    attempts_in_a_life: dict[tuple[str, Direction], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.saga = domain.begin(self.plan, "mer_1", "saga_1", "ord_1", now_ms=1)
        # The row of a new saga says nothing about its steps.
        self.durable = _without_steps(self.saga)

    def run(self, crashes_max: int) -> None:
        """Until the end; a crash may come between any two events."""
        self.advance()
        for _ in range(EVENTS_MAX):
            if self.saga.state.ended and not self.saving:
                break
            if self.crashes < crashes_max and self.dice.random() < 0.05:
                self.crash()
            else:
                self.something_happens()
        else:
            raise AssertionError(f"no end after {EVENTS_MAX} events: {self.saga}")
        self.deliver_what_is_late()

    def advance(self) -> None:
        """As the runner does: begin every call that is due, then wait or save; step by step it is the same."""
        if self.saving:
            return
        calls, position, then = domain.onward(self.saga)
        for call in calls:
            assert domain.next_step(self.saga) == call
            self.begins(call)
            self.saga = domain.calling(self.saga, call)
            self.under_way.append(call)
        assert self.saga.position == position
        assert domain.next_step(self.saga) == then
        match then:
            case Wait():
                assert self.under_way, f"waits for nothing: {self.saga}"
            case Turn():
                self.saga = domain.turned(self.saga, then)
                self.saving = True
            case Finish() | Park():
                self.saga = domain.ended(self.saga, then, now_ms=2)
                self.saving = True

    def begins(self, call: Call) -> None:
        """What must be true when a step is begun, either way."""
        if call.direction is Direction.DO:
            assert self.saga.state is State.RUNNING
            for name in self.plan.by_name[call.step].after:
                assert self.participants[name].holding is Holding.HELD, f"{call} before {name}"
            return
        assert self.turn_is_durable, f"{call} before the decision to turn back was saved"
        assert self.plan.by_name[call.step].bound is Bound.BOTH_WAYS, f"{call} has no undo"
        assert not self.passed(), f"{call} after {self.passed()}"
        for name in _behind(self.plan, call.step):
            assert Call(name, Direction.DO) not in self.under_way, f"{call} while {name} is being done"
            if self.participants[name].holding is Holding.HELD:
                assert self.saga.steps[name].state is StepState.STUCK, f"{call} before {name} was undone"

    def something_happens(self) -> None:
        """One event: a save ends, a call ends or is tried again, or a late call arrives."""
        choices = ["call"] * len(self.under_way) + ["save"] * self.saving + ["late"] * bool(self.late)
        match self.dice.choice(choices):
            case "call":
                self.attempt(self.under_way.pop(self.dice.randrange(len(self.under_way))))
            case "save":
                self.saved()
            case "late":
                self.arrive(self.late.pop(self.dice.randrange(len(self.late))))

    def saved(self) -> None:
        self.durable = self.saga
        self.saving = False
        self.turn_is_durable |= self.saga.state is State.COMPENSATING
        if not self.saga.state.ended:
            self.advance()

    def attempt(self, call: Call) -> None:
        outcome, reason = self.answer(call)
        number = domain.attempt_number(self.saga, call.step)
        retry_after_ms = self.dice.choice([0, 0, 7, 9_000]) if outcome is Outcome.RETRYABLE else 0
        attempt = Attempt(
            call.step, call.direction, number, outcome, reason, "", {"by": call.step}, 1, 2, retry_after_ms
        )
        self.saga, wait_ms = domain.attempted(self.saga, attempt)
        self.count(call, number)
        if wait_ms is None:
            self.advance()
        else:
            self.check_wait(call, number, wait_ms, retry_after_ms)
            self.under_way.append(call)

    def count(self, call: Call, number: int) -> None:
        made = self.attempts_in_a_life.get((call.step, call.direction), 0) + 1
        self.attempts_in_a_life[call.step, call.direction] = made
        assert number == made
        assert made <= self.policy(call).attempts_max

    def check_wait(self, call: Call, number: int, wait_ms: int, retry_after_ms: int) -> None:
        policy = self.policy(call)
        whole = min(policy.max_ms, policy.first_ms * policy.factor ** (number - 1))
        assert max(whole // 2, retry_after_ms) <= wait_ms <= max(whole, retry_after_ms)

    def policy(self, call: Call) -> Backoff:
        step = self.plan.by_name[call.step]
        policy = step.do if call.direction is Direction.DO else step.undo
        assert policy is not None
        return policy

    def answer(self, call: Call) -> tuple[Outcome, str]:
        line = Line.GOOD
        if self.dice.random() < self.bad_line_share:
            line = self.dice.choice([Line.LOST_BEFORE, Line.LOST_AFTER, Line.LATE, Line.BUSY])
        match line:
            case Line.GOOD:
                return self.arrive(call)
            case Line.LOST_AFTER:
                self.arrive(call)
            case Line.LATE:
                self.late.append(call)
            case Line.BUSY:
                return Outcome.RETRYABLE, "BUSY"
        return Outcome.UNKNOWN, "LOST"

    def arrive(self, call: Call) -> tuple[Outcome, str]:
        return self.participants[call.step].take(call.direction)

    def crash(self) -> None:
        """The process dies; its calls may still be on the way. The next owner begins from the row."""
        self.crashes += 1
        for call in self.under_way:
            if self.dice.random() < 0.5:
                self.late.append(call)
        self.under_way, self.saving = [], False
        self.attempts_in_a_life.clear()
        if self.durable.state.ended:
            self.saga = self.durable
            return
        self.saga = domain.resumed(self.durable)
        self.advance()

    def deliver_what_is_late(self) -> None:
        self.dice.shuffle(self.late)
        for call in self.late:
            self.arrive(call)

    def held(self) -> set[str]:
        return {name for name, one in self.participants.items() if one.holding is Holding.HELD}

    def passed(self) -> set[str]:
        """What was done and cannot be undone."""
        return {name for name in self.held() if self.plan.by_name[name].bound is not Bound.BOTH_WAYS}

    def given_back(self) -> set[str]:
        """What was undone, or barred from being done."""
        return {
            name for name, one in self.participants.items() if one.holding in (Holding.UNDONE, Holding.BARRED)
        }


def _without_steps(saga: Saga) -> Saga:
    return saga._replace(position=saga.position._replace(steps=()))


def _behind(plan: Plan, name: str) -> set[str]:
    """Every step that comes after `name`, directly or not."""
    found: set[str] = set()
    for step in plan.steps:
        if name in step.after or found.intersection(step.after):
            found.add(step.name)
    return found


BACKOFFS = st.builds(
    Backoff,
    first_ms=st.integers(1, 50),
    factor=st.integers(1, 3),
    max_ms=st.integers(1, 200),
    attempts_max=st.integers(1, 4),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """One to six steps with short patience: some that can be undone, each after any of the earlier ones; then perhaps a
    pivot; then perhaps some that only go forward."""
    before = draw(st.integers(0, 3))
    pivots = draw(st.integers(0, 1))
    onward = draw(st.integers(0 if before or pivots else 1, 2))
    bounds = [Bound.BOTH_WAYS] * before + [Bound.PIVOT] * pivots + [Bound.ONWARD] * onward
    steps: list[StepPlan] = []
    for number, bound in enumerate(bounds):
        must = {s.name for s in steps if s.bound is not bound}
        may = draw(st.sets(st.sampled_from([s.name for s in steps]))) if steps else set()
        undo = draw(BACKOFFS) if bound is Bound.BOTH_WAYS else None
        steps.append(StepPlan(f"step{number}", tuple(sorted(must | may)), draw(BACKOFFS), undo, 1.0, bound))
    return Plan("random", tuple(steps))


def _world(plan: Plan, dice: random.Random, bad_line_share: float) -> World:
    participants = {}
    for step in plan.steps:
        both_ways = step.bound is Bound.BOTH_WAYS
        participants[step.name] = Participant(
            refuses_do=dice.random() < 0.15,
            refuses_undo=dice.random() < 0.1,
            # What a pivot's participant has answered it stands by: that is what it is chosen for.
            fickle=both_ways and dice.random() < 0.1,
        )
    return World(plan, participants, dice, bad_line_share)


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, Plan]:
    """The kinds of sagas that the engine knows; a test may add its own."""
    known = dict(domain.PLANS)
    monkeypatch.setattr(domain, "PLANS", known)
    return known


with_plans = settings(
    max_examples=examples(250, 1_500),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@with_plans
@given(
    plan=plans(),
    seed=st.integers(0, 2**32),
    bad_line_share=st.sampled_from([0.0, 0.2, 0.6, 0.95]),
    crashes_max=st.integers(0, CRASHES_MAX),
)
def test_every_saga_ends_and_its_end_is_what_the_participants_hold(
    kinds: dict[str, Plan], plan: Plan, seed: int, bad_line_share: float, crashes_max: int
) -> None:
    kinds[plan.kind] = plan
    world = _world(plan, random.Random(seed), bad_line_share)
    world.run(crashes_max)
    saga, held = world.saga, world.held()
    event(f"{saga.state}{', after a crash' if world.crashes else ''}")
    everything = {step.name for step in plan.steps}
    stuck = {name for name, p in saga.steps.items() if p.state is StepState.STUCK}
    match saga.state:
        case State.COMPLETED:
            assert held == everything
            assert saga.reason is None
        case State.COMPENSATED:
            assert held == set()
            assert saga.reason is not None
        case State.PARKED:
            assert stuck
            assert saga.reason is not None
            assert saga.reason.step in stuck
            assert saga.reason.code
            if world.turn_is_durable:
                assert held <= stuck, "something is held and no person is told"
            else:
                waiting = set().union(*(_behind(plan, name) for name in stuck))
                assert held >= everything - stuck - waiting, "what could be done was not"
                assert world.given_back() == set()
        case _:
            raise AssertionError(f"not an end: {saga.state}")
    if world.passed():
        assert world.given_back() == set(), "turned back from behind the pivot"
        event("behind the pivot")
    # The end is the end: whoever asks again is told the same.
    assert domain.next_step(saga) == Finish(saga.state)
    assert saga.ended_at_ms == 2


@with_plans
@given(plan=plans(), seed=st.integers(0, 2**32))
def test_without_failures_every_step_is_taken_once_and_the_order_is_complete(
    kinds: dict[str, Plan], plan: Plan, seed: int
) -> None:
    kinds[plan.kind] = plan
    world = World(plan, {s.name: Participant(False, False) for s in plan.steps}, random.Random(seed), 0.0)
    world.run(0)
    assert world.saga.state is State.COMPLETED
    assert sorted(a.step for a in world.saga.history) == sorted(s.name for s in plan.steps)
    assert all(a.direction is Direction.DO and a.number == 1 for a in world.saga.history)


@with_plans
@given(
    plan=plans(),
    states=st.lists(st.sampled_from(StepState), min_size=6, max_size=6),
    state=st.sampled_from(State),
)
def test_every_saga_whatsoever_gets_a_decision_and_resumes(
    kinds: dict[str, Plan], plan: Plan, states: Sequence[StepState], state: State
) -> None:
    """Totality: also for combinations that cannot come about, for rows are edited by hand one day."""
    kinds[plan.kind] = plan
    steps = tuple((step.name, Progress(s)) for step, s in zip(plan.steps, states, strict=False))
    saga = domain.begin(plan, "mer_1", "saga_1", "ord_1", 1)._replace(position=Position(state, steps))
    for one in (saga, domain.resumed(saga)):
        for _ in range(2 * len(plan.steps) + 1):
            decision = domain.next_step(one)
            if not isinstance(decision, Call):
                break
            both_ways = plan.by_name[decision.step].bound is Bound.BOTH_WAYS
            assert both_ways or decision.direction is Direction.DO
            one = domain.calling(one, decision)
        else:
            raise AssertionError("calls without end")
        assert domain.onward(one) == ((), one.position, decision)


def _attempts(
    saga: Saga, step: str, direction: Direction, outcome: Outcome
) -> Iterator[tuple[Saga, int | None]]:
    """The saga after each further attempt that comes to `outcome`, with the wait before the next one."""
    for number in range(1, ATTEMPTS_MAX + 1):
        reason = "" if outcome is Outcome.DONE else f"{outcome}_{number}"
        saga, wait_ms = domain.attempted(
            saga, Attempt(step, direction, number, outcome, reason, f"message {number}", {}, 1, 2)
        )
        yield saga, wait_ms
        if wait_ms is None:
            return
    raise AssertionError(f"{step} is tried for ever")


def _call(saga: Saga, step: str, direction: Direction, outcome: Outcome) -> Saga:
    """Let the engine call `step`, as it must want to, until there is no further attempt."""
    decision = domain.next_step(saga)
    assert decision == Call(step, direction)
    *_, (saga, _) = _attempts(domain.calling(saga, decision), step, direction, outcome)
    return saga


def _turned_at_ship() -> Saga:
    """A saga of the real plan that was refused at its last step and goes back."""
    saga = domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 1)
    saga = _call(saga, "reserve", Direction.DO, Outcome.DONE)
    saga = _call(saga, "authorize", Direction.DO, Outcome.DONE)
    saga = _call(saga, "ship", Direction.DO, Outcome.REFUSED)
    turn = domain.next_step(saga)
    assert turn == Turn("ship")
    saga = domain.turned(saga, turn)
    assert saga.reason == Reason("ship", "REFUSED_1", "message 1")
    return saga


def test_a_refused_step_has_everything_before_it_undone_last_first() -> None:
    saga = _turned_at_ship()
    saga = _call(saga, "authorize", Direction.UNDO, Outcome.DONE)
    saga = _call(saga, "reserve", Direction.UNDO, Outcome.DONE)
    assert domain.next_step(saga) == Finish(State.COMPENSATED)
    assert saga.reason == Reason("ship", "REFUSED_1", "message 1")
    assert saga.steps["ship"].state is StepState.REFUSED, "a refused step holds nothing and is not undone"


def test_a_refused_undo_parks_the_saga_with_its_reason_and_the_other_undos_are_made() -> None:
    saga = _turned_at_ship()
    saga = _call(saga, "authorize", Direction.UNDO, Outcome.REFUSED)
    saga = _call(saga, "reserve", Direction.UNDO, Outcome.DONE)
    park = domain.next_step(saga)
    assert park == Park("authorize")
    saga = domain.ended(saga, park, 9)
    reason = Reason("authorize", "REFUSED_1", "message 1")
    assert (saga.state, saga.reason, saga.ended_at_ms) == (State.PARKED, reason, 9)
    assert saga.steps["reserve"].state is StepState.UNDONE


@pytest.mark.parametrize("outcome", [Outcome.RETRYABLE, Outcome.UNKNOWN])
def test_an_undo_that_fails_for_ever_is_tried_ever_less_often_and_then_parked(outcome: Outcome) -> None:
    saga = _turned_at_ship()
    saga = domain.calling(saga, Call("authorize", Direction.UNDO))
    policy = PLACE.by_name["authorize"].undo
    assert policy is not None
    *tries, (saga, last) = _attempts(saga, "authorize", Direction.UNDO, outcome)
    waits = [wait for _, wait in tries if wait is not None]
    assert last is None
    assert len(tries) + 1 == policy.attempts_max
    for number, wait in enumerate(waits):
        whole = min(policy.max_ms, policy.first_ms * policy.factor**number)
        assert whole // 2 <= wait <= whole
    # It ends at the cap: from there on at most one call per half the cap, whatever the dice say.
    assert all(wait >= policy.max_ms // 2 for wait in waits[-5:])
    assert saga.steps["authorize"].state is StepState.STUCK
    saga = _call(saga, "reserve", Direction.UNDO, Outcome.DONE)
    park = domain.next_step(saga)
    assert park == Park("authorize")
    assert domain.ended(saga, park, 9).reason == Reason(
        "authorize", f"{outcome}_{policy.attempts_max}", f"message {policy.attempts_max}"
    )


def test_a_step_given_up_may_have_been_done_and_is_undone() -> None:
    saga = domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 1)
    saga = _call(saga, "reserve", Direction.DO, Outcome.DONE)
    saga = _call(saga, "authorize", Direction.DO, Outcome.UNKNOWN)
    turn = domain.next_step(saga)
    assert isinstance(turn, Turn)
    saga = domain.turned(saga, turn)
    assert saga.reason is not None
    assert saga.reason.step == "authorize"
    saga = _call(saga, "authorize", Direction.UNDO, Outcome.DONE)
    saga = _call(saga, "reserve", Direction.UNDO, Outcome.DONE)
    assert domain.next_step(saga) == Finish(State.COMPENSATED)


def test_a_callee_that_names_a_longer_wait_is_obeyed() -> None:
    saga = domain.calling(domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 1), Call("reserve", Direction.DO))
    attempt = Attempt("reserve", Direction.DO, 1, Outcome.RETRYABLE, "BUSY", "", {}, 1, 2, 60_000)
    assert domain.attempted(saga, attempt)[1] == 60_000


def test_a_saga_taken_over_before_anything_was_saved_starts_with_its_first_step() -> None:
    row = _without_steps(domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 1))
    assert domain.next_step(domain.resumed(row)) == Call("reserve", Direction.DO)


def test_a_saga_taken_over_that_turns_back_undoes_also_what_only_an_earlier_owner_can_have_done() -> None:
    """Owner 1 reserved and authorized, and died with only the start on record; owner 2 cannot reach inventory."""
    saga = domain.resumed(domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 1))
    saga = _call(saga, "reserve", Direction.DO, Outcome.UNKNOWN)
    turn = domain.next_step(saga)
    assert isinstance(turn, Turn)
    saga = domain.turned(saga, turn)
    undone = []
    while isinstance(decision := domain.next_step(saga), Call):
        undone.append(decision.step)
        saga = _call(saga, decision.step, decision.direction, Outcome.DONE)
    assert undone == ["ship", "authorize", "reserve"]
    assert decision == Finish(State.COMPENSATED)


def _begun(kind: str) -> Saga:
    return domain.begin(domain.PLANS[kind], "mer_1", "saga_1", "ord_1", 1)


@pytest.mark.parametrize(("kind", "pivot"), [("dispatch", "capture"), ("return", "refund")])
def test_a_pivot_that_is_refused_ends_the_saga_with_nothing_done(kind: str, pivot: str) -> None:
    saga = _call(_begun(kind), pivot, Direction.DO, Outcome.REFUSED)
    turn = domain.next_step(saga)
    assert turn == Turn(pivot)
    saga = domain.turned(saga, turn)
    assert domain.next_step(saga) == Finish(State.COMPENSATED)
    assert saga.reason == Reason(pivot, "REFUSED_1", "message 1")


@pytest.mark.parametrize(("kind", "pivot"), [("dispatch", "capture"), ("return", "refund")])
@pytest.mark.parametrize("taken_over", [False, True])
def test_a_pivot_is_believed_its_no_also_by_who_did_not_ask_first(
    kind: str, pivot: str, taken_over: bool
) -> None:
    """Its answers are kept under its key: had the first attempt been carried out, the second would have been told."""
    saga = domain.resumed(_begun(kind)) if taken_over else _begun(kind)
    saga = domain.calling(saga, Call(pivot, Direction.DO))
    lost = Attempt(pivot, Direction.DO, 1, Outcome.UNKNOWN, "LOST", "", {}, 1, 2)
    saga, wait_ms = domain.attempted(saga, lost)
    assert wait_ms is not None
    saga, wait_ms = domain.attempted(saga, lost._replace(number=2, outcome=Outcome.REFUSED, reason="NO"))
    assert wait_ms is None
    turn = domain.next_step(saga)
    assert isinstance(turn, Turn)
    assert domain.next_step(domain.turned(saga, turn)) == Finish(State.COMPENSATED)


@pytest.mark.parametrize("outcome", [Outcome.RETRYABLE, Outcome.UNKNOWN])
@pytest.mark.parametrize(("kind", "pivot"), [("dispatch", "capture"), ("return", "refund")])
def test_money_of_which_nobody_knows_is_asked_for_to_the_last_and_then_calls_for_a_person(
    kind: str, pivot: str, outcome: Outcome
) -> None:
    saga = _call(_begun(kind), pivot, Direction.DO, outcome)
    tries = domain.PLANS[kind].by_name[pivot].do.attempts_max
    assert len(saga.history) == tries
    park = domain.next_step(saga)
    assert park == Park(pivot)
    assert domain.ended(saga, park, 9).reason == Reason(pivot, f"{outcome}_{tries}", f"message {tries}")


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.RETRYABLE, Outcome.UNKNOWN])
@pytest.mark.parametrize("kind", ["dispatch", "cancel", "return"])
def test_what_cannot_be_turned_back_from_and_cannot_be_done_calls_for_a_person(
    kind: str, outcome: Outcome
) -> None:
    for stuck in [step.name for step in domain.PLANS[kind].steps if step.bound is Bound.ONWARD]:
        saga = _begun(kind)
        while (call := domain.next_step(saga)) != Call(stuck, Direction.DO):
            assert isinstance(call, Call)
            saga = _call(saga, call.step, Direction.DO, Outcome.DONE)
        saga = _call(saga, stuck, Direction.DO, outcome)
        park = domain.next_step(saga)
        assert park == Park(stuck)
        saga = domain.ended(saga, park, 9)
        assert (saga.state, saga.reason is not None) == (State.PARKED, True)


def test_a_saga_taken_over_does_not_turn_back_from_before_a_pivot_that_may_have_been_passed(
    kinds: dict[str, Plan],
) -> None:
    policy = Backoff(1, 1, 1, 1)
    steps = (
        StepPlan("before", (), policy, policy, 1.0),
        StepPlan("pivot", ("before",), policy, None, 1.0, Bound.PIVOT),
    )
    kinds["random"] = Plan("random", steps)
    row = domain.begin(kinds["random"], "mer_1", "saga_1", "ord_1", 1)
    for saga, end in ((row, Turn("before")), (domain.resumed(row), Park("before"))):
        assert domain.next_step(_call(saga, "before", Direction.DO, Outcome.UNKNOWN)) == end


def _step(name: str, bound: Bound, *after: str) -> StepPlan:
    policy = Backoff(1, 1, 1, 1)
    return StepPlan(name, after, policy, policy if bound is Bound.BOTH_WAYS else None, 1.0, bound)


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ((_step("a", Bound.BOTH_WAYS), _step("b", Bound.PIVOT)), "b does not come after {'a'}"),
        ((_step("a", Bound.PIVOT), _step("b", Bound.ONWARD)), "b does not come after {'a'}"),
        ((_step("a", Bound.BOTH_WAYS), _step("b", Bound.ONWARD)), "b does not come after {'a'}"),
        ((_step("a", Bound.PIVOT), _step("b", Bound.PIVOT, "a")), "two pivots"),
        ((StepPlan("a", (), Backoff(1, 1, 1, 1), None, 1.0),), "a is BOTH_WAYS and has undo None"),
    ],
)
def test_a_plan_that_could_neither_go_on_nor_back_is_none(steps: tuple[StepPlan, ...], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Plan("wrong", steps)


def test_no_two_steps_share_a_name() -> None:
    names = [step.name for plan in domain.PLANS.values() for step in plan.steps]
    assert len(set(names)) == len(names)


def test_an_order_and_its_saga_bear_the_same_number() -> None:
    assert domain.order_id_of("saga_0a1b") == "ord_0a1b"
    assert domain.saga_id_of("ord_0a1b") == "saga_0a1b"
