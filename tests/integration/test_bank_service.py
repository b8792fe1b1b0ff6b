"""The sandbox bank as a real process on a real PostgreSQL: what callers are told, and what stands in the books.

One process serves all tests; each test is a merchant of its own. The last tests kill a process of their own.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass

import grpc
import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from paymesh.bank.v1 import bank_pb2 as pb
from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub, FaultServiceStub
from paymesh.channel import open_channel, was_replayed, with_key
from paymesh.errors import Kind, PaymeshCallError, typed_errors
from paymesh.money.v1 import money_pb2
from paymesh.result.v1 import failure_pb2
from tests.conftest import Services

SOFT_DEADLINE_MS = 300
CERTAIN = 1_000_000
WAIT_SECONDS_MAX = 20.0
"""For what happens in the background: far longer than it takes, so that a busy machine fails no test."""


@pytest.fixture(scope="module")
def running(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """(target, DSN) of a bank."""
    services = Services(postgres, tmp_path_factory.mktemp("bank"))
    process = services.start("bank", "sandbox.bank", latency_ms="0", soft_deadline_ms=str(SOFT_DEADLINE_MS))
    yield process.target, services.dsn("bank")
    services.stop()


@dataclass(frozen=True)
class Bank:
    """A bank as one merchant sees it."""

    stub: BankServiceStub
    faults: FaultServiceStub
    dsn: str
    merchant: str

    def request(
        self, amount_minor: int = 1_000, token: str = "tok_visa", currency: str = "GBP"
    ) -> pb.AuthorizeRequest:
        amount = money_pb2.Money(amount_minor=amount_minor, currency=currency)
        return pb.AuthorizeRequest(
            merchant_id=self.merchant, amount=amount, card_token=token, reference="order 1"
        )

    async def authorize(
        self, key: str, amount_minor: int = 1_000, token: str = "tok_visa"
    ) -> pb.Authorization:
        with typed_errors():
            answer = await self.stub.Authorize(self.request(amount_minor, token), metadata=with_key(key))
        return answer.authorization

    async def batch(self, *items: tuple[str, pb.AuthorizeRequest]) -> list[pb.AuthorizeResult]:
        request = pb.BatchAuthorizeRequest(
            items=[pb.AuthorizeItem(idempotency_key=key, request=request) for key, request in items]
        )
        with typed_errors():
            return list((await self.stub.BatchAuthorize(request)).results)

    async def void(self, authorization_id: str, key: str) -> pb.Authorization:
        request = pb.VoidRequest(merchant_id=self.merchant, authorization_id=authorization_id)
        with typed_errors():
            return (await self.stub.Void(request, metadata=with_key(key))).authorization

    async def look_up(self, key: str) -> pb.LookupByKeyResponse:
        request = pb.LookupByKeyRequest(merchant_id=self.merchant, idempotency_key=key)
        with typed_errors():
            return await self.stub.LookupByKey(request)

    async def cancel(self, key: str) -> pb.Authorization:
        request = pb.CancelByKeyRequest(merchant_id=self.merchant, idempotency_key=key)
        with typed_errors():
            return (await self.stub.CancelByKey(request)).authorization

    async def arm(
        self,
        kind: pb.FaultKind.ValueType,
        target: pb.FaultTarget.ValueType,
        strikes: int = 0,
        delay_ms: int = 0,
    ) -> None:
        fault = pb.Fault(
            kind=kind,
            target=target,
            probability_ppm=CERTAIN,
            strikes_left=strikes,
            delay_ms=delay_ms,
            merchant_id=self.merchant,
        )
        await self.faults.InjectFault(pb.InjectFaultRequest(fault=fault))

    def books(self) -> list[tuple[str | None, str, str]]:
        """(key, kind, result) of this merchant's operations, as they arrived."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(
                "SELECT key, kind, result FROM books WHERE merchant_id = %s ORDER BY created_at, key",
                (self.merchant,),
            ).fetchall()


