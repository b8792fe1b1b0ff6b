"""Captures, refunds and increments at the sandbox bank, as a real process on a real PostgreSQL: what callers are told,
what stands in the books, and that no sum goes too far, whatever comes at once.

One process serves all tests; each test is a merchant of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from google.protobuf.message import Message

from deploy.local.stores import EmbeddedPostgres
from paymesh.bank.v1 import bank_pb2 as pb
from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub, FaultServiceStub
from paymesh.channel import open_channel, was_replayed, with_key
from paymesh.errors import Kind, PaymeshCallError, typed_errors
from paymesh.money.v1 import money_pb2
from tests.conftest import Services

TARGETS = {
    "capture": pb.FAULT_TARGET_CAPTURE,
    "refund": pb.FAULT_TARGET_REFUND,
    "increment": pb.FAULT_TARGET_INCREMENT,
}
DONE = pb.OPERATION_STATE_DONE


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
        self.faults = FaultServiceStub(channel)
        self.dsn = dsn
        self.merchant = merchant
        self.rpcs: dict[str, tuple[Any, ...]] = {
            "capture": (
                self.stub.Capture,
                self.stub.BatchCapture,
                pb.CaptureRequest,
                pb.BatchCaptureRequest,
                pb.CaptureItem,
            ),
            "refund": (
                self.stub.Refund,
                self.stub.BatchRefund,
                pb.RefundRequest,
                pb.BatchRefundRequest,
                pb.RefundItem,
            ),
            "increment": (
                self.stub.IncrementAuthorization,
                self.stub.BatchIncrementAuthorizations,
                pb.IncrementAuthorizationRequest,
                pb.BatchIncrementAuthorizationsRequest,
                pb.IncrementAuthorizationItem,
            ),
        }

    async def authorize(self, amount_minor: int = 1_000, token: str = "tok_visa", key: str = "k1") -> str:
        amount = money_pb2.Money(amount_minor=amount_minor, currency="GBP")
        request = pb.AuthorizeRequest(merchant_id=self.merchant, amount=amount, card_token=token)
        return (await self.stub.Authorize(request, metadata=with_key(key))).authorization.authorization_id

    def request(
        self, what: str, authorization: str, amount_minor: int, currency: str = "GBP", **more: bool
    ) -> Any:
        amount = money_pb2.Money(amount_minor=amount_minor, currency=currency)
        return self.rpcs[what][2](
            merchant_id=self.merchant, authorization_id=authorization, amount=amount, **more
        )

    async def move(self, what: str, key: str, *args: Any, **more: Any) -> pb.Operation:
        with typed_errors():
            answer = await self.rpcs[what][0](self.request(what, *args, **more), metadata=with_key(key))
        operation: pb.Operation = answer.operation
        return operation

    async def reason(self, what: str, key: str, *args: Any, **more: Any) -> str:
        """Why it does not."""
        with pytest.raises(PaymeshCallError) as caught:
            await self.move(what, key, *args, **more)
        return caught.value.reason

    async def void(self, authorization: str, key: str) -> pb.Authorization:
        request = pb.VoidRequest(merchant_id=self.merchant, authorization_id=authorization)
        with typed_errors():
            return (await self.stub.Void(request, metadata=with_key(key))).authorization

    async def look_up(self, key: str) -> pb.LookupByKeyResponse:
        request = pb.LookupByKeyRequest(merchant_id=self.merchant, idempotency_key=key)
        return await self.stub.LookupByKey(request)

    async def arm(self, kind: pb.FaultKind.ValueType, what: str, strikes: int) -> None:
        fault = pb.Fault(
            kind=kind,
            target=TARGETS[what],
            probability_ppm=1_000_000,
            strikes_left=strikes,
            merchant_id=self.merchant,
        )
        await self.faults.InjectFault(pb.InjectFaultRequest(fault=fault))

    def books(self) -> list[tuple[str | None, str, str, int]]:
        """(key, kind, result, amount) of this merchant's operations but the authorizations, as they arrived."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(
                "SELECT key, kind, result, amount_minor FROM books WHERE merchant_id = %s AND kind <> 'AUTHORIZE'"
                " ORDER BY created_at, key",
                (self.merchant,),
            ).fetchall()


