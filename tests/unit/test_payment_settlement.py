"""Settlements without processes or stores: captures, refunds, runs, answers that are lost, payouts that are refused,
in any order. An oracle that only knows sums says after every step what the merchant is owed, what the bank has paid,
and what every account of the ledger must show.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.payment import ledger
from services.payment.domain import settlement as domain
from services.payment.domain.settlement import (
    Batch,
    Item,
    ItemKind,
    NotPaid,
    PaidOut,
    PayoutState,
    Settlement,
    SettlementState,
    Sums,
    Waits,
)
from services.payment.settler import lag_seconds
from tests.depth import examples

DAY = date(2026, 11, 25)
FINAL = (PayoutState.PAID, PayoutState.REFUSED, PayoutState.CARRIED)


def _batch(items: list[Item], fee: int = 1) -> Batch:
    """What a bank answers that takes the same for every capture."""
    operations = {
        one.bank_reference: (one.kind, one.amount_minor, fee if one.kind is ItemKind.CAPTURE else 0)
        for one in items
    }
    signs = {ItemKind.CAPTURE: 1, ItemKind.REFUND: -1}
    net = sum(signs[one.kind] * one.amount_minor for one in items) - sum(f for _, _, f in operations.values())
    return Batch("batch_1", operations, net, DAY, DAY)


def _sums(items: list[Item]) -> Sums:
    captured = sum(one.amount_minor for one in items if one.kind is ItemKind.CAPTURE)
    refunded = sum(one.amount_minor for one in items if one.kind is ItemKind.REFUND)
    return Sums(len(items), captured, refunded, sum(one.fee_minor for one in items))


class Merchant(RuleBasedStateMachine):
    """One merchant, and the oracle of what he is owed."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Item] = []
        self.gathered: list[tuple[Settlement, list[Item]]] = []
        self.unposted: list[int] = []
        self.carried = 0
        self.number = 0
        self.books: Counter[str] = Counter()
        # The oracle.
        self.due = self.paid = self.under_way = self.bank_fees = 0

    @rule(
        kind=st.sampled_from(ItemKind),
        amount=st.integers(1, 1_000),
        fee=st.integers(0, 1_200),
    )
    def move(self, kind: ItemKind, amount: int, fee: int) -> None:
        self.number += 1
        fee = fee if kind is ItemKind.CAPTURE else 0
        self.items.append(Item("m", f"pay_{self.number}", 4, kind, amount, fee, f"op_{self.number}"))

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def decide(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.items)))
        taken, self.items = self.items[:count], self.items[count:]
        made, self.carried = domain.decide(
            "m", f"stl_{len(self.gathered)}", DAY, 1, "USD", _sums(taken), self.carried
        )
        assert self.carried <= 0, "what is owed to the merchant is paid"
        assert made.payout_minor >= 0
        assert (made.payout_state is PayoutState.CARRIED) == (made.payout_minor == 0)
        self.gathered.append((made, taken))
        self.unposted.append(len(taken))
        self.due += made.due_minor

    def _step(self, place: int, after: Settlement) -> None:
        before, items = self.gathered[place]
        assert after.version in (before.version, before.version + 1)
        lines = ledger.settlement_journal(before, after)
        assert sum(line.amount.amount_minor for line in lines) == 0
        assert all(line.amount.amount_minor for line in lines)
        assert not lines or after.version > before.version, "a journal has a number of its own"
        for line in lines:
            self.books[line.account] += line.amount.amount_minor
        self.gathered[place] = (after, items)

    @precondition(lambda self: self.gathered)
    @rule(data=st.data(), answer=st.sampled_from(["batch", "batch", "lost", "amount", "less", "net"]))
    def ask(self, data: st.DataObject, answer: str) -> None:
        place = data.draw(st.integers(0, len(self.gathered) - 1))
        before, items = self.gathered[place]
        batch = _batch(items)
        first = items[0].bank_reference
        kind, amount, fee = batch.operations[first]
        answers: dict[str, Batch | Waits] = {
            "batch": batch,
            "lost": Waits("ANSWER_LOST"),
            "amount": batch._replace(operations={**batch.operations, first: (kind, amount + 1, fee)}),
            "less": batch._replace(operations={k: v for k, v in batch.operations.items() if k != first}),
            "net": batch._replace(net_minor=batch.net_minor + 1),
        }
        after = domain.after_batch(before, answers[answer], items)
        if before.state is not SettlementState.SETTLING:
            assert after == before, "a late answer changes nothing"
        elif answer == "batch":
            assert after.state is SettlementState.POSTING
            self.bank_fees += after.processor_fee_minor
            self.under_way += after.payout_minor
        else:
            due = {"lost": "ANSWER_LOST"}.get(answer, "BANK_SAYS_OTHERWISE")
            assert after == before._replace(waits_for=due), "nothing is booked on what nobody understands"
        self._step(place, after)

    @precondition(lambda self: self.gathered)
    @rule(data=st.data(), answer=st.sampled_from(["paid", "paid", "refused", "lost"]))
    def pay_out(self, data: st.DataObject, answer: str) -> None:
        place = data.draw(st.integers(0, len(self.gathered) - 1))
        before, _ = self.gathered[place]
        answers: dict[str, PaidOut | NotPaid | Waits] = {
            "paid": PaidOut("pout_1", DAY, DAY),
            "refused": NotPaid("pout_1", "ACCOUNT_CLOSED"),
            "lost": Waits("ANSWER_LOST"),
        }
        after = domain.after_payout(before, answers[answer])
        back = domain.carried_back(before, after)
        if before.payout_state is not PayoutState.PAYING:
            assert after == before, "nothing is paid before the bank has paid, or twice"
            assert not back
        elif answer == "lost":
            assert after == before._replace(waits_for="ANSWER_LOST")
        else:
            self.under_way -= before.payout_minor
            self.paid += before.payout_minor if answer == "paid" else 0
            assert back == (before.payout_minor if answer == "refused" else 0)
        self.carried += back
        self._step(place, after)

    @precondition(lambda self: any(self.unposted))
    @rule(data=st.data())
    def post(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from([p for p, left in enumerate(self.unposted) if left]))
        if self.gathered[place][0].state is SettlementState.POSTING:
            self.unposted[place] -= 1

    @precondition(lambda self: self.gathered)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.gathered) - 1))
        before, _ = self.gathered[place]
        after = domain.completed(before, self.unposted[place], 7)
        ended = before.payout_state in FINAL and not self.unposted[place]
        assert (after.state is SettlementState.COMPLETED) == (
            before.state is SettlementState.COMPLETED or (before.state is SettlementState.POSTING and ended)
        )
        self._step(place, after)

    @invariant()
    def the_merchant_gets_what_is_due(self) -> None:
        planned = sum(
            made.payout_minor for made, _ in self.gathered if made.payout_state is PayoutState.PLANNED
        )
        assert self.paid + self.under_way + planned + self.carried == self.due

    @invariant()
    def the_ledger_shows_the_sums(self) -> None:
        due = {
            "processor_fees": self.bank_fees,
            "merchant_payable": self.under_way + self.paid,
            "payouts": -self.under_way,
            "cash": -self.bank_fees - self.paid,
        }
        assert {account: self.books[account] for account in due} == due
        assert set(self.books) <= set(due)