@pytest_asyncio.fixture
async def bank(running: tuple[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Bank]:
    target, dsn = running
    # One attempt: a test that arms one strike must see it.
    async with open_channel(target, caller="test", attempts_max=1) as channel:
        faults = FaultServiceStub(channel)
        yield Bank(BankServiceStub(channel), faults, dsn, request.node.name[:64])
        await faults.ClearFaults(pb.ClearFaultsRequest())


async def _refusal(call: Awaitable[object]) -> PaymeshCallError:
    with pytest.raises(PaymeshCallError) as caught:
        await call
    return caught.value


async def _arrived(bank: Bank, key: str) -> pb.AuthorizationState.ValueType:
    """Wait until the operation under `key` is in the books; how its authorization stands then."""
    until = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := await bank.look_up(key)).found:
        assert time.monotonic() < until, f"{key} never arrived"
        await asyncio.sleep(0.05)
    return found.authorization.state


async def test_a_card_becomes_a_token_that_authorizes(bank: Bank) -> None:
    card = pb.TokenizeCardRequest(number="4242424242424242", expiry_month=12, expiry_year=2035, cvc="123")
    token = await bank.stub.TokenizeCard(card)
    assert (token.token, token.bin, token.last4, token.brand) == ("tok_visa", "424242", "4242", "visa")
    authorization = await bank.authorize("k1", token=token.token)
    assert authorization.state == pb.AUTHORIZATION_STATE_APPROVED
    assert len(authorization.auth_code) == 6
    assert authorization.authorization_id.startswith("auth_")
    assert authorization.amount == money_pb2.Money(amount_minor=1_000, currency="GBP")
    card.number = "4242424242424241"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bank.stub.TokenizeCard(card)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "424242424242424" not in str(caught.value.details())


async def test_a_declined_card_is_an_answer_and_replays(bank: Bank) -> None:
    declined = await bank.authorize("k1", token="tok_insufficient_funds")
    assert declined.state == pb.AUTHORIZATION_STATE_DECLINED
    assert (declined.decline_reason, declined.auth_code) == ("INSUFFICIENT_FUNDS", "")
    assert await bank.authorize("k1", token="tok_insufficient_funds") == declined
    assert (await bank.authorize("k2", token="nonsense")).decline_reason == "INVALID_CARD"
    refused = await _refusal(bank.void(declined.authorization_id, "v1"))
    assert (refused.kind, refused.reason) == (Kind.REFUSED, "AUTHORIZATION_DECLINED")
    assert (await _refusal(bank.void(declined.authorization_id, "v1"))).reason == "AUTHORIZATION_DECLINED"
    assert [result for _, _, result in bank.books()] == ["DECLINED", "DECLINED", "REFUSED"]


async def test_a_repeat_returns_the_first_result_and_another_amount_is_refused(bank: Bank) -> None:
    first = await bank.authorize("k1")
    call = bank.stub.Authorize(bank.request(), metadata=with_key("k1"))
    assert (await call).authorization == first
    assert await was_replayed(call)
    await bank.void(first.authorization_id, "v1")
    assert await bank.authorize("k1") == first, "the first result, not what became of it"
    reused = await _refusal(bank.authorize("k1", amount_minor=1_001))
    assert (reused.kind, reused.reason) == (Kind.REFUSED, "IDEMPOTENCY_KEY_REUSED")
    assert len(bank.books()) == 2


async def test_one_key_50_times_at_once_has_one_effect(bank: Bank) -> None:
    answers = await asyncio.gather(*(bank.authorize("k1") for _ in range(50)))
    assert len({a.authorization_id for a in answers}) == 1
    others = await asyncio.gather(
        *(bank.authorize("k2", amount_minor=1_000 + n) for n in range(50)), return_exceptions=True
    )
    won = [a for a in others if isinstance(a, pb.Authorization)]
    assert len(won) == 1
    assert {e.reason for e in others if isinstance(e, PaymeshCallError)} == {"IDEMPOTENCY_KEY_REUSED"}
    voids = await asyncio.gather(*(bank.void(won[0].authorization_id, f"v{n % 25}") for n in range(50)))
    assert {v.state for v in voids} == {pb.AUTHORIZATION_STATE_VOIDED}
    results = [result for _, _, result in bank.books()]
    assert (results.count("APPROVED"), results.count("VOIDED"), results.count("ALREADY_VOIDED")) == (2, 1, 24)


