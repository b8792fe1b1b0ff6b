"""The whole life of a payment, without processes or stores: increments, captures, refunds, voids, expiry, settlement,
answers that are lost or told twice, and crashes, in any order. An oracle that only knows sums, written down
independently, says after every step where the payment must stand, what it holds, and what every account of the ledger
must show.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.kit.errors import InProgress, PaymeshError, Refused
from services.kit.money import AMOUNT_MINOR_MAX, Money
from services.payment import domain, ledger
from services.payment.domain import (
    Approved,
    Authorize,
    Declined,
    Done,
    Event,
    EventType,
    FeePlan,
    Gone,
    Lost,
    Move,
    Payment,
    RefusedByProcessor,
    Share,
    State,
)
from tests.depth import examples

LIFETIME_MS = 604_800_000
README = (Path(ledger.__file__).parent / "README.md").read_text("utf-8")
PLAN = FeePlan(290, 30)

REQUESTS = {
    "increment": domain.request_increment,
    "capture": domain.request_capture,
    "refund": domain.request_refund,
}


def _initiated(amount_minor: int = 1_000) -> tuple[Payment, Event]:
    wish = Authorize("mer_1", "o1", Money(amount_minor, "USD"), "tok_visa", "", "", "", "", "")
    return domain.initiate(wish, "pay_1", "shop", "k1", 0)


def _move(amount_minor: int | None, *, final: bool = False, currency: str = "USD") -> Move:
    amount = None if amount_minor is None else Money(amount_minor, currency)
    return Move("mer_1", "pay_1", amount, final, "note")


class Life(RuleBasedStateMachine):
    """One payment and the oracle of it."""

    @initialize(amount=st.integers(1, 200), points=st.integers(0, 10_000), fixed=st.integers(0, 50))
    def authorize(self, amount: int, points: int, fixed: int) -> None:
        self.plan = FeePlan(points, fixed)
        self.payment, first = _initiated(amount)
        self.events = [first]
        self.books: Counter[str] = Counter()
        self.now_ms = 0
        self._record(domain.after_authorization(self.payment, Approved("auth_1", "A"), 7, LIFETIME_MS))
        # The oracle: sums, and what is under way.
        self.authorized, self.captured, self.refunded, self.settled = amount, 0, 0, 0
        self.unsettled: list[tuple[str, int]] = []
        self.settlements: list[tuple[int, int]] = []
        self.alive = True
        self.under_way: tuple[str, int, bool] | None = None
        self.end = ""
        self.unknown = False
        self.stale: Payment | None = None

    def _record(self, event: Event | None) -> None:
        """What a service does with an event."""
        if event is None:
            return
        before = self.payment
        self.payment = domain.apply(before, event)
        self.events.append(event)
        lines = ledger.journal(before, self.payment)
        assert sum(line.amount.amount_minor for line in lines) == 0
        assert all(line.amount.amount_minor for line in lines)
        assert len({line.line for line in lines}) == len(lines)
        for line in lines:
            self.books[line.account] += line.amount.amount_minor

    @property
    def held(self) -> int:
        return self.authorized - self.captured if self.alive else 0

    def _begin(self, what: str, amount: int | None, final: bool = False) -> None:
        plan = self.plan
        decision = REQUESTS[what](self.payment, _move(amount, final=final), plan, "shop", "k", self.now_ms)
        room = {"increment": AMOUNT_MINOR_MAX, "capture": self.held, "refund": self.captured - self.refunded}[
            what
        ]
        wanted = room if amount is None else amount
        expired = self.now_ms >= LIFETIME_MS and what != "refund"
        fits = 0 < wanted <= room and not expired and not self.end
        if what == "increment":
            fits = fits and self.alive and not self.captured
        if self.under_way:
            assert isinstance(decision, InProgress), "never a second one while one is under way"
        elif fits:
            assert isinstance(decision, Event)
            self._record(decision)
            self.under_way = (what, wanted, final)
        else:
            assert isinstance(decision, Refused)

    @rule(amount=st.integers(1, 120))
    def increment(self, amount: int) -> None:
        self._begin("increment", amount)

    @rule(amount=st.none() | st.integers(1, 250), final=st.booleans())
    def capture(self, amount: int | None, final: bool) -> None:
        self._begin("capture", amount, final)

    @rule(amount=st.none() | st.integers(1, 250))
    def refund(self, amount: int | None) -> None:
        self._begin("refund", amount)

    @rule()
    def void(self) -> None:
        decision = domain.request_void(self.payment, "note", "shop", "v")
        if self.under_way:
            assert isinstance(decision, InProgress)
        elif self.held:
            assert isinstance(decision, Event)
            self._record(decision)
            self.under_way = ("void", self.held, False)
        elif self.captured > self.refunded:
            assert isinstance(decision, Refused), "money was taken: that is not undone by a void"
        else:
            assert decision == self.payment

    @rule()
    def time_passes(self) -> None:
        self.now_ms += LIFETIME_MS // 3

    @rule()
    def expire(self) -> None:
        event = domain.request_expiry(self.payment, self.now_ms)
        due = self.now_ms >= LIFETIME_MS and self.held > 0 and not self.under_way
        assert (event is not None) == due
        if event is not None:
            self._record(event)
            self.under_way = ("expire", self.held, False)

    @precondition(lambda self: self.under_way)
    @rule(answer=st.sampled_from(["done", "done", "refused", "lost", "other amount"]))
    def answer(self, answer: str) -> None:
        assert self.under_way
        what, amount, final = self.under_way
        asked = self.payment
        if what in ("void", "expire"):
            told: dict[str, domain.Letting] = {"done": Gone(), "refused": RefusedByProcessor("NO")}
            letting = told.get(answer, Lost("ANSWER_LOST"))
            self._record(domain.after_void(self.payment, asked, letting))
        else:
            refusal = Declined("op", "NO") if what == "increment" else RefusedByProcessor("NO")
            moved: dict[str, domain.Movement] = {
                "done": Done("op", amount),
                "refused": refusal,
                "other amount": Done("op", amount + 1),
            }
            movement = moved.get(answer, Lost("ANSWER_LOST"))
            self._record(domain.after_movement(self.payment, asked, movement))
        if answer not in ("done", "refused"):
            self.unknown = True
            return
        self.under_way, self.unknown = None, False
        self.stale = asked
        if what == "expire" or (what == "void" and answer == "done"):
            self.alive = False
            self.end = "" if self.captured else ("EXPIRED" if what == "expire" else "VOIDED")
        elif answer == "done" and what == "increment":
            self.authorized += amount
        elif answer == "done" and what == "capture":
            self.captured += amount
            self.unsettled.append((what, amount))
            self.alive = not final and self.captured < self.authorized
        elif answer == "done" and what == "refund":
            self.refunded += amount
            self.unsettled.append((what, amount))

    @precondition(lambda self: self.stale is not None)
    @rule()
    def a_late_answer_changes_nothing(self) -> None:
        """Somebody who asked long ago comes back: its operation has ended, and maybe another has begun, maybe for the
        same amount."""
        assert self.stale is not None
        if self.stale.state in domain.WAITING and not domain.same_intent(self.stale, self.payment):
            if self.stale.state is State.VOIDING:
                assert domain.after_void(self.payment, self.stale, Gone()) is None
            else:
                done = Done("op", self.payment.pending_minor)
                assert domain.after_movement(self.payment, self.stale, done) is None

    @precondition(lambda self: self.unsettled)
    @rule(data=st.data())
    def gather(self, data: st.DataObject) -> None:
        """A settlement takes some of what moved, from the oldest on, and is told to the payment at some later time."""
        count = data.draw(st.integers(1, len(self.unsettled)))
        taken, self.unsettled = self.unsettled[:count], self.unsettled[count:]
        captured = sum(amount for what, amount in taken if what == "capture")
        self.settlements.append((captured, sum(amount for _, amount in taken) - captured))

    @precondition(lambda self: self.settlements)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Settlements are told in any order: one that would take more off than was paid has to wait for an earlier."""
        captured, refunded = told = data.draw(st.sampled_from(self.settlements))
        decision = domain.settle(self.payment, Share("stl_1", "batch_1", captured, refunded, "USD"))
        if self.under_way:
            assert isinstance(decision, InProgress)
        elif self.settled + captured - refunded >= 0:
            assert isinstance(decision, Event)
            self._record(decision)
            self.settlements.remove(told)
            self.settled += captured - refunded
        else:
            assert isinstance(decision, Refused)
            assert told != self.settlements[0], "the first one never waits"

    @rule(
        captured=st.integers(0, 400), refunded=st.integers(0, 400), currency=st.sampled_from(["USD", "EUR"])
    )
    def settle_what_cannot_be(self, captured: int, refunded: int, currency: str) -> None:
        wrong = currency != "USD" or captured > self.captured or refunded > self.refunded
        wrong = wrong or not 0 <= self.settled + captured - refunded <= self.captured
        if wrong:
            decision = domain.settle(self.payment, Share("stl_1", "batch_1", captured, refunded, currency))
            assert isinstance(decision, InProgress if self.under_way else Refused)

    @rule()
    def crash(self) -> None:
        """Nothing but the events survives."""
        stored = [Event(EventType(str(e.type)), json.loads(json.dumps(dict(e.data)))) for e in self.events]
        rebuilt = domain.fold("mer_1", "pay_1", 0, stored)
        assert rebuilt == self.payment
        self.payment = rebuilt

    @invariant()
    def it_stands_where_the_sums_say(self) -> None:
        if not hasattr(self, "authorized"):
            return
        payment = self.payment
        assert payment.state == self._due_state()
        assert bool(payment.unknown_outcome) == self.unknown
        assert (payment.authorized_minor, payment.held_minor) == (self.authorized, self.held)
        assert (payment.captured_minor, payment.refunded_minor) == (self.captured, self.refunded)
        assert payment.settled_minor == self.settled
        open_ = [*self.unsettled, *(("capture", c) for c, _ in self.settlements)]
        open_ += [("refund", r) for _, r in self.settlements]
        left = sum(amount if what == "capture" else -amount for what, amount in open_)
        assert self.settled + left == self.captured - self.refunded, "nothing is settled twice or forgotten"
        moving = self.under_way is not None and self.under_way[0] in REQUESTS
        assert payment.pending_minor == (self.under_way[1] if moving and self.under_way else 0)
        assert 0 <= self.refunded <= self.captured <= self.authorized
        assert payment.version == len(self.events)

    def _due_state(self) -> str:
        waiting = {
            "increment": "INCREMENTING",
            "capture": "CAPTURING",
            "refund": "REFUNDING",
            "void": "VOIDING",
            "expire": "VOIDING",
        }
        if self.under_way:
            return waiting[self.under_way[0]]
        if self.end:
            return self.end
        if not self.captured:
            return "AUTHORIZED"
        if self.held:
            return "PARTIALLY_CAPTURED"
        if self.refunded:
            return "REFUNDED" if self.refunded == self.captured else "PARTIALLY_REFUNDED"
        return "SETTLED" if self.settled == self.captured else "CAPTURED"

    @invariant()
    def the_ledger_shows_the_sums(self) -> None:
        if not hasattr(self, "authorized"):
            return
        share = (self.captured * self.plan.basis_points + 5_000) // 10_000
        fee = min(self.captured, self.plan.fixed_minor + share) if self.captured else 0
        due = {
            "holds": self.held,
            "holds_control": -self.held,
            "processor_receivable": self.captured - self.refunded - self.settled,
            "merchant_payable": self.refunded + fee - self.captured,
            "fees": -fee,
            "cash": self.settled,
        }
        assert {account: self.books[account] for account in due} == due
        assert self.payment.fee_minor == fee, "however many captures it took"
        assert set(self.books) <= set(due)


