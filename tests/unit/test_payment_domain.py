"""What may happen to a payment, without processes or stores: every answer in every order leads where the table below
says, the events alone rebuild the payment, and the ledger balances. Names of states are the same everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.config import ServiceConfig
from services.kit.errors import InProgress, Kind, NotFound, PaymeshError, Refused
from services.kit.money import AMOUNT_MINOR_MAX, Money
from services.payment import domain, ledger
from services.payment.clients.stripe.settings import StripeSettings
from services.payment.config import PaymentConfig
from services.payment.domain import (
    Approved,
    Authorize,
    Declined,
    Event,
    EventType,
    Gone,
    Lost,
    Payment,
    RefusedByProcessor,
    State,
    UnknownOutcome,
    Verdict,
)
from services.payment.service import messages
from tests.depth import examples

FOLDER = Path(ledger.__file__).parent
MIGRATION = "".join(path.read_text("utf-8") for path in sorted((FOLDER / "migrations").glob("*.sql")))
LIFETIME_MS = 604_800_000
WISH = Authorize(
    "mer_1",
    "o1",
    Money(1_234, "USD"),
    "tok_visa",
    "424242",
    "c1",
    "a@b.example",
    "203.0.113.7",
    "GB",
)

# What others can tell about a payment, and what its merchant can wish.
TOLD: dict[str, domain.Authorization] = {
    "approved": Approved("auth_1", "ABC123"),
    "declined": Declined("auth_1", "LOST_CARD"),
    "gone": Gone(),
    "refused": RefusedByProcessor("NO_SUCH_CARD"),
    "lost": Lost("ANSWER_LOST"),
}
VOIDED: dict[str, domain.Letting] = {
    "void gone": Gone(),
    "void refused": RefusedByProcessor("TOO_LATE"),
    "void lost": Lost("ANSWER_LOST"),
}
VERDICTS = {"passed": Verdict(True, 10, ""), "rejected": Verdict(False, 900, "FRAUD_AMOUNT")}
STIMULI = [*TOLD, *VOIDED, *VERDICTS, "void wished"]

# The oracle, written down independently: (state, stimulus) → state. What is not here changes nothing. LATE is VOIDING
# of a hold that was found after its payment had failed.
LATE = "LATE"
MOVES = {
    ("AUTHORIZING", "approved"): "AUTHORIZED",
    ("AUTHORIZING", "declined"): "DECLINED",
    ("AUTHORIZING", "gone"): "FAILED",
    ("AUTHORIZING", "refused"): "FAILED",
    ("AUTHORIZING", "rejected"): "REJECTED",
    ("AUTHORIZED", "void wished"): "VOIDING",
    ("VOIDING", "void gone"): "VOIDED",
    ("VOIDING", "void refused"): "AUTHORIZED",
    ("FAILED", "approved"): LATE,
    (LATE, "void gone"): "VOIDED",
}
MARKS = {
    ("AUTHORIZING", "lost"): UnknownOutcome.AUTHORIZATION,
    ("VOIDING", "void lost"): UnknownOutcome.VOID,
    (LATE, "void lost"): UnknownOutcome.VOID,
    (LATE, "void refused"): UnknownOutcome.VOID,
}
HELD = {"AUTHORIZED", "VOIDING", LATE}
BOOKED = {"AUTHORIZED", "VOIDING"}
FINAL = {"DECLINED", "REJECTED", "FAILED", "VOIDED"}


def _initiated(wish: Authorize = WISH) -> tuple[Payment, Event]:
    return domain.initiate(wish, "pay_1", "shop", "k1", 5)


def _event(payment: Payment, stimulus: str) -> Event | None:
    """What a stimulus makes of a payment, by the domain."""
    if stimulus in TOLD:
        return domain.after_authorization(payment, TOLD[stimulus], 250, LIFETIME_MS)
    if stimulus in VOIDED:
        return domain.after_void(payment, payment, VOIDED[stimulus])
    if stimulus in VERDICTS:
        return domain.after_fraud(payment, VERDICTS[stimulus])
    decision = domain.request_void(payment, "note", "shop", "v1")
    return decision if isinstance(decision, Event) else None


def _after(*stimuli: str) -> Payment:
    """A new payment after some stimuli."""
    payment, _ = _initiated()
    for stimulus in stimuli:
        event = _event(payment, stimulus)
        payment = payment if event is None else domain.apply(payment, event)
    return payment


WAYS = {
    "AUTHORIZING": (),
    "AUTHORIZED": ("approved",),
    "DECLINED": ("declined",),
    "REJECTED": ("rejected",),
    "FAILED": ("gone",),
    "VOIDING": ("approved", "void wished"),
    LATE: ("gone", "approved"),
    "VOIDED": ("approved", "void wished", "void gone"),
}


@settings(max_examples=examples(100, 400))
@given(
    way=st.sampled_from(sorted(WAYS)),
    stimuli=st.lists(st.sampled_from(STIMULI), max_size=12),
    amount_minor=st.integers(min_value=1, max_value=AMOUNT_MINOR_MAX),
)
def test_any_interleaving_of_answers_follows_the_table_and_folds_and_balances(
    way: str, stimuli: list[str], amount_minor: int
) -> None:
    _follow([*WAYS[way], *stimuli], amount_minor)


@pytest.mark.parametrize("stimulus", STIMULI)
@pytest.mark.parametrize("where", WAYS)
def test_every_answer_in_every_state_follows_the_table(where: str, stimulus: str) -> None:
    for way in (WAYS[where], (*WAYS[where], "lost", "void lost")):
        _follow([*way, stimulus], 1_234)


def _follow(stimuli: list[str], amount_minor: int) -> None:
    """Put a new payment through some stimuli and compare it with the oracle after each."""
    wish = Authorize("mer_1", "o1", Money(amount_minor, "USD"), "tok_visa", "", "", "", "", "")
    payment, first = _initiated(wish)
    events = [first]
    where, mark = "AUTHORIZING", UnknownOutcome.NONE
    booked = 0
    answered: Payment | None = None
    for stimulus in stimuli:
        before = payment
        event = _event(payment, stimulus)
        moved = MOVES.get((where, stimulus))
        marked = MARKS.get((where, stimulus), mark)
        assert (event is not None) == (moved is not None or marked is not mark), (where, stimulus)
        where, mark = (moved, UnknownOutcome.NONE) if moved else (where, marked)
        if event is not None:
            payment = domain.apply(payment, event)
            events.append(event)
            lines = ledger.journal(before, payment)
            assert sum(line.amount.amount_minor for line in lines) == 0
            assert len({(line.journal_id, line.line) for line in lines}) == len(lines)
            booked += sum(line.amount.amount_minor for line in lines if line.account == ledger.HOLDS)
        assert payment.state == ("VOIDING" if where == LATE else where)
        assert payment.found_late == (where == LATE)
        assert payment.unknown_outcome is mark
        assert payment.held == Money(amount_minor if where in HELD else 0, "USD")
        assert booked == (amount_minor if where in BOOKED else 0)
        assert payment.version == len(events)
        assert (payment.amount, payment.order_id) == (wish.amount, "o1"), "never change"
        answered = answered or (payment if where != "AUTHORIZING" else None)
    stored = [Event(EventType(str(e.type)), json.loads(json.dumps(dict(e.data)))) for e in events]
    assert domain.fold("mer_1", "pay_1", 5, stored) == payment
    assert domain.first_outcome("mer_1", "pay_1", 5, stored) == answered, "its first answer, for ever"


def test_the_ways_of_these_tests_lead_where_they_say() -> None:
    for where, way in WAYS.items():
        assert _after(*way).state == ("VOIDING" if where == LATE else where)
    assert {*WAYS} < {*State, LATE}, "the others are in test_payment_lifecycle.py"


@pytest.mark.parametrize("stimulus", STIMULI)
@pytest.mark.parametrize("where", sorted(FINAL))
def test_nothing_leads_out_of_a_final_state_but_a_late_approval(where: str, stimulus: str) -> None:
    event = _event(_after(*WAYS[where]), stimulus)
    if (where, stimulus) == ("FAILED", "approved"):
        assert event == Event(EventType.LATE_APPROVAL, {"processor_reference": "auth_1"})
    else:
        assert event is None


POSSIBLE = {
    ("AUTHORIZING", EventType.AUTHORIZED),
    ("AUTHORIZING", EventType.DECLINED),
    ("AUTHORIZING", EventType.REJECTED),
    ("AUTHORIZING", EventType.FAILED),
    ("AUTHORIZING", EventType.OUTCOME_UNKNOWN),
    ("AUTHORIZED", EventType.VOID_REQUESTED),
    ("VOIDING", EventType.OUTCOME_UNKNOWN),
    ("VOIDING", EventType.VOIDED),
    ("VOIDING", EventType.VOID_REFUSED),
    ("FAILED", EventType.LATE_APPROVAL),
    ("AUTHORIZED", EventType.INCREMENT_REQUESTED),
    ("AUTHORIZED", EventType.CAPTURE_REQUESTED),
    ("AUTHORIZED", EventType.EXPIRY_REQUESTED),
    ("VOIDING", EventType.EXPIRED),
}


@pytest.mark.parametrize("type_", EventType)
@pytest.mark.parametrize("state", [state for state in State if state in WAYS])
def test_an_event_that_cannot_follow_is_an_error(state: State, type_: EventType) -> None:
    data = {"reason": "R", "auth_code": "A", "processor_reference": "auth_1", "fraud_score_milli": 1}
    data |= {"amount_minor": 1, "fee_minor": 0, "final": False}
    payment = _after(*WAYS[state])
    if (str(state), type_) in POSSIBLE:
        assert domain.apply(payment, Event(type_, data)).version == payment.version + 1
    else:
        with pytest.raises(AssertionError, match="cannot happen"):
            domain.apply(payment, Event(type_, data))


def test_a_story_begins_with_its_beginning() -> None:
    with pytest.raises(AssertionError, match="begins with PaymentVoided"):
        domain.fold("mer_1", "pay_1", 0, [Event(EventType.VOIDED, {})])


def test_the_first_event_holds_all_that_is_needed_to_ask_again() -> None:
    payment, event = _initiated()
    assert domain.wish_of("mer_1", event.data) == WISH
    assert (event.data["caller"], event.data["idempotency_key"]) == ("shop", "k1")
    assert payment == Payment("mer_1", "pay_1", "o1", WISH.amount, State.AUTHORIZING, 1, 5)


def test_what_was_answered_is_kept() -> None:
    held = _after("approved")
    assert (held.auth_code, held.processor_reference, held.fraud_score_milli) == ("ABC123", "auth_1", 250)
    assert (held.decline_reason, held.unknown_outcome) == ("", UnknownOutcome.NONE)
    declined = _after("declined")
    assert (declined.decline_reason, declined.processor_reference) == ("LOST_CARD", "auth_1")
    assert (declined.auth_code, declined.fraud_score_milli) == ("", 250)
    rejected = _after("rejected")
    assert (rejected.decline_reason, rejected.fraud_score_milli) == ("FRAUD_AMOUNT", 900)
    assert rejected.processor_reference == ""
    assert _after("gone").decline_reason == "CANCELLED_AT_PROCESSOR"
    assert _after("refused").decline_reason == "NO_SUCH_CARD"
    late = _after("gone", "approved")
    assert (late.processor_reference, late.auth_code) == ("auth_1", ""), "nobody may use it"


def test_a_refusal_without_a_reason_gets_one() -> None:
    payment, _ = _initiated()
    event = domain.after_authorization(payment, RefusedByProcessor(""), 0, LIFETIME_MS)
    assert event is not None
    assert domain.apply(payment, event).decline_reason == "REFUSED"


@pytest.mark.parametrize("way", [("lost",), ("approved", "void wished", "void lost")])
def test_an_unknown_outcome_is_told_once(way: tuple[str, ...]) -> None:
    assert _after(*way).version == len(way) + 1
    assert _after(*way, way[-1], way[-1]) == _after(*way)


def test_a_hold_is_booked_once_and_booked_back_when_it_is_gone() -> None:
    new, held = _after(), _after("approved")
    voiding, voided = _after("approved", "void wished"), _after("approved", "void wished", "void gone")
    changes = [(new, held), (held, voiding), (voiding, voided)]
    entries = [(e.journal_id, e.line, e.account, str(e.amount)) for e in ledger.entries(changes)]
    assert entries == [
        ("pay_1/2", 1, "holds", "12.34 USD"),
        ("pay_1/2", 2, "holds_control", "-12.34 USD"),
        ("pay_1/4", 1, "holds", "-12.34 USD"),
        ("pay_1/4", 2, "holds_control", "12.34 USD"),
    ]


def test_a_hold_is_booked_whether_or_not_the_bank_gives_a_code() -> None:
    payment, _ = _initiated()
    event = domain.after_authorization(payment, Approved("auth_1", ""), 0, LIFETIME_MS)
    assert event is not None
    assert len(ledger.journal(payment, domain.apply(payment, event))) == 2


@pytest.mark.parametrize("where", WAYS)
def test_a_wish_to_void_is_answered_by_where_the_payment_stands(where: str) -> None:
    payment = _after(*WAYS[where])
    decision = domain.request_void(payment, "why", "shop", "v1")
    match where:
        case "AUTHORIZED":
            data = {"note": "why", "caller": "shop", "idempotency_key": "v1"}
            assert decision == Event(EventType.VOID_REQUESTED, data)
        case "AUTHORIZING" | "VOIDING" | "LATE":
            assert isinstance(decision, InProgress)
        case _:
            assert decision == payment


@pytest.mark.parametrize("where", WAYS)
def test_callers_are_told_the_payment_unless_it_waits_or_was_refused(where: str) -> None:
    payment = _after(*WAYS[where])
    refused = Event(EventType.VOID_REFUSED, {"reason": "TOO_LATE"}) if where == "AUTHORIZED" else None
    authorized, voided = domain.answer_to_authorize(payment, None), domain.answer_to_void(payment, refused)
    if where == "AUTHORIZING":
        assert isinstance(authorized, InProgress)
    else:
        assert authorized == payment
    if where in ("AUTHORIZING", "VOIDING", LATE):
        assert isinstance(voided, InProgress)
    elif where == "AUTHORIZED":
        assert isinstance(voided, Refused)
        assert (voided.reason, voided.facts) == (
            "VOID_REFUSED",
            {"payment_id": "pay_1", "decline_reason": "TOO_LATE"},
        )
    else:
        assert voided == payment


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (domain.in_progress(_after()), Kind.IN_PROGRESS, "IN_PROGRESS"),
        (domain.in_progress(_after("lost")), Kind.IN_PROGRESS, "OUTCOME_UNKNOWN"),
        (domain.settled_elsewhere(_after("approved")), Kind.IN_PROGRESS, "IN_PROGRESS"),
        (
            domain.not_written_down(_after(), NotFound("DATABASE_GONE", "")),
            Kind.IN_PROGRESS,
            "OUTCOME_UNKNOWN",
        ),
    ],
)
def test_who_has_to_ask_again_is_told_when(error: PaymeshError, kind: Kind, reason: str) -> None:
    assert (error.kind, error.reason) == (kind, reason)
    assert error.retry_after_ms
    assert error.facts == {"payment_id": "pay_1"}


def test_errors_name_what_they_are_about() -> None:
    assert domain.order_already_paid("o1").kind is Kind.REFUSED
    assert "'o1'" in domain.order_already_paid("o1").message
    assert domain.no_payment("pay_9").kind is Kind.NOT_FOUND
    assert "'pay_9'" in domain.no_payment("pay_9").message


def test_what_was_never_authorized_is_voided_and_holds_nothing() -> None:
    empty = domain.nothing_authorized("mer_1")
    assert (empty.merchant_id, empty.payment_id, empty.state) == ("mer_1", "", State.VOIDED)
    assert empty.held.amount_minor == 0


# One diagram, one enum, one CHECK, one proto enum.


def _proto_names(enum: dict[str, int], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in enum} - {"UNSPECIFIED"}


def _check_values(constraint: str) -> set[str]:
    found = re.findall(rf"CONSTRAINT {constraint} CHECK \((.*?)\n    \)", MIGRATION, re.DOTALL)
    # The newest migration's word counts, of those that speak of payments.
    newest = [text for text in found if "'AUTHORIZING'" in text][-1]
    return set(re.findall(r"'([A-Z_]*)'", newest))


def test_states_are_the_same_in_code_contract_and_schema() -> None:
    names = {state.value for state in State}
    assert names == {state.name for state in State}
    assert _proto_names(dict(pb.PaymentState.items()), "PAYMENT_STATE_") == names
    assert _check_values("known_state") == names
    assert {pb.PaymentState.Name(messages.STATES[state]) for state in State} == {
        f"PAYMENT_STATE_{name}" for name in names
    }


def test_unknown_outcomes_are_the_same_in_code_contract_and_schema() -> None:
    names = {unknown.value for unknown in UnknownOutcome} - {""}
    assert _proto_names(dict(pb.UnknownOutcome.items()), "UNKNOWN_OUTCOME_") == names
    assert _check_values("known_unknown") - {*domain.WAITING, ""} == names
    for unknown in UnknownOutcome:
        name = pb.UnknownOutcome.Name(messages.UNKNOWN_OUTCOMES[unknown])
        assert name == f"UNKNOWN_OUTCOME_{unknown.value or 'UNSPECIFIED'}"


def test_accounts_are_the_same_in_code_contract_and_schema() -> None:
    found = re.findall(r"known_account CHECK \(\s*account IN \((.*?)\)", MIGRATION, re.DOTALL)
    assert set(re.findall(r"'(\w+)'", found[-1])) == set(ledger.ACCOUNTS)
    contract = (FOLDER.parents[1] / "proto/paymesh/payment/v1/ledger.proto").read_text("utf-8")
    chart = contract[contract.index("grows by") : contract.index("service LedgerService")]
    assert re.findall(r"//   (\w+)  ", chart) == list(ledger.ACCOUNTS)


def test_the_readme_names_every_knob_with_its_default() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    rows = {
        tuple(cell.strip() for cell in row.split("|")[1:3])
        for row in re.findall(r"^\| `.*$", text, re.MULTILINE)
    }
    own = {
        name: field
        for name, field in PaymentConfig.model_fields.items()
        if name not in ServiceConfig.model_fields
    }
    own |= {f"stripe_{name}": field for name, field in StripeSettings.model_fields.items() if name != "key"}
    expected = {
        (f"`{name.upper()}`", field.default if isinstance(field.default, str) else f"{field.default:g}")
        for name, field in own.items()
        if not name.endswith("_target") and name not in ("valkey_url", "bench_without_history")
    }
    assert rows == expected | {
        ("`FRAUD_TARGET`, `BANK_TARGET`", ""),
        ("`ORCHESTRATOR_TARGET`, `INVENTORY_TARGET`, `SHIPPING_TARGET`", "not heard"),
        ("`VALKEY_URL`", "none"),
        ("`STRIPE_KEY`", ""),
    }
    assert "`BENCH_WITHOUT_HISTORY`" in text