Merchant.TestCase.settings = settings(max_examples=examples(30, 100), stateful_step_count=30, deadline=None)
TestMerchant = Merchant.TestCase


def test_what_a_merchant_owes_is_taken_off_his_next_payouts() -> None:
    first, carried = domain.decide("m", "stl_1", DAY, 1, "USD", Sums(1, 0, 500, 0), 0)
    assert (first.payout_minor, first.payout_state, carried) == (0, PayoutState.CARRIED, -500)
    second, carried = domain.decide("m", "stl_2", DAY, 2, "USD", Sums(1, 300, 0, 10), carried)
    assert (second.payout_minor, carried) == (0, -210)
    third, carried = domain.decide("m", "stl_3", DAY, 3, "USD", Sums(1, 300, 0, 10), carried)
    assert (third.brought_forward_minor, third.payout_minor, carried) == (-210, 80, 0)


@pytest.mark.parametrize(
    ("now", "seconds"),
    [("2026-11-25T23:59:59", 0), ("2026-11-26T00:00:00", 0), ("2026-11-26T01:00:00", 3_600)],
)
def test_the_lag_begins_when_the_day_is_over(now: str, seconds: int) -> None:
    assert lag_seconds(DAY, datetime.fromisoformat(now).replace(tzinfo=UTC)) == seconds