Life.TestCase.settings = settings(max_examples=examples(150, 1_000), stateful_step_count=25, deadline=None)
TestLife = Life.TestCase


# What may begin, and what callers are told.


def _authorized(amount_minor: int = 1_000) -> Payment:
    payment, _ = _initiated(amount_minor)
    event = domain.after_authorization(payment, Approved("auth_1", "A"), 0, LIFETIME_MS)
    assert event is not None
    return domain.apply(payment, event)


def _begun(payment: Payment, what: str, amount_minor: int | None, *, final: bool = False) -> Payment:
    event = REQUESTS[what](payment, _move(amount_minor, final=final), PLAN, "shop", "k", 1)
    assert isinstance(event, Event), event
    return domain.apply(payment, event)


def _ended(payment: Payment) -> Payment:
    event = domain.after_movement(payment, payment, Done("op_1", payment.pending_minor))
    assert event is not None
    return domain.apply(payment, event)


def _done(payment: Payment, what: str, amount_minor: int | None, *, final: bool = False) -> Payment:
    return _ended(_begun(payment, what, amount_minor, final=final))


def _refusal(payment: Payment, what: str, move: Move, now_ms: int = 1) -> str:
    decision = REQUESTS[what](payment, move, PLAN, "shop", "k", now_ms)
    assert isinstance(decision, Refused), decision
    assert decision.facts["payment_id"] == "pay_1"
    return decision.reason