async def test_in_a_batch_each_item_has_its_own_result(bank: Bank) -> None:
    await bank.authorize("old")
    items = [
        ("k1", bank.request()),
        ("k2", bank.request(token="tok_declined")),
        ("k1", bank.request()),
        ("k1", bank.request(2_000)),
        ("old", bank.request()),
        ("", bank.request()),
        ("k3", bank.request(0)),
        ("k4", bank.request()),
    ]
    for repeat in (False, True):
        results = await bank.batch(*items)
        assert [r.failure.reason for r in results] == [
            "",
            "",
            "",
            "IDEMPOTENCY_KEY_REUSED",
            "",
            "INVALID_REQUEST",
            "INVALID_REQUEST",
            "",
        ]
        assert results[0].response == results[2].response
        replayed = [results[place].replayed for place in (0, 1, 2, 4, 7)]
        assert replayed == [repeat, repeat, True, True, repeat]
    assert sorted(key or "" for key, _, _ in bank.books()) == ["k1", "k2", "k4", "old"]


async def test_a_hold_is_let_go_once_whatever_the_key(bank: Bank) -> None:
    held = await bank.authorize("k1")
    for key in ("v1", "v1", "v2"):
        voided = await bank.void(held.authorization_id, key)
        assert voided.state == pb.AUTHORIZATION_STATE_VOIDED
        assert voided.authorization_id == held.authorization_id
    missing = await _refusal(bank.void("auth_nobody", "v3"))
    assert (missing.kind, missing.reason) == (Kind.NOT_FOUND, "UNKNOWN_AUTHORIZATION")
    other = await bank.authorize("k2")
    assert (await _refusal(bank.void(other.authorization_id, "v1"))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert (await _refusal(bank.void(other.authorization_id, "k1"))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert (await _refusal(bank.authorize("v1"))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert bank.books() == [
        ("k1", "AUTHORIZE", "APPROVED"),
        ("v1", "VOID", "VOIDED"),
        ("v2", "VOID", "ALREADY_VOIDED"),
        ("k2", "AUTHORIZE", "APPROVED"),
    ]


async def test_one_merchant_cannot_touch_what_is_anothers(bank: Bank) -> None:
    held = await bank.authorize("k1")
    other = Bank(bank.stub, bank.faults, bank.dsn, bank.merchant[:60] + "-2")
    assert (await _refusal(other.void(held.authorization_id, "v1"))).kind is Kind.NOT_FOUND
    assert not (await other.look_up("k1")).found
    assert (await other.cancel("k1")).state == pb.AUTHORIZATION_STATE_CANCELLED
    assert (await bank.look_up("k1")).authorization.state == pb.AUTHORIZATION_STATE_APPROVED


async def test_a_look_up_by_the_key_of_either_operation_tells_how_things_stand(bank: Bank) -> None:
    assert not (await bank.look_up("k1")).found
    held = await bank.authorize("k1")
    assert (await bank.look_up("k1")).authorization == held
    await bank.void(held.authorization_id, "v1")
    for key in ("k1", "v1"):
        found = await bank.look_up(key)
        assert found.found
        assert found.authorization.state == pb.AUTHORIZATION_STATE_VOIDED
        assert found.authorization.idempotency_key == "k1"
    asked = [
        pb.LookupByKeyRequest(merchant_id=bank.merchant, idempotency_key=key)
        for key in ("v1", "none", "", "k1")
    ]
    results = (await bank.stub.BatchLookupByKey(pb.BatchLookupByKeyRequest(items=asked))).results
    assert [r.response.found for r in results] == [True, False, False, True]
    assert [r.failure.kind for r in results] == [0, 0, failure_pb2.KIND_INVALID, 0]


async def test_what_is_cancelled_before_it_arrives_never_holds_anything(bank: Bank) -> None:
    cancelled = await bank.cancel("k1")
    assert cancelled.state == pb.AUTHORIZATION_STATE_CANCELLED
    assert await bank.cancel("k1") == cancelled
    for amount_minor in (1_000, 2_000):
        late = await _refusal(bank.authorize("k1", amount_minor))
        assert (late.kind, late.reason) == (Kind.REFUSED, "CANCELLED_BEFORE_ARRIVAL")
    assert (await bank.look_up("k1")).authorization == cancelled
    assert bank.books() == [("k1", "AUTHORIZE", "CANCELLED")]


async def test_what_is_cancelled_after_it_arrived_is_let_go_once(bank: Bank) -> None:
    held = await bank.authorize("k1")
    answers = await asyncio.gather(
        *(bank.cancel("k1") for _ in range(10)),
        *(bank.void(held.authorization_id, f"v{n}") for n in range(10)),
    )
    assert {a.state for a in answers} == {pb.AUTHORIZATION_STATE_VOIDED}
    assert [result for _, _, result in bank.books()].count("VOIDED") == 1
    await bank.authorize("k2", token="tok_lost_card")
    assert (await bank.cancel("k2")).state == pb.AUTHORIZATION_STATE_DECLINED
    assert (await _refusal(bank.cancel("v1"))).reason == "NOT_AN_AUTHORIZATION"


async def test_cancel_and_authorize_at_once_agree_on_what_happened(bank: Bank) -> None:
    async def race(key: str) -> None:
        authorized, cancelled = await asyncio.gather(
            bank.authorize(key), bank.cancel(key), return_exceptions=True
        )
        assert isinstance(cancelled, pb.Authorization)
        if isinstance(authorized, pb.Authorization):
            assert cancelled.state == pb.AUTHORIZATION_STATE_VOIDED
        else:
            assert cancelled.state == pb.AUTHORIZATION_STATE_CANCELLED

    await asyncio.gather(*(race(f"k{n}") for n in range(40)))
    standing = {key: (await bank.look_up(key)).authorization.state for key in (f"k{n}" for n in range(40))}
    assert pb.AUTHORIZATION_STATE_APPROVED not in standing.values()


@pytest.mark.parametrize(
    ("kind", "arrived"),
    [(pb.FAULT_KIND_ANSWER_LOST_AFTER, True), (pb.FAULT_KIND_ANSWER_LOST_BEFORE, False)],
    ids=["after", "before"],
)
async def test_after_a_lost_answer_the_look_up_tells_the_truth(
    bank: Bank, kind: pb.FaultKind.ValueType, arrived: bool
) -> None:
    await bank.arm(kind, pb.FAULT_TARGET_AUTHORIZE, strikes=2)
    lost = await _refusal(bank.authorize("k1"))
    assert (lost.kind, lost.reason) == (Kind.UNKNOWN, "ANSWER_LOST")
    in_batch, neighbour = await bank.batch(("k2", bank.request()), ("k3", bank.request()))
    assert (in_batch.failure.kind, in_batch.failure.reason) == (failure_pb2.KIND_UNKNOWN, "ANSWER_LOST")
    assert neighbour.HasField("response")
    assert [(await bank.look_up(key)).found for key in ("k1", "k2", "k3")] == [arrived, arrived, True]
    call = bank.stub.Authorize(bank.request(), metadata=with_key("k1"))
    held = (await call).authorization
    assert await was_replayed(call) is arrived
    await bank.arm(kind, pb.FAULT_TARGET_VOID, strikes=1)
    assert (await _refusal(bank.void(held.authorization_id, "v1"))).kind is Kind.UNKNOWN
    assert (await bank.look_up("v1")).found is arrived
    await bank.arm(kind, pb.FAULT_TARGET_CANCEL, strikes=1)
    assert (await _refusal(bank.cancel("k9"))).kind is Kind.UNKNOWN
    assert (await bank.look_up("k9")).found is arrived
    await bank.arm(kind, pb.FAULT_TARGET_LOOKUP, strikes=1)
    assert (await _refusal(bank.look_up("k1"))).kind is Kind.UNKNOWN
    assert {
        fault.strikes_left for fault in (await bank.faults.ListFaults(pb.ListFaultsRequest())).faults
    } == {0}


async def test_a_refused_connection_carries_nothing_out(bank: Bank) -> None:
    await bank.arm(pb.FAULT_KIND_REFUSE_CONNECTION, pb.FAULT_TARGET_UNSPECIFIED, strikes=5)
    for call in (
        bank.authorize("k1"),
        bank.batch(("k1", bank.request()), ("k2", bank.request())),
        bank.void("auth_1", "v1"),
        bank.look_up("k1"),
        bank.cancel("k1"),
    ):
        error = await _refusal(call)
        assert error.unreachable, "no details: nobody answered"
        assert error.kind is Kind.UNKNOWN
    assert bank.books() == []
    await bank.authorize("k1")


async def test_an_error_carries_nothing_out(bank: Bank) -> None:
    await bank.arm(pb.FAULT_KIND_ERROR, pb.FAULT_TARGET_UNSPECIFIED, strikes=4)
    for call in (bank.authorize("k1"), bank.void("auth_1", "v1"), bank.look_up("k1"), bank.cancel("k1")):
        failure = await _refusal(call)
        assert (failure.kind, failure.reason) == (Kind.BUG, "INTERNAL")
    assert bank.books() == []


async def test_a_slow_card_does_not_delay_its_neighbours(bank: Bank) -> None:
    items = [(f"k{n}", bank.request()) for n in range(20)]
    items.insert(3, ("slow", bank.request(token="tok_slow_7")))
    started = time.monotonic()
    results = await bank.batch(*items, ("slow", bank.request(token="tok_slow_7")))
    assert time.monotonic() - started < 2.0
    slow = [results[3], results[-1]]
    assert {(r.failure.kind, r.failure.reason) for r in slow} == {
        (failure_pb2.KIND_IN_PROGRESS, "IN_PROGRESS")
    }
    assert all(r.HasField("response") for place, r in enumerate(results[:-1]) if place != 3)
    assert not (await bank.look_up("slow")).found
    again = await _refusal(bank.authorize("slow", token="tok_slow_7"))
    assert again.kind is Kind.IN_PROGRESS
    assert await _arrived(bank, "slow") == pb.AUTHORIZATION_STATE_APPROVED
    assert time.monotonic() - started >= 2.0
    started = time.monotonic()
    approved = await bank.authorize("slow", token="tok_slow_7")
    assert approved.state == pb.AUTHORIZATION_STATE_APPROVED
    assert time.monotonic() - started < 2.0, "a repeat of what was done is answered from the books"
    assert [key for key, _, _ in bank.books()].count("slow") == 1


async def test_a_slow_authorization_can_be_cancelled_before_it_happens(bank: Bank) -> None:
    assert (await _refusal(bank.authorize("k1", token="tok_slow"))).kind is Kind.IN_PROGRESS
    assert (await bank.cancel("k1")).state == pb.AUTHORIZATION_STATE_CANCELLED
    await asyncio.sleep(2.2)
    assert (await bank.look_up("k1")).authorization.state == pb.AUTHORIZATION_STATE_CANCELLED
    assert bank.books() == [("k1", "AUTHORIZE", "CANCELLED")]


async def test_a_short_delay_is_waited_for_and_a_long_one_is_not(bank: Bank) -> None:
    await bank.arm(pb.FAULT_KIND_DELAY, pb.FAULT_TARGET_AUTHORIZE, strikes=1, delay_ms=100)
    started = time.monotonic()
    delayed, prompt = await bank.batch(("k1", bank.request()), ("k2", bank.request()))
    assert time.monotonic() - started >= 0.1
    assert delayed.HasField("response")
    assert prompt.HasField("response")
    held = delayed.response.authorization
    await bank.arm(pb.FAULT_KIND_DELAY, pb.FAULT_TARGET_VOID, strikes=1, delay_ms=500)
    waiting = await _refusal(bank.void(held.authorization_id, "v1"))
    assert waiting.kind is Kind.IN_PROGRESS
    assert waiting.retry_after is not None
    assert waiting.retry_after.total_seconds() == 0.5
    assert await _arrived(bank, "v1") == pb.AUTHORIZATION_STATE_VOIDED
    await bank.arm(pb.FAULT_KIND_DELAY, pb.FAULT_TARGET_LOOKUP, strikes=1, delay_ms=500)
    assert (await _refusal(bank.look_up("k1"))).kind is Kind.RETRYABLE


async def test_a_delayed_cancel_is_carried_out_though_its_caller_gave_up(bank: Bank) -> None:
    await bank.authorize("k1")
    await bank.arm(pb.FAULT_KIND_DELAY, pb.FAULT_TARGET_CANCEL, strikes=1, delay_ms=1_000)
    request = pb.CancelByKeyRequest(merchant_id=bank.merchant, idempotency_key="k1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bank.stub.CancelByKey(request, timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await bank.look_up("k1")).authorization.state == pb.AUTHORIZATION_STATE_APPROVED
    until = time.monotonic() + WAIT_SECONDS_MAX
    while (await bank.look_up("k1")).authorization.state != pb.AUTHORIZATION_STATE_VOIDED:
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


_GBP = money_pb2.Money(amount_minor=1, currency="GBP")


def _wrong(**changes: object) -> pb.AuthorizeRequest:
    fields: dict[str, object] = {"amount": _GBP, "card_token": "tok_visa", "merchant_id": "wrong input"}
    return pb.AuthorizeRequest(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_wrong(merchant_id=""), "merchant_id"),
        (_wrong(merchant_id="m" * 65), "merchant_id"),
        (_wrong(merchant_id="m\x00"), "merchant_id"),
        (_wrong(amount=None), "amount.amount_minor"),
        (_wrong(amount=money_pb2.Money(amount_minor=0, currency="GBP")), "amount.amount_minor"),
        (_wrong(amount=money_pb2.Money(amount_minor=-1, currency="GBP")), "amount.amount_minor"),
        (_wrong(amount=money_pb2.Money(amount_minor=10**12 + 1, currency="GBP")), "amount.amount_minor"),
        (_wrong(amount=money_pb2.Money(amount_minor=2**63 - 1, currency="GBP")), "amount.amount_minor"),
        (_wrong(amount=money_pb2.Money(amount_minor=1, currency="gbp")), "amount.currency"),
        (_wrong(amount=money_pb2.Money(amount_minor=1, currency="XAU")), "amount.currency"),
        (_wrong(amount=money_pb2.Money(amount_minor=1)), "amount.currency"),
        (_wrong(card_token=""), "card_token"),
        (_wrong(card_token="t" * 129), "card_token"),
        (_wrong(reference="r" * 65), "reference"),
        (_wrong(reference="\x00"), "reference"),
    ],
)
async def test_a_wrong_field_is_named_and_changes_nothing(
    bank: Bank, request_: pb.AuthorizeRequest, field: str
) -> None:
    with pytest.raises(PaymeshCallError) as caught, typed_errors():
        await bank.stub.Authorize(request_, metadata=with_key("k1"))
    assert caught.value.kind is Kind.INVALID
    assert field in [violation.field for violation in caught.value.violations]
    (result,) = await bank.batch(("k1", request_))
    assert result.failure.kind == failure_pb2.KIND_INVALID
    assert field in [violation.field for violation in result.failure.violations]
    with psycopg.connect(bank.dsn) as connection:
        rows = connection.execute("SELECT count(*) FROM books WHERE merchant_id LIKE 'wrong%'").fetchone()
    assert rows == (0,)


async def test_wrong_calls_are_refused_and_change_nothing(bank: Bank) -> None:
    void = pb.VoidRequest(merchant_id=bank.merchant, authorization_id="auth_1")
    look_up = pb.LookupByKeyRequest(merchant_id=bank.merchant, idempotency_key="k1")
    too_many = [pb.AuthorizeItem(idempotency_key=f"k{n}", request=bank.request()) for n in range(1_001)]
    key = with_key("k1")
    calls: list[Awaitable[object]] = [
        bank.stub.Authorize(bank.request()),
        bank.stub.Authorize(bank.request(), metadata=(("idempotency-key", "k" * 256),)),
        bank.stub.Void(void),
        bank.stub.Void(pb.VoidRequest(merchant_id=bank.merchant), metadata=key),
        bank.stub.Void(pb.VoidRequest(authorization_id="auth_1"), metadata=key),
        bank.stub.BatchAuthorize(pb.BatchAuthorizeRequest()),
        bank.stub.BatchAuthorize(pb.BatchAuthorizeRequest(items=too_many)),
        bank.stub.BatchVoid(pb.BatchVoidRequest()),
        bank.stub.BatchLookupByKey(pb.BatchLookupByKeyRequest()),
        bank.stub.BatchLookupByKey(pb.BatchLookupByKeyRequest(items=[look_up] * 1_001)),
        bank.stub.LookupByKey(pb.LookupByKeyRequest(idempotency_key="k1")),
        bank.stub.LookupByKey(pb.LookupByKeyRequest(merchant_id=bank.merchant)),
        bank.stub.CancelByKey(pb.CancelByKeyRequest(idempotency_key="k1")),
        bank.stub.CancelByKey(pb.CancelByKeyRequest(merchant_id=bank.merchant)),
    ]
    for place, call in enumerate(calls):
        with pytest.raises(PaymeshCallError) as caught, typed_errors():
            await call
        assert (place, caught.value.kind) == (place, Kind.INVALID)
    assert bank.books() == []


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (pb.Fault(probability_ppm=1), "fault.kind"),
        (pb.Fault(kind=77, probability_ppm=1), "fault.kind"),  # type: ignore[arg-type]
        (pb.Fault(kind=pb.FAULT_KIND_ERROR, target=99, probability_ppm=1), "fault.target"),  # type: ignore[arg-type]
        (pb.Fault(kind=pb.FAULT_KIND_REFUSE, probability_ppm=1), "fault.target"),
        (pb.Fault(kind=pb.FAULT_KIND_ERROR), "fault.probability_ppm"),
        (pb.Fault(kind=pb.FAULT_KIND_ERROR, probability_ppm=CERTAIN + 1), "fault.probability_ppm"),
        (pb.Fault(kind=pb.FAULT_KIND_ERROR, probability_ppm=1, strikes_left=-1), "fault.strikes_left"),
        (pb.Fault(kind=pb.FAULT_KIND_ERROR, probability_ppm=1, delay_ms=1), "fault.delay_ms"),
        (pb.Fault(kind=pb.FAULT_KIND_DELAY, probability_ppm=1), "fault.delay_ms"),
        (pb.Fault(kind=pb.FAULT_KIND_DELAY, probability_ppm=1, delay_ms=600_001), "fault.delay_ms"),
        (pb.Fault(kind=pb.FAULT_KIND_ERROR, probability_ppm=1, merchant_id="m" * 65), "fault.merchant_id"),
    ],
)
async def test_a_wrong_fault_is_not_armed(bank: Bank, fault: pb.Fault, field: str) -> None:
    with pytest.raises(PaymeshCallError) as caught, typed_errors():
        await bank.faults.InjectFault(pb.InjectFaultRequest(fault=fault))
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not (await bank.faults.ListFaults(pb.ListFaultsRequest())).faults


