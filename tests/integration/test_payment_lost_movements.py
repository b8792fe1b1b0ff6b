"""Increments, captures and refunds when the way to the bank fails: answers that are lost or late, and processes that
are killed or stopped between intent and outcome. Whatever happens, money moves once, payment finds out by itself, and
its books end as the bank's.

One set of processes serves all tests; each test is a merchant of its own, and after each one the books are compared.
The bank keeps callers waiting, so that a delay is a call under way. The numbered bugs are ones that other systems had.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.bank.v1 import bank_pb2
from paymesh.channel import open_channel, with_key
from paymesh.errors import Kind, PaymeshCallError
from paymesh.payment.v1 import payment_pb2 as pb
from tests.conftest import Services
from tests.payment_mesh import (
    CAPTURING,
    INCREMENTING,
    MOVES,
    REFUNDING,
    PaymentMesh,
    Shop,
    failure_of,
    until,
)
from tests.processes import ServiceProcess

LOST_AFTER = bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER
LOST_BEFORE = bank_pb2.FAULT_KIND_ANSWER_LOST_BEFORE
DELAY = bank_pb2.FAULT_KIND_DELAY
ERROR = bank_pb2.FAULT_KIND_ERROR
REFUSE = bank_pb2.FAULT_KIND_REFUSE_CONNECTION
LOOKUP = bank_pb2.FAULT_TARGET_LOOKUP
VOID = bank_pb2.FAULT_TARGET_VOID
TARGETS = {
    "capture": bank_pb2.FAULT_TARGET_CAPTURE,
    "refund": bank_pb2.FAULT_TARGET_REFUND,
    "increment": bank_pb2.FAULT_TARGET_INCREMENT,
}
WAITING = {"capture": CAPTURING, "refund": REFUNDING, "increment": INCREMENTING}
UNKNOWN = {
    "capture": pb.UNKNOWN_OUTCOME_CAPTURE,
    "refund": pb.UNKNOWN_OUTCOME_REFUND,
    "increment": pb.UNKNOWN_OUTCOME_INCREMENT,
}

STEADY = {
    "bank_seconds": "0.5",
    "fraud_seconds": "1",
    "resolve_first_ms": "20",
    "resolve_max_ms": "100",
    "resolve_poll_ms": "20",
    "intent_seconds": "1.5",
}
STALLED = {"bank_seconds": "20", "resolve_poll_ms": "600000", "intent_seconds": "600"}
"""For a process that is stopped while it waits for the bank."""


@pytest.fixture(scope="module")
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path_factory.mktemp("payment"))
    mesh = PaymentMesh.start(services, valkey.url, {"soft_deadline_ms": "60000"}, **STEADY)
    yield mesh
    mesh.close()
    services.stop()


@pytest_asyncio.fixture
async def shop(mesh: PaymentMesh, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with Shop(mesh, request.node.name) as shop:
        try:
            yield shop
        finally:
            await shop.calm()
        await mesh.assert_books_agree(shop.merchant)


async def _ready(shop: Shop, what: str, order: str = "o1", token: str = "") -> pb.Payment:
    """A payment of 1,000 that can be captured, incremented, or refunded."""
    payment = await shop.authorize(f"k-{order}", shop.wish(order, token=token))
    return await shop.move("capture", f"c-{order}", payment.payment_id) if what == "refund" else payment


def _moved(shop: Shop, what: str) -> list[tuple[str, str]]:
    """(key, result) of the operations of a kind at the bank."""
    return [(key or "", result) for key, kind, result in shop.books() if kind == what.upper()]


@contextmanager
def _stopped(process: ServiceProcess) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize("what", MOVES)
async def test_bug_8_while_the_outcome_is_unknown_nothing_else_is_sent(shop: Shop, what: str) -> None:
    payment = await _ready(shop, what)
    await shop.arm(LOST_AFTER, TARGETS[what], strikes=1)
    await shop.arm(LOST_BEFORE, LOOKUP)
    error = await failure_of(shop.move(what, "m1", payment.payment_id, 400))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    now = (await shop.get(payment.payment_id)).payment
    assert (now.state, now.unknown_outcome, now.pending.amount_minor) == (WAITING[what], UNKNOWN[what], 400)
    repeats = await asyncio.gather(
        *(shop.move(what, "m1", payment.payment_id, 400) for _ in range(20)), return_exceptions=True
    )
    assert {e.kind for e in repeats if isinstance(e, PaymeshCallError)} == {Kind.IN_PROGRESS}
    assert not [answer for answer in repeats if isinstance(answer, pb.Payment)]
    for other in MOVES:
        error = await failure_of(shop.move(other, f"x-{other}", payment.payment_id, 100))
        assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    assert (await failure_of(shop.void("v1", payment.payment_id))).reason == "OUTCOME_UNKNOWN"
    assert len(_moved(shop, what)) == 1
    await shop.calm()
    done = await shop.insist(lambda: shop.move(what, "m1", payment.payment_id, 400))
    assert len(_moved(shop, what)) == 1
    assert await shop.move(what, "m1", payment.payment_id, 400) == done, "the answer that stands"
    again = await shop.insist(lambda: shop.move(what, "m2", payment.payment_id, 100))
    assert again.version == done.version + 2


@pytest.mark.parametrize(
    "kind", [LOST_BEFORE, LOST_AFTER, ERROR, REFUSE], ids=["before", "after", "error", "refused"]
)
@pytest.mark.parametrize("what", MOVES)
async def test_a_lost_answer_is_found_out_without_help_and_money_moves_once(
    shop: Shop, what: str, kind: bank_pb2.FaultKind.ValueType
) -> None:
    payment = await _ready(shop, what)
    await shop.arm(kind, TARGETS[what], strikes=2)
    error = await failure_of(shop.move(what, "m1", payment.payment_id, 400))
    assert error.kind is Kind.IN_PROGRESS
    done = await shop.insist(lambda: shop.move(what, "m1", payment.payment_id, 400))
    assert done.unknown_outcome == pb.UNKNOWN_OUTCOME_UNSPECIFIED
    key = f"{payment.payment_id}/{what}/{payment.version + 1}"
    assert [k for k, _ in _moved(shop, what)].count(key) == 1
    told = (await shop.story(payment.payment_id))[payment.version :]
    assert told.count("OutcomeUnknown") == 1, "told once"


@pytest.mark.parametrize(
    ("what", "token", "reason"),
    [
        ("increment", "tok_no_increment", "INCREMENT_DECLINED"),
        ("capture", "tok_no_capture", "CAPTURE_REFUSED"),
        ("refund", "tok_no_refund", "REFUND_REFUSED"),
    ],
)
async def test_a_lost_refusal_is_found_out_and_the_payment_is_as_before(
    shop: Shop, what: str, token: str, reason: str
) -> None:
    payment = await _ready(shop, what, token=token)
    await shop.arm(LOST_AFTER, TARGETS[what], strikes=1)
    assert (await failure_of(shop.move(what, "m1", payment.payment_id, 400))).kind is Kind.IN_PROGRESS

    async def ask() -> pb.Payment:
        return await shop.move(what, "m1", payment.payment_id, 400)

    error = await failure_of(shop.insist(ask))
    assert (error.kind, error.reason) == (Kind.REFUSED, reason)
    assert (await shop.get(payment.payment_id)).payment.state == payment.state


@pytest.mark.parametrize("what", MOVES)
async def test_bug_9_a_call_that_arrives_after_it_was_sent_again_moves_nothing_more(
    shop: Shop, what: str
) -> None:
    payment = await _ready(shop, what)
    await shop.arm(DELAY, TARGETS[what], strikes=1, delay_ms=1_200)
    error = await failure_of(shop.move(what, "m1", payment.payment_id, 400))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN"), (
        "timed out, and not to be found"
    )
    done = await shop.insist(lambda: shop.move(what, "m1", payment.payment_id, 400))
    await asyncio.sleep(1.5)  # by now the first call has arrived as well
    assert len(_moved(shop, what)) == 1
    assert (await shop.get(payment.payment_id)).payment == done


@pytest.mark.parametrize("what", MOVES)
async def test_payment_killed_between_intent_and_outcome_finishes_after_its_restart(
    shop: Shop, what: str
) -> None:
    payment = await _ready(shop, what)
    await shop.arm(DELAY, TARGETS[what], strikes=1, delay_ms=200)
    call = asyncio.create_task(failure_of(shop.move(what, "m1", payment.payment_id, 400)))
    await shop.struck()
    shop.mesh.payment.kill()
    assert (await call).kind is Kind.UNKNOWN
    (state,) = {state for _, state in shop.rows()}
    assert state == pb.PaymentState.Name(WAITING[what]).removeprefix("PAYMENT_STATE_")
    await asyncio.to_thread(shop.mesh.payment.start)
    done = await shop.insist(lambda: shop.move(what, "m1", payment.payment_id, 400))
    assert len(_moved(shop, what)) == 1
    assert (await shop.get(payment.payment_id)).payment == done
    assert await shop.move(what, "m1", payment.payment_id, 400) == done, (
        "the claim of the dead process replays"
    )


@pytest.mark.parametrize("what", MOVES)
async def test_a_process_that_comes_back_with_an_old_answer_changes_nothing(shop: Shop, what: str) -> None:
    payment = await _ready(shop, what)
    stalled = shop.mesh.another_payment(**STALLED)
    async with open_channel(stalled.target, caller="shop", attempts_max=1) as channel:
        await shop.arm(DELAY, TARGETS[what], strikes=1, delay_ms=300)
        rpc = getattr(type(shop.stub)(channel), MOVES[what][0])
        wish = shop.move_wish(what, payment.payment_id, 400)
        first = asyncio.create_task(failure_of(rpc(wish, metadata=with_key("m1"))))
        await shop.struck()
        with _stopped(stalled):
            await until(lambda: _is_booked(shop, what))
            shop.mesh.on_payment(
                "UPDATE payments SET resolve_at = now() WHERE merchant_id = %s", shop.merchant
            )
            done = await shop.insist(lambda: shop.move(what, "m1", payment.payment_id, 400))
            later = await shop.move(what, "m2", payment.payment_id, 100)
        error = await first
    stalled.kill()
    assert error.kind is Kind.IN_PROGRESS
    assert await shop.move(what, "m1", payment.payment_id, 400) == done
    assert (await shop.get(payment.payment_id)).payment == later


async def _is_booked(shop: Shop, what: str) -> bool:
    return bool(_moved(shop, what))


async def test_in_a_storm_of_lost_answers_with_two_processes_every_sum_is_right(shop: Shop) -> None:
    second = shop.mesh.another_payment(**STEADY)
    async with open_channel(second.target, caller="shop", attempts_max=1) as channel:
        stubs = [shop.stub, type(shop.stub)(channel)]
        for kind in (LOST_AFTER, LOST_BEFORE):
            await shop.arm(kind, probability_ppm=150_000)

        async def live(n: int) -> pb.Payment:
            """The life of one order: each call made twice, by both processes, under one key."""
            held = await shop.insist(lambda: shop.authorize(f"k{n}", shop.wish(f"o{n}")))
            for what, key, amount in (
                ("increment", "i", 100),
                ("capture", "c1", 400),
                ("refund", "r1", 300),
                ("capture", "c2", 500),
                ("refund", "r2", 600),
            ):
                await asyncio.gather(*(twice(what, f"{key}-{n}", held.payment_id, amount, s) for s in (0, 1)))
            return await shop.insist(lambda: shop.void(f"v{n}", held.payment_id))

        async def twice(what: str, key: str, payment_id: str, amount: int, stub: int) -> pb.Payment:
            rpc = getattr(stubs[stub], MOVES[what][0])

            async def ask() -> pb.Payment:
                answer = await rpc(shop.move_wish(what, payment_id, amount), metadata=with_key(key))
                payment: pb.Payment = answer.payment
                return payment

            return await shop.insist(ask)

        ended = await asyncio.gather(*(live(n) for n in range(20)))
    second.kill()
    for payment in ended:
        assert (payment.authorized.amount_minor, payment.held.amount_minor) == (1_100, 0)
        assert (payment.captured.amount_minor, payment.refunded.amount_minor) == (900, 900)
        assert payment.state == pb.PAYMENT_STATE_REFUNDED
    assert len(_moved(shop, "capture")) == len(_moved(shop, "refund")) == 40


async def test_an_expiry_whose_answer_is_lost_is_found_out(shop: Shop) -> None:
    brief = shop.mesh.another_payment(**STEADY, authorization_seconds="0.6", expire_poll_ms="50")
    async with Shop(shop.mesh, "brief", brief.target) as hurried:
        await hurried.arm(LOST_AFTER, VOID, strikes=2)
        held = await hurried.authorize("k1")
        await hurried.becomes(held.payment_id, pb.PAYMENT_STATE_EXPIRED)
        assert [result for _, _, result in hurried.books()] == ["APPROVED", "VOIDED"]
        await hurried.mesh.assert_books_agree(hurried.merchant)
    brief.kill()