@pytest_asyncio.fixture
async def bank(running: tuple[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Bank]:
    target, dsn = running
    async with open_channel(target, caller="test", attempts_max=1) as channel:
        bank = Bank(channel, dsn, request.node.name[:64])
        yield bank
        await bank.faults.ClearFaults(pb.ClearFaultsRequest())


async def test_money_is_captured_in_parts_and_given_back_in_parts(bank: Bank) -> None:
    auth = await bank.authorize()
    first = await bank.move("capture", "c1", auth, 400)
    assert (first.state, first.kind, first.amount.amount_minor) == (DONE, pb.OPERATION_KIND_CAPTURE, 400)
    assert (first.authorization_id, first.idempotency_key) == (auth, "c1")
    assert first.operation_id.startswith("cap_")
    assert await bank.reason("capture", "c2", auth, 601) == "CAPTURE_EXCEEDS_HOLD"
    assert await bank.reason("refund", "r1", auth, 401) == "REFUND_EXCEEDS_CAPTURED"
    assert (await bank.move("refund", "r2", auth, 100)).operation_id.startswith("ref_")
    assert (await bank.look_up("k1")).authorization.state == pb.AUTHORIZATION_STATE_APPROVED
    assert (await bank.move("capture", "c3", auth, 600)).state == DONE
    assert (await bank.look_up("k1")).authorization.state == pb.AUTHORIZATION_STATE_CAPTURED
    assert (await bank.move("refund", "r3", auth, 900)).state == DONE
    assert await bank.reason("refund", "r4", auth, 1) == "REFUND_EXCEEDS_CAPTURED"
    assert [(kind, result, amount) for _, kind, result, amount in bank.books()] == [
        ("CAPTURE", "CAPTURED", 400),
        ("CAPTURE", "REFUSED", 601),
        ("REFUND", "REFUSED", 401),
        ("REFUND", "REFUNDED", 100),
        ("CAPTURE", "CAPTURED", 600),
        ("REFUND", "REFUNDED", 900),
        ("REFUND", "REFUSED", 1),
    ]


async def test_a_void_lets_go_of_what_captures_have_left(bank: Bank) -> None:
    auth = await bank.authorize()
    await bank.move("capture", "c1", auth, 400)
    assert (await bank.void(auth, "v1")).state == pb.AUTHORIZATION_STATE_VOIDED
    assert await bank.reason("capture", "c2", auth, 1) == "AUTHORIZATION_VOIDED"
    assert bank.books()[1] == ("v1", "VOID", "VOIDED", 600)
    other = await bank.authorize(key="k2")
    await bank.move("capture", "c3", other, 1_000)
    with pytest.raises(PaymeshCallError) as caught:
        await bank.void(other, "v2")
    assert caught.value.reason == "NOTHING_HELD"


async def test_a_final_capture_lets_go_of_the_rest(bank: Bank) -> None:
    auth = await bank.authorize()
    await bank.move("capture", "c1", auth, 400, final=True)
    assert (await bank.look_up("k1")).authorization.state == pb.AUTHORIZATION_STATE_CAPTURED
    assert await bank.reason("capture", "c2", auth, 1) == "CAPTURE_EXCEEDS_HOLD"


async def test_an_increment_holds_more_and_may_be_declined(bank: Bank) -> None:
    auth = await bank.authorize()
    assert (await bank.move("increment", "i1", auth, 500)).operation_id.startswith("inc_")
    assert (await bank.move("capture", "c1", auth, 1_500)).state == DONE
    assert await bank.reason("increment", "i2", auth, 1) == "AUTHORIZATION_CAPTURED"
    poor = await bank.authorize(token="tok_no_increment", key="k2")
    declined = await bank.move("increment", "i3", poor, 1)
    assert (declined.state, declined.reason) == (pb.OPERATION_STATE_DECLINED, "INSUFFICIENT_FUNDS")
    assert (await bank.look_up("i3")).operation == declined


@pytest.mark.parametrize("what", TARGETS)
async def test_one_key_50_times_at_once_moves_money_once(bank: Bank, what: str) -> None:
    auth = await bank.authorize()
    if what == "refund":
        await bank.move("capture", "c1", auth, 1_000)
    moved = await asyncio.gather(*(bank.move(what, "m1", auth, 10) for _ in range(50)))
    assert len({operation.operation_id for operation in moved}) == 1
    assert [amount for key, _, _, amount in bank.books() if key == "m1"] == [10]
    assert await bank.reason(what, "m1", auth, 11) == "IDEMPOTENCY_KEY_REUSED"
    call = bank.rpcs[what][0](bank.request(what, auth, 10), metadata=with_key("m1"))
    await call
    assert await was_replayed(call)


@pytest.mark.parametrize("what", ["capture", "refund"])
async def test_many_at_once_never_exceed_the_sum(bank: Bank, what: str) -> None:
    auth = await bank.authorize()
    if what == "refund":
        await bank.move("capture", "c1", auth, 1_000)
    answers = await asyncio.gather(
        *(bank.move(what, f"m{n}", auth, 300) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(answer, pb.Operation) for answer in answers) == 3


@pytest.mark.parametrize("what", TARGETS)
async def test_in_a_batch_each_item_has_its_own_result(bank: Bank, what: str) -> None:
    auth = await bank.authorize()
    if what == "refund":
        await bank.move("capture", "c1", auth, 1_000)
    _, batch, _, request, item = bank.rpcs[what]
    wishes = [("m1", auth, 100), ("m2", "auth_9", 100), ("m1", auth, 100), ("m3", auth, 0), ("m1", auth, 101)]
    items = [item(idempotency_key=k, request=bank.request(what, a, amount)) for k, a, amount in wishes]
    results = (await batch(request(items=items))).results
    assert [r.WhichOneof("outcome") for r in results] == [
        "response",
        "failure",
        "response",
        "failure",
        "failure",
    ]
    assert [r.replayed for r in results] == [False, False, True, False, False]
    assert [r.failure.reason for r in results] == [
        "",
        "UNKNOWN_AUTHORIZATION",
        "",
        "INVALID_REQUEST",
        "IDEMPOTENCY_KEY_REUSED",
    ]
    assert results[0].response == results[2].response


@pytest.mark.parametrize("what", TARGETS)
async def test_after_a_lost_answer_the_look_up_tells_the_truth(bank: Bank, what: str) -> None:
    auth = await bank.authorize()
    if what == "refund":
        await bank.move("capture", "c1", auth, 1_000)
    for kind, found in ((pb.FAULT_KIND_ANSWER_LOST_BEFORE, False), (pb.FAULT_KIND_ANSWER_LOST_AFTER, True)):
        await bank.arm(kind, what, strikes=1)
        with pytest.raises(PaymeshCallError) as caught:
            await bank.move(what, f"m{found}", auth, 10)
        assert caught.value.kind is Kind.UNKNOWN
        answer = await bank.look_up(f"m{found}")
        assert answer.found is found
        if found:
            assert (answer.operation.state, answer.operation.amount.amount_minor) == (DONE, 10)
            assert answer.authorization.authorization_id == auth


async def test_keys_are_one_namespace_and_only_authorizations_are_cancelled_by_key(bank: Bank) -> None:
    auth = await bank.authorize()
    await bank.move("capture", "c1", auth, 10)
    assert await bank.reason("refund", "c1", auth, 10) == "IDEMPOTENCY_KEY_REUSED"
    for key, reason in (("c1", "NOT_AN_AUTHORIZATION"), ("k1", "AUTHORIZATION_CAPTURED")):
        with pytest.raises(PaymeshCallError) as caught, typed_errors():
            await bank.stub.CancelByKey(pb.CancelByKeyRequest(merchant_id=bank.merchant, idempotency_key=key))
        assert caught.value.reason == reason


@pytest.mark.parametrize("what", TARGETS)
async def test_cards_and_callers_are_refused_for_ever_under_a_key(bank: Bank, what: str) -> None:
    declined = await bank.authorize(token="tok_declined")
    for _ in "12":
        assert await bank.reason(what, "m1", declined, 1) == "AUTHORIZATION_DECLINED"
    assert len(bank.books()) == 1
    auth = await bank.authorize(key="k2")
    assert await bank.reason(what, "m2", auth, 1, "EUR") == "CURRENCY_MISMATCH"
    assert await bank.reason(what, "m3", "auth_unknown", 1) == "UNKNOWN_AUTHORIZATION"


WRONG = [
    ("merchant_id", {"merchant_id": ""}),
    ("merchant_id", {"merchant_id": "m" * 65}),
    ("authorization_id", {"authorization_id": ""}),
    ("authorization_id", {"authorization_id": "a\x00b"}),
    ("amount.amount_minor", {"amount": money_pb2.Money(amount_minor=0, currency="GBP")}),
    ("amount.amount_minor", {"amount": money_pb2.Money(amount_minor=-5, currency="GBP")}),
    ("amount.currency", {"amount": money_pb2.Money(amount_minor=1, currency="XXX")}),
]


@pytest.mark.parametrize(("field", "changes"), WRONG)
@pytest.mark.parametrize("what", TARGETS)
async def test_a_wrong_field_is_named_and_changes_nothing(
    bank: Bank, what: str, field: str, changes: dict[str, Any]
) -> None:
    request: Message = bank.rpcs[what][2](
        **{
            "merchant_id": bank.merchant,
            "authorization_id": "auth_1",
            "amount": money_pb2.Money(amount_minor=1, currency="GBP"),
            **changes,
        }
    )
    with pytest.raises(PaymeshCallError) as caught, typed_errors():
        await bank.rpcs[what][0](request, metadata=with_key("m1"))
    assert (caught.value.kind, [v.field for v in caught.value.violations]) == (Kind.INVALID, [field])
    assert bank.books() == []


@pytest.mark.parametrize(("token", "what"), [("tok_no_capture", "capture"), ("tok_no_refund", "refund")])
async def test_a_card_may_refuse_what_comes_later(bank: Bank, token: str, what: str) -> None:
    auth = await bank.authorize(token=token)
    if what == "refund":
        await bank.move("capture", "c1", auth, 1_000)
    reason = await bank.reason(what, "m1", auth, 10)
    assert reason in ("CARD_CLOSED", "ACCOUNT_CLOSED")
    assert (await bank.look_up("m1")).operation.reason == reason