async def test_the_database_itself_refuses_books_that_cannot_be(bank: Bank) -> None:
    held = await bank.authorize("k1")
    await bank.void(held.authorization_id, "v1")
    row = (
        "INSERT INTO operations (merchant_id, operation_id, kind, key, fingerprint, undoes, amount_minor,"
        " currency, result, auth_code, created_at) VALUES (%s, 'x', %s, %s, '', %s, %s, %s, %s, %s, now())"
    )
    held_id = held.authorization_id
    rows = [
        ("a second effective void", ("VOID", "v2", held_id, 1_000, "GBP", "VOIDED", "")),
        ("a second operation under a key", ("VOID", "v1", held_id, 1_000, "GBP", "ALREADY_VOIDED", "")),
        ("a void of nothing", ("VOID", "v2", "auth_x", 1_000, "GBP", "VOIDED", "")),
        ("a void that undoes nothing", ("VOID", "v2", None, 1_000, "GBP", "VOIDED", "")),
        ("no amount", ("AUTHORIZE", "k2", None, None, None, "APPROVED", "ABC123")),
        ("an amount of nothing", ("AUTHORIZE", "k2", None, 1_000, None, "APPROVED", "ABC123")),
        ("a negative amount", ("AUTHORIZE", "k2", None, -1, "GBP", "APPROVED", "ABC123")),
        ("approved without a code", ("AUTHORIZE", "k2", None, 1_000, "GBP", "APPROVED", "")),
        ("declined without a reason", ("AUTHORIZE", "k2", None, 1_000, "GBP", "DECLINED", "")),
        ("an authorization without a key", ("AUTHORIZE", None, None, 1_000, "GBP", "APPROVED", "ABC123")),
        ("a result of the other kind", ("AUTHORIZE", "k2", None, 1_000, "GBP", "VOIDED", "")),
    ]
    with psycopg.connect(bank.dsn, autocommit=True) as connection:
        for why, values in rows:
            try:
                connection.execute(row, (bank.merchant, *values))
            except psycopg.IntegrityError:
                continue
            pytest.fail(f"written: {why}")