@pytest.mark.parametrize("what", REQUESTS)
def test_currencies_do_not_mix(what: str) -> None:
    payment = _done(_authorized(), "capture", 400) if what == "refund" else _authorized()
    assert _refusal(payment, what, _move(1, currency="EUR")) == "CURRENCY_MISMATCH"


@pytest.mark.parametrize("what", ["increment", "capture"])
def test_nothing_is_taken_from_an_authorization_that_has_ended(what: str) -> None:
    payment = _authorized()
    assert _refusal(payment, what, _move(1), LIFETIME_MS) == "AUTHORIZATION_EXPIRED"
    assert isinstance(REQUESTS[what](payment, _move(1), PLAN, "s", "k", LIFETIME_MS - 1), Event)


def test_captured_money_is_given_back_after_the_authorization_has_ended() -> None:
    payment = _done(_authorized(), "capture", 400)
    assert isinstance(REQUESTS["refund"](payment, _move(400), PLAN, "s", "k", LIFETIME_MS * 50), Event)


def test_refusals_say_what_is_wrong() -> None:
    part = _done(_authorized(), "capture", 400)
    assert _refusal(part, "capture", _move(601)) == "CAPTURE_EXCEEDS_HOLD"
    assert _refusal(part, "refund", _move(401)) == "REFUND_EXCEEDS_CAPTURED"
    assert _refusal(part, "increment", _move(1)) == "NOT_AUTHORIZED"
    assert _refusal(_authorized(), "refund", _move(None)) == "NOTHING_TO_REFUND"
    assert _refusal(_done(part, "capture", None), "capture", _move(None)) == "NOTHING_TO_CAPTURE"
    assert _refusal(_authorized(AMOUNT_MINOR_MAX - 5), "increment", _move(6)) == "INCREMENT_TOO_LARGE"
    busy = _authorized()._replace(version=domain.EVENTS_MAX)
    assert _refusal(busy, "capture", _move(1)) == "TOO_MANY_EVENTS"
    assert isinstance(domain.request_void(busy, "", "s", "k"), Event), "letting go is always possible"


