"""Settlements and payouts at the sandbox bank, as a real process on a real PostgreSQL: what callers are told, what
stands in the books, and that nothing is settled or paid twice, whatever comes at once or gets lost.

One process serves all tests; each test is a merchant of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from paymesh.bank.v1 import bank_pb2, settlement_pb2
from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub, FaultServiceStub
from paymesh.bank.v1.settlement_pb2_grpc import SettlementServiceStub
from paymesh.channel import open_channel, with_key
from paymesh.errors import PaymeshCallError, typed_errors
from paymesh.money.v1 import money_pb2
from tests.conftest import Services


@pytest.fixture(scope="module")
def running(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """(target, DSN) of a bank."""
    services = Services(postgres, tmp_path_factory.mktemp("bank"))
    process = services.start("bank", "sandbox.bank", latency_ms="0")
    yield process.target, services.dsn("bank")
    services.stop()


class Bank:
    """A bank as one merchant sees it."""

    def __init__(self, channel: Any, dsn: str, merchant: str) -> None:
        self.stub = BankServiceStub(channel)
        self.settlements = SettlementServiceStub(channel)
        self.faults = FaultServiceStub(channel)
        self.dsn = dsn
        self.merchant = merchant

    async def capture(self, name: str, amount_minor: int, refund_minor: int = 0) -> list[str]:
        """Ids of a capture and, if so, of a refund of an authorization of their own."""
        authorized = await self.stub.Authorize(
            bank_pb2.AuthorizeRequest(
                merchant_id=self.merchant, amount=_gbp(amount_minor), card_token="tok_visa"
            ),
            metadata=with_key(f"{name}/a"),
        )
        about: dict[str, Any] = {
            "merchant_id": self.merchant,
            "authorization_id": authorized.authorization.authorization_id,
        }
        captured = await self.stub.Capture(
            bank_pb2.CaptureRequest(**about, amount=_gbp(amount_minor)), metadata=with_key(f"{name}/c")
        )
        ids = [captured.operation.operation_id]
        if refund_minor:
            refunded = await self.stub.Refund(
                bank_pb2.RefundRequest(**about, amount=_gbp(refund_minor)), metadata=with_key(f"{name}/r")
            )
            ids.append(refunded.operation.operation_id)
        return ids

    async def settle(self, key: str, *ids: str) -> settlement_pb2.Settlement:
        request = settlement_pb2.SettleRequest(
            merchant_id=self.merchant, currency="GBP", reference="stl_1", operation_ids=ids
        )
        with typed_errors():
            return (await self.settlements.Settle(request, metadata=with_key(key))).settlement

    async def look_up(self, key: str) -> settlement_pb2.GetSettlementResponse:
        request = settlement_pb2.GetSettlementRequest(merchant_id=self.merchant, idempotency_key=key)
        return await self.settlements.GetSettlement(request)

    async def pay_out(self, key: str, amount_minor: int) -> settlement_pb2.Payout:
        request = settlement_pb2.PayOutRequest(
            merchant_id=self.merchant, amount=_gbp(amount_minor), reference="stl_1"
        )
        with typed_errors():
            return (await self.settlements.PayOut(request, metadata=with_key(key))).payout

    async def look_up_payout(self, key: str) -> settlement_pb2.GetPayoutResponse:
        request = settlement_pb2.GetPayoutRequest(merchant_id=self.merchant, idempotency_key=key)
        return await self.settlements.GetPayout(request)

    async def arm(
        self, kind: bank_pb2.FaultKind.ValueType, target: bank_pb2.FaultTarget.ValueType, strikes: int = 1
    ) -> None:
        fault = bank_pb2.Fault(
            kind=kind,
            target=target,
            probability_ppm=1_000_000,
            strikes_left=strikes,
            merchant_id=self.merchant,
        )
        await self.faults.InjectFault(bank_pb2.InjectFaultRequest(fault=fault))

    def lines(self) -> list[tuple[Any, ...]]:
        """(kind, amount, key) of the account's lines."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(
                "SELECT kind, amount_minor, key FROM account_lines WHERE merchant_id = %s ORDER BY kind, key",
                (self.merchant,),
            ).fetchall()


def _gbp(amount_minor: int) -> money_pb2.Money:
    return money_pb2.Money(amount_minor=amount_minor, currency="GBP")