async def test_after_a_kill_every_key_is_either_in_the_books_or_free(services: Services) -> None:
    process = services.start("bank", "sandbox.bank", latency_ms="0")
    dsn = services.dsn("bank")
    told: dict[str, pb.Authorization] = {}

    async def work(bank: Bank, caller: int) -> None:
        for n in range(100_000):
            keys = [f"{caller}/{n}/{i}" for i in range(25)]
            try:
                results = await bank.batch(*((key, bank.request()) for key in keys))
            except PaymeshCallError:
                return
            told.update((key, r.response.authorization) for key, r in zip(keys, results, strict=True))

    async with open_channel(process.target, caller="test", attempts_max=1) as channel:
        bank = Bank(BankServiceStub(channel), FaultServiceStub(channel), dsn, "m")
        slow = await _refusal(bank.authorize("slow", token="tok_slow"))
        assert slow.kind is Kind.IN_PROGRESS
        workers = [asyncio.create_task(work(bank, caller)) for caller in range(4)]
        await asyncio.sleep(0.7)
        process.kill(signal.SIGKILL)
        await asyncio.gather(*workers)
    process.start()
    async with open_channel(process.target, caller="test") as channel:
        bank = Bank(BankServiceStub(channel), FaultServiceStub(channel), dsn, "m")
        assert len(told) > 100
        for key in list(told)[-200:]:
            assert (await bank.look_up(key)).authorization == told[key], "what was answered is in the books"
            assert await bank.authorize(key) == told[key]
        assert not (await bank.look_up("slow")).found, "killed before its time: it never happened"
        assert (await bank.cancel("slow")).state == pb.AUTHORIZATION_STATE_CANCELLED


async def test_a_stopped_bank_ends_cleanly_and_drops_what_has_not_begun(services: Services) -> None:
    process = services.start("bank", "sandbox.bank", latency_ms="0")
    async with open_channel(process.target, caller="test", attempts_max=1) as channel:
        bank = Bank(BankServiceStub(channel), FaultServiceStub(channel), services.dsn("bank"), "m")
        await bank.authorize("k1")
        await _refusal(bank.authorize("slow", token="tok_slow"))
    process.kill(signal.SIGTERM)
    assert "Traceback" not in process.log(), process.log()
    assert bank.books() == [("k1", "AUTHORIZE", "APPROVED")]