def test_a_void_of_what_was_taken_is_refused_and_of_what_was_given_back_is_not() -> None:
    captured = _done(_authorized(), "capture", None)
    decision = domain.request_void(captured, "", "shop", "v")
    assert isinstance(decision, Refused)
    assert decision.reason == "PAYMENT_CAPTURED"
    refunded = _done(captured, "refund", None)
    assert domain.request_void(refunded, "", "shop", "v") == refunded


def test_a_final_capture_lets_go_of_the_rest_and_books_it() -> None:
    before = _begun(_authorized(), "capture", 400, final=True)
    after = _ended(before)
    assert (after.state, after.held_minor, after.captured_minor, after.fee_minor) == (
        State.CAPTURED,
        0,
        400,
        42,
    )
    assert [(e.account, e.amount.amount_minor) for e in ledger.journal(before, after)] == [
        ("holds", -1_000),
        ("holds_control", 1_000),
        ("processor_receivable", 400),
        ("merchant_payable", -358),
        ("fees", -42),
    ]


def test_the_processor_moving_another_amount_stops_everything_for_a_person() -> None:
    payment = _begun(_authorized(), "capture", 400)
    event = domain.after_movement(payment, payment, Done("cap_1", 401))
    assert event == Event(EventType.OUTCOME_UNKNOWN, {"operation": "CAPTURE", "reason": "AMOUNT_IS_401"})
    assert isinstance(_tried(domain.apply(payment, event), "capture"), InProgress)


def _tried(payment: Payment, what: str) -> Event | PaymeshError:
    return REQUESTS[what](payment, _move(1), PLAN, "shop", "k", 1)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("increment", "INCREMENT_DECLINED"),
        ("capture", "CAPTURE_REFUSED"),
        ("refund", "REFUND_REFUSED"),
    ],
)
def test_a_refused_movement_is_told_and_leaves_the_payment_as_it_was(what: str, reason: str) -> None:
    before = _done(_authorized(), "capture", 400) if what == "refund" else _authorized()
    payment = _begun(before, what, 100)
    event = domain.after_movement(payment, payment, RefusedByProcessor("CARD_CLOSED"))
    assert event is not None
    after = domain.apply(payment, event)
    assert after == before._replace(version=before.version + 2)
    told = domain.answer_to_movement(after, event)
    assert isinstance(told, Refused)
    assert (told.reason, told.facts["decline_reason"]) == (reason, "CARD_CLOSED")
    assert ledger.journal(payment, after) == []


