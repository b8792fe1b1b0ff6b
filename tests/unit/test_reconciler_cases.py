"""What may become of a case: two people, each once, and what happened is written down."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import PaymeshError, Refused
from services.kit.money import Money
from services.reconciler.domain.cases import (
    CORRECTABLE,
    Approve,
    Assign,
    Case,
    CaseKind,
    Correction,
    Decision,
    Outcome,
    Propose,
    Reject,
    State,
    Wish,
    case_no,
    decide,
    not_posted,
    posted,
    same_person,
)

NOW_MS = 1_800_000_000_000
POUND = Money(100, "GBP")
FEE = Correction("processor_fees", "cash", POUND)


def fresh() -> Case:
    return Case(
        merchant_id="mer",
        case_no=1,
        kind=CaseKind.AMOUNT,
        state=State.OPEN,
        reference="pay_1/capture/3",
        lines=1,
        items=1,
        since=date(2026, 11, 2),
        opened_at_ms=NOW_MS,
        version=1,
    )


def after(case: Case, *wishes: Wish) -> Case:
    for wish in wishes:
        decision = decide(case, wish, NOW_MS)
        assert not isinstance(decision, PaymeshError), decision
        case = decision[0]
    return case


def reason(decision: Decision) -> str:
    assert isinstance(decision, Refused), decision
    return decision.reason


def test_two_people_close_a_case_that_needs_no_correction() -> None:
    closed = after(fresh(), Propose("bank error", "ann"), Approve(1, "bob"))
    assert (closed.state, closed.outcome, closed.version) == (State.CLOSED, Outcome.EXPLAINED, 3)


@pytest.mark.parametrize("name", ["ann", "ANN", " Ann "])
def test_nobody_approves_what_they_have_proposed_however_they_write_their_name(name: str) -> None:
    proposed = after(fresh(), Propose("bank error", "ann"))
    assert reason(decide(proposed, Approve(1, name), NOW_MS)) == "SAME_PERSON"


def test_a_correction_closes_the_case_when_it_is_posted() -> None:
    resolving = after(fresh(), Propose("fee", "ann", FEE), Approve(1, "bob"))
    assert resolving.state is State.RESOLVING
    closed, happened = posted(resolving, "cor_1", NOW_MS)
    assert (closed.outcome, closed.proposal and closed.proposal.journal_id) == (Outcome.CORRECTED, "cor_1")
    assert happened.type == "closed"


def test_a_correction_that_payment_refuses_opens_the_case_again_and_the_next_is_another_one() -> None:
    resolving = after(fresh(), Propose("fee", "ann", FEE), Approve(1, "bob"))
    reopened, _ = not_posted(resolving, "SAME_PERSON", "no")
    assert (reopened.state, reopened.proposal) == (State.OPEN, None)
    again = after(reopened, Propose("fee", "ann", FEE))
    assert again.proposal is not None
    assert again.proposal.number == 2


def test_whoever_approves_must_have_seen_the_proposal_that_stands() -> None:
    proposed = after(fresh(), Propose("one", "ann"), Propose("two", "ann"))
    assert reason(decide(proposed, Approve(1, "bob"), NOW_MS)) == "PROPOSAL_CHANGED"
    assert reason(decide(proposed, Reject(1, "no", "bob"), NOW_MS)) == "PROPOSAL_CHANGED"


@pytest.mark.parametrize(
    "correction",
    [
        Correction("cash", "cash", POUND),
        Correction("merchant_payable", "cash", POUND),
        Correction("cash", "holds", POUND),
    ],
)
def test_what_follows_from_payments_alone_is_not_corrected(correction: Correction) -> None:
    assert reason(decide(fresh(), Propose("x", "ann", correction), NOW_MS)) == "CORRECTION_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("identifier", "number"),
    [("case_17", 17), ("17", 0), ("case_", 0), ("case_x", 0), ("case_" + "9" * 30, 0), ("", 0)],
)
def test_an_identifier_is_read_or_names_no_case(identifier: str, number: int) -> None:
    assert case_no(identifier) == number


PEOPLE = st.sampled_from(["ann", "Ann", "bob", "cas"])
WISHES = st.one_of(
    st.builds(Assign, PEOPLE, PEOPLE),
    st.builds(Propose, st.just("why"), PEOPLE, st.sampled_from([None, FEE])),
    st.builds(Approve, st.integers(1, 3), PEOPLE),
    st.builds(Reject, st.integers(1, 3), st.just("no"), PEOPLE),
)


@given(st.lists(WISHES, max_size=12))
def test_whatever_is_wished_two_people_stand_behind_every_resolution(wishes: list[Wish]) -> None:
    case = fresh()
    for wish in wishes:
        before = case
        decision = decide(case, wish, NOW_MS)
        if isinstance(decision, PaymeshError):
            continue
        case, happened = decision
        assert case.version == before.version + (happened is not None)
        if happened is None:
            assert replace(case, version=before.version) == before
        if case.state in (State.RESOLVING, State.CLOSED):
            assert case.proposal is not None
            assert not same_person(case.proposal.proposed_by, case.proposal.approved_by)
        if before.state is State.CLOSED:
            assert case == before
        assert (case.state is State.RESOLVING) <= (
            case.proposal is not None and case.proposal.correction is not None
        )


def test_the_accounts_that_may_be_corrected_are_those_of_payment() -> None:
    from services.payment.domain.correction import CORRECTABLE as THERE

    assert CORRECTABLE == THERE