@pytest_asyncio.fixture
async def bank(running: tuple[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Bank]:
    target, dsn = running
    async with open_channel(target, caller="test", attempts_max=1) as channel:
        bank = Bank(channel, dsn, request.node.name[-64:])
        yield bank
        await bank.faults.ClearFaults(bank_pb2.ClearFaultsRequest())


async def test_a_settlement_repeats_and_is_found_by_its_key(bank: Bank) -> None:
    ids = await bank.capture("p", 10_000, 2_500)
    made = await bank.settle("k", *ids)
    assert (made.captured, made.refunded, made.fees, made.net) == (
        _gbp(10_000),
        _gbp(2_500),
        _gbp(65),
        _gbp(7_435),
    )
    assert {(one.operation_id, one.amount_minor, one.fee_minor) for one in made.operations} == {
        (ids[0], 10_000, 65),
        (ids[1], 2_500, 0),
    }
    assert await bank.settle("k", *ids) == made
    assert (await bank.look_up("k")).settlement == made
    assert not (await bank.look_up("other")).found
    assert bank.lines() == [("SETTLEMENT", 7_435, "k")]


async def test_the_same_key_for_other_operations_is_refused(bank: Bank) -> None:
    (first,), (second,) = await bank.capture("p", 100), await bank.capture("q", 100)
    await bank.settle("k", first)
    with pytest.raises(PaymeshCallError) as caught:
        await bank.settle("k", second)
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_a_refusal_names_the_operation_and_leaves_the_key_free(bank: Bank) -> None:
    (known,) = await bank.capture("p", 100)
    with pytest.raises(PaymeshCallError) as caught:
        await bank.settle("k", known, "cap_unknown")
    assert (caught.value.reason, caught.value.facts) == (
        "UNKNOWN_OPERATION",
        {"operation_id": "cap_unknown"},
    )
    assert (await bank.settle("k", known)).net == _gbp(94)


async def test_of_twenty_settlements_of_one_capture_at_once_one_is_made(bank: Bank) -> None:
    ids = [(await bank.capture(f"p{n}", 100))[0] for n in range(3)]
    answers = await asyncio.gather(
        *(bank.settle(f"k{n}", *ids) for n in range(10)),
        *(bank.settle("same", *ids) for _ in range(10)),
        return_exceptions=True,
    )
    made = [one for one in answers if not isinstance(one, BaseException)]
    refused = [one for one in answers if isinstance(one, PaymeshCallError)]
    assert len({one.batch_id for one in made}) == 1
    assert {one.reason for one in refused} == {"ALREADY_SETTLED"}
    assert len(made) + len(refused) == 20
    assert len(bank.lines()) == 1


@pytest.mark.parametrize("kind", ["AFTER", "BEFORE"])
async def test_a_settlement_whose_answer_was_lost_is_there_or_not_and_repeats(bank: Bank, kind: str) -> None:
    (known,) = await bank.capture("p", 100)
    await bank.arm(bank_pb2.FaultKind.Value(f"FAULT_KIND_ANSWER_LOST_{kind}"), bank_pb2.FAULT_TARGET_SETTLE)
    with pytest.raises(PaymeshCallError) as caught:
        await bank.settle("k", known)
    assert caught.value.reason == "ANSWER_LOST"
    assert (await bank.look_up("k")).found is (kind == "AFTER")
    assert (await bank.settle("k", known)).net == _gbp(94)
    assert len(bank.lines()) == 1


async def test_a_payout_repeats_and_is_paid_once(bank: Bank) -> None:
    await bank.arm(bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER, bank_pb2.FAULT_TARGET_PAYOUT)
    with pytest.raises(PaymeshCallError):
        await bank.pay_out("k", 5_000)
    answers = await asyncio.gather(*(bank.pay_out("k", 5_000) for _ in range(10)))
    assert len({one.payout_id for one in answers}) == 1
    assert (await bank.look_up_payout("k")).payout == answers[0]
    assert bank.lines() == [("PAYOUT", -5_000, "k")]


async def test_a_payout_that_was_refused_stays_refused(bank: Bank) -> None:
    await bank.arm(bank_pb2.FAULT_KIND_REFUSE, bank_pb2.FAULT_TARGET_PAYOUT)
    for _ in range(2):
        with pytest.raises(PaymeshCallError) as caught:
            await bank.pay_out("k", 5_000)
        assert caught.value.reason == "ACCOUNT_CLOSED"
    found = (await bank.look_up_payout("k")).payout
    assert (found.state, found.reason) == (settlement_pb2.PAYOUT_STATE_REFUSED, "ACCOUNT_CLOSED")
    assert bank.lines() == []


async def test_wrong_input_is_named_field_by_field(bank: Bank) -> None:
    wrong = settlement_pb2.SettleRequest(currency="gbp", operation_ids=["a", "a"])
    with pytest.raises(PaymeshCallError) as caught, typed_errors():
        await bank.settlements.Settle(wrong, metadata=with_key("k"))
    assert {one.field for one in caught.value.violations} == {
        "merchant_id",
        "reference",
        "currency",
        "operation_ids",
    }
    with pytest.raises(PaymeshCallError) as caught:
        await bank.pay_out("k", 0)
    assert {one.field for one in caught.value.violations} == {"amount.amount_minor"}