@pytest.mark.parametrize(
    ("plan", "captures", "fees"),
    [
        (FeePlan(0, 0), [500, 500], [0, 0]),
        (FeePlan(290, 30), [1_000], [59]),
        (FeePlan(290, 30), [100, 900], [33, 26]),
        (FeePlan(50, 0), [100], [1]),  # half a minor unit is rounded up
        (FeePlan(49, 0), [100], [0]),
        (FeePlan(50, 0), [100, 100, 100], [1, 0, 1]),
        (FeePlan(0, 50), [30, 10, 100], [30, 10, 10]),  # never more than was captured
        (FeePlan(10_000, 0), [7, 3], [7, 3]),
    ],
)
def test_fees_are_the_same_however_a_payment_is_cut(
    plan: FeePlan, captures: list[int], fees: list[int]
) -> None:
    captured = charged = 0
    for amount, due in zip(captures, fees, strict=True):
        fee = domain.fee_for(plan, captured, charged, amount)
        assert fee == due
        captured, charged = captured + amount, charged + fee
    assert charged == domain.fee_for(plan, 0, 0, captured)


def test_a_plan_that_became_cheaper_pays_nothing_back() -> None:
    assert domain.fee_for(FeePlan(0, 0), 500, 45, 100) == 0


# One diagram, one enum.


def _diagram() -> set[tuple[str, str, str]]:
    """(state, event, state) as the README says."""
    table = README[README.index("Event by event") :]
    rows = re.findall(r"^(\(none\)|[A-Z][A-Z_ ]+?) {2,}([a-z ]+?) {2,}([A-Z_ ]+)$", table, re.MULTILINE)
    return {
        (before, event, after)
        for befores, event, afters in rows
        for before in befores.split()
        for after in afters.split()
    }


def _reachable() -> set[tuple[str, str, str]]:
    """(state, event, state) as the code does: everything that can be done with three coins, until nothing is new."""
    moves = {("(none)", "initiated", "AUTHORIZING")}
    start, _ = _initiated(3)
    todo, seen = [start], {start}
    while todo:
        payment = todo.pop()
        for event in _possible(payment):
            if event.type is EventType.OUTCOME_UNKNOWN:
                continue
            after = domain.apply(payment, event)
            words = re.sub(r"(?<!^)([A-Z])", r" \1", event.type.value.removeprefix("Payment")).lower()
            moves.add((payment.state.value, words, after.state.value))
            alike = after._replace(version=1, fee_minor=0)
            if alike not in seen and after.authorized_minor <= 4:
                seen.add(alike)
                todo.append(alike)
    return moves


def _possible(payment: Payment) -> list[Event]:
    """All that can happen to a payment."""
    late = LIFETIME_MS
    decisions = [
        domain.after_fraud(payment, domain.Verdict(False, 900, "FRAUD")),
        *(
            domain.after_authorization(payment, answer, 0, LIFETIME_MS)
            for answer in (Approved("a", "A"), Declined("a", "NO"), Gone())
        ),
        domain.after_void(payment, payment, Gone()),
        domain.after_void(payment, payment, RefusedByProcessor("NO")),
        domain.request_void(payment, "", "s", "k"),
        domain.request_expiry(payment, late),
        *(
            domain.settle(payment, Share("stl_1", "batch_1", captured, refunded, "USD"))
            for captured, refunded in ((1, 0), (0, 1), (1, 1))
        ),
        *(
            REQUESTS[what](payment, _move(amount), domain.NO_FEE, "s", "k", 1)
            for what in REQUESTS
            for amount in (1, 2)
        ),
        domain.request_capture(payment, _move(1, final=True), domain.NO_FEE, "s", "k", 1),
    ]
    if payment.pending_minor:
        answers = (Done("op", payment.pending_minor), RefusedByProcessor("NO"))
        decisions += [domain.after_movement(payment, payment, answer) for answer in answers]
    return [decision for decision in decisions if isinstance(decision, Event)]


def test_the_diagram_in_the_readme_is_what_the_code_does() -> None:
    assert _diagram() == _reachable()
    named = {state for before, _, after in _diagram() for state in (before, after)} - {"(none)"}
    assert named == {state.value for state in State}
    events = {re.sub(r"(?<!^)([A-Z])", r" \1", t.value.removeprefix("Payment")).lower() for t in EventType}
    assert {event for _, event, _ in _diagram()} == events - {"outcome unknown"}, "a mark, not a state"
