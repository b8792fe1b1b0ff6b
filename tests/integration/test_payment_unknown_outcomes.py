"""Payment when the way to the bank fails: answers that are lost or late, refused connections, errors, and processes
that are killed or stopped in the middle. Whatever happens, payment finds out by itself; its books end as the bank's.

One set of processes serves all tests; each test is a merchant of its own, and after each one the books are compared.
The bank is told to keep callers waiting, so that a delay is a call under way. There are two kinds of payment process: a
steady one that asks for ever, and a hasty one, on a database of its own, that cancels after one attempt. The numbered
bugs are ones that other systems had.
"""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.bank.v1 import bank_pb2
from paymesh.channel import open_channel, with_key
from paymesh.errors import Kind, PaymeshCallError, failure_error
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import payment_pb2 as pb
from tests.conftest import Services
from tests.payment_mesh import (
    AUTHORIZED,
    AUTHORIZING,
    FAILED,
    VOIDED,
    VOIDING,
    PaymentMesh,
    Shop,
    failure_of,
    until,
)
from tests.processes import ServiceProcess, free_port

LOST_AFTER = bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER
LOST_BEFORE = bank_pb2.FAULT_KIND_ANSWER_LOST_BEFORE
DELAY = bank_pb2.FAULT_KIND_DELAY
REFUSE = bank_pb2.FAULT_KIND_REFUSE_CONNECTION
ERROR = bank_pb2.FAULT_KIND_ERROR
AUTHORIZE = bank_pb2.FAULT_TARGET_AUTHORIZE
VOID = bank_pb2.FAULT_TARGET_VOID
LOOKUP = bank_pb2.FAULT_TARGET_LOOKUP
CANCEL = bank_pb2.FAULT_TARGET_CANCEL

BANK = {"soft_deadline_ms": "60000"}
QUICK = {"bank_seconds": "0.5", "fraud_seconds": "1", "resolve_first_ms": "20", "resolve_max_ms": "100"}
STEADY = {**QUICK, "resolve_poll_ms": "20", "intent_seconds": "1.5", "resolve_attempts_max": "100000"}
HASTY = {**QUICK, "resolve_poll_ms": "20", "intent_seconds": "1.5", "resolve_attempts_max": "1"}
STALLED = {"bank_seconds": "20", "resolve_poll_ms": "600000", "intent_seconds": "600"}
"""For a process that is stopped while it waits for the bank: its resolver never acts, its calls last, and others leave
its payments alone until the test says so."""


@pytest.fixture(scope="module")
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path_factory.mktemp("payment"))
    metrics = {"metrics_listen": f"127.0.0.1:{free_port()}"}
    mesh = PaymentMesh.start(services, valkey.url, BANK, **STEADY, **metrics)
    mesh.metrics_url = f"http://{metrics['metrics_listen']}/metrics"
    yield mesh
    mesh.close()
    services.stop()


@pytest.fixture(scope="module")
def hasty_mesh(mesh: PaymentMesh, postgres: EmbeddedPostgres) -> Iterator[PaymentMesh]:
    name = f"payment_{os.urandom(4).hex()}"
    hasty = mesh.apart(postgres.create_database(name), **HASTY)
    yield hasty
    hasty.close()
    hasty.payment.kill()
    postgres.drop_database(name)


@asynccontextmanager
async def _open(mesh: PaymentMesh, name: str) -> AsyncIterator[Shop]:
    async with Shop(mesh, name) as shop:
        try:
            yield shop
        finally:
            await shop.calm()
        await mesh.assert_books_agree(shop.merchant)


@pytest_asyncio.fixture
async def shop(mesh: PaymentMesh, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with _open(mesh, request.node.name) as shop:
        yield shop


@pytest_asyncio.fixture
async def hasty(hasty_mesh: PaymentMesh, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with _open(hasty_mesh, request.node.name) as shop:
        yield shop


@contextmanager
def _stopped(process: ServiceProcess) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def _give_up(shop: Shop) -> None:
    """Let the resolvers believe that whoever recorded the shop's intents has died."""
    shop.mesh.on_payment("UPDATE payments SET resolve_at = now() WHERE merchant_id = %s", shop.merchant)


async def _unknown(shop: Shop, key: str = "k1") -> str:
    """Authorize with an answer that is lost and cannot be asked for; returns the payment's id."""
    await shop.arm(LOST_AFTER, AUTHORIZE, strikes=1)
    await shop.arm(LOST_BEFORE, LOOKUP)
    error = await failure_of(shop.authorize(key))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    return error.facts["payment_id"]


async def _intended(shop: Shop, order: str) -> bool:
    """Whether an intent to pay an order is recorded."""
    query = "SELECT 1 FROM payments WHERE merchant_id = %s AND order_id = %s"
    return bool(shop.mesh.on_payment(query, shop.merchant, order))


# Bug 6: what kind of failure it was is lost on the way to the caller.


async def test_bug_6_refused_unknown_and_in_flight_arrive_as_what_they_are(shop: Shop) -> None:
    payment_id = await _unknown(shop)
    payment = (await shop.get(payment_id)).payment
    assert (payment.state, payment.unknown_outcome) == (AUTHORIZING, pb.UNKNOWN_OUTCOME_AUTHORIZATION)
    assert payment.held.amount_minor == 0, "nothing is held as far as is known"

    refused = await failure_of(shop.authorize("k2"))
    assert (refused.kind, refused.reason) == (Kind.REFUSED, "ORDER_ALREADY_PAID")

    await shop.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=400)
    first = asyncio.create_task(shop.authorize("k3", shop.wish("o3")))
    await until(lambda: _intended(shop, "o3"))
    in_flight = await failure_of(shop.authorize("k3", shop.wish("o3")))
    assert (in_flight.kind, in_flight.reason) == (Kind.IN_PROGRESS, "IN_PROGRESS")
    assert in_flight.retry_after is not None
    assert (await first).state == AUTHORIZED

    results = await shop.authorize_all(("k1", shop.wish()), ("k2", shop.wish()), ("k3", shop.wish("o3")))
    assert [r.WhichOneof("outcome") for r in results] == ["failure", "failure", "response"]
    unknown, again = (failure_error(r.failure) for r in results[:2])
    assert (unknown.kind, unknown.reason) == (Kind.IN_PROGRESS, "IN_PROGRESS")
    assert unknown.retry_after is not None
    assert (again.kind, again.reason, again.facts) == (refused.kind, refused.reason, refused.facts)


async def test_bug_6_a_void_with_an_unknown_outcome_says_so_until_it_is_known(shop: Shop) -> None:
    held = await shop.authorize("k1")
    await shop.arm(LOST_AFTER, VOID)
    error = await failure_of(shop.void("v1", held.payment_id))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    payment = (await shop.get(held.payment_id)).payment
    assert (payment.state, payment.unknown_outcome) == (VOIDING, pb.UNKNOWN_OUTCOME_VOID)
    assert payment.held == payment.amount, "held as far as is known"
    other = await failure_of(shop.void("v2", held.payment_id))
    assert (other.kind, other.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    await shop.calm()
    voided = await shop.insist(lambda: shop.void("v1", held.payment_id))
    assert voided.state == VOIDED
    assert await shop.void("v2", held.payment_id) == voided
    assert [kind for _, kind, _ in shop.books()] == ["AUTHORIZE", "VOID"]


# Bug 8: a second attempt is sent while the first one's outcome is unknown.


async def test_bug_8_while_the_outcome_is_unknown_no_second_authorization_is_sent(shop: Shop) -> None:
    payment_id = await _unknown(shop)
    repeats = await asyncio.gather(*(shop.authorize("k1") for _ in range(20)), return_exceptions=True)
    assert {e.kind for e in repeats if isinstance(e, PaymeshCallError)} == {Kind.IN_PROGRESS}
    (result,) = await shop.authorize_all(("k1", shop.wish()))
    assert failure_error(result.failure).kind is Kind.IN_PROGRESS
    assert (await failure_of(shop.authorize("k2"))).reason == "ORDER_ALREADY_PAID"
    undo = await failure_of(shop.void("v1", authorize_key="k1"))
    assert (undo.kind, undo.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN"), (
        "an undo waits for the outcome, too"
    )
    assert shop.books() == [(f"{payment_id}/authorize", "AUTHORIZE", "APPROVED")]
    await shop.calm()
    answer = await shop.insist(lambda: shop.authorize("k1"))
    assert (answer.payment_id, answer.state) == (payment_id, AUTHORIZED)
    assert shop.books() == [(f"{payment_id}/authorize", "AUTHORIZE", "APPROVED")]
    assert (await shop.insist(lambda: shop.void("v1", authorize_key="k1"))).state == VOIDED


# Bug 9: timeout, query, cancel by key, and then the success arrives after all.


async def test_bug_9_a_success_that_arrives_at_the_bank_after_the_cancellation_holds_nothing(
    hasty: Shop,
) -> None:
    await hasty.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=1_000)
    error = await failure_of(hasty.authorize("k1"))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    async with Shop(hasty.mesh, "marker") as marker:
        # Sent after the late one and delayed as long: when it has arrived, so has the late one.
        arrival = asyncio.create_task(_arrive(marker, delay_ms=1_000))
        failed = await hasty.becomes(error.facts["payment_id"], FAILED)
        assert not arrival.done(), "it was cancelled before it arrived"
        await arrival
    assert failed.decline_reason == "CANCELLED_AT_PROCESSOR"
    assert hasty.books() == [(f"{failed.payment_id}/authorize", "AUTHORIZE", "CANCELLED")]
    assert await hasty.authorize("k1") == failed, "the answer that stands"
    assert await hasty.void("v1", authorize_key="k1") == failed, "holds nothing"
    assert (await hasty.authorize("k2")).state == AUTHORIZED, "the order may be paid again"


async def _arrive(shop: Shop, delay_ms: int) -> None:
    """Send the bank something that arrives after a delay, and wait until it has."""
    await shop.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=delay_ms)
    amount = money_pb2.Money(amount_minor=1, currency="GBP")
    request = bank_pb2.AuthorizeRequest(merchant_id=shop.merchant, amount=amount, card_token="tok_declined")
    await shop.bank.Authorize(request, metadata=with_key("arrive"))


async def test_bug_9_a_success_that_cannot_be_queried_is_cancelled_and_holds_nothing(hasty: Shop) -> None:
    await hasty.arm(LOST_BEFORE, LOOKUP)
    await hasty.arm(LOST_AFTER, AUTHORIZE, strikes=1)
    await hasty.arm(LOST_AFTER, CANCEL, strikes=2)
    error = await failure_of(hasty.authorize("k1"))
    failed = await hasty.becomes(error.facts["payment_id"], FAILED)
    assert (failed.decline_reason, failed.held.amount_minor) == ("CANCELLED_AT_PROCESSOR", 0)
    assert [result for _, _, result in hasty.books()] == ["APPROVED", "VOIDED"]
    assert await hasty.story(failed.payment_id) == ["Initiated", "OutcomeUnknown", "Failed"]


async def test_bug_9_an_approval_that_is_told_after_the_cancellation_is_let_go(hasty: Shop) -> None:
    stalled = hasty.mesh.another_payment(database_dsn=hasty.mesh.payment_dsn, **STALLED)
    async with open_channel(stalled.target, caller="shop", attempts_max=1) as channel:
        await hasty.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=300)
        await hasty.arm(LOST_BEFORE, LOOKUP)
        stub = type(hasty.stub)(channel)
        first = asyncio.create_task(failure_of(stub.AuthorizePayment(hasty.wish(), metadata=with_key("k1"))))
        await hasty.struck()
        with _stopped(stalled):
            await hasty.booked("APPROVED")
            _give_up(hasty)
            await hasty.booked("APPROVED", "VOIDED")
            ((payment_id, _),) = hasty.rows()
            failed = await hasty.becomes(payment_id, FAILED)
            assert await hasty.authorize("k1") == failed
            await hasty.calm()
            other = await hasty.authorize("k2")
            assert other.state == AUTHORIZED, "the order was paid otherwise meanwhile"
        assert (await first).kind is Kind.IN_PROGRESS
        voided = await hasty.becomes(payment_id, VOIDED)
    stalled.kill()
    assert voided.decline_reason == "CANCELLED_AT_PROCESSOR"
    assert await hasty.story(payment_id) == ["Initiated", "Failed", "LateApprovalFound", "Voided"]
    assert await hasty.authorize("k1") == failed, "the first answer stands"
    assert [state for _, state in hasty.rows()] == ["VOIDED", "AUTHORIZED"]


# Answers that are lost.


async def test_an_answer_lost_after_the_money_moved_is_found_out_without_help(shop: Shop) -> None:
    await shop.arm(LOST_AFTER, AUTHORIZE, strikes=1)
    wish = shop.wish(billing_country="GB")
    wish.card.bin = "40000025"
    error = await failure_of(shop.authorize("k1", wish))
    held = await shop.becomes(error.facts["payment_id"], AUTHORIZED)
    assert await shop.story(held.payment_id) == ["Initiated", "OutcomeUnknown", "Authorized"]
    assert held.fraud_score_milli == 250, "the score is not lost with the answer"
    assert shop.books() == [(f"{held.payment_id}/authorize", "AUTHORIZE", "APPROVED")]
    assert await shop.authorize("k1", wish) == held


async def test_an_answer_lost_about_a_declined_card_is_found_out_without_help(shop: Shop) -> None:
    await shop.arm(LOST_AFTER, AUTHORIZE, strikes=1)
    error = await failure_of(shop.authorize("k1", shop.wish(token="tok_lost_card")))
    declined = await shop.becomes(error.facts["payment_id"], pb.PAYMENT_STATE_DECLINED)
    assert declined.decline_reason == "LOST_CARD"


async def test_a_call_lost_before_it_arrived_is_sent_again_under_the_same_key(shop: Shop) -> None:
    await shop.arm(LOST_BEFORE, AUTHORIZE, strikes=3)
    error = await failure_of(shop.authorize("k1"))
    held = await shop.becomes(error.facts["payment_id"], AUTHORIZED)
    assert await shop.story(held.payment_id) == ["Initiated", "OutcomeUnknown", "Authorized"], "told once"
    assert shop.books() == [(f"{held.payment_id}/authorize", "AUTHORIZE", "APPROVED")]
    assert await shop.authorize("k1") == held


@pytest.mark.parametrize("kind", [LOST_AFTER, LOST_BEFORE], ids=["after", "before"])
async def test_a_lost_answer_to_a_void_is_found_out_without_help(
    shop: Shop, kind: bank_pb2.FaultKind.ValueType
) -> None:
    held = await shop.authorize("k1")
    await shop.arm(kind, VOID, strikes=2)
    error = await failure_of(shop.void("v1", held.payment_id))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    voided = await shop.becomes(held.payment_id, VOIDED)
    assert await shop.void("v1", held.payment_id) == voided
    assert [result for _, _, result in shop.books()] == ["APPROVED", "VOIDED"]


async def test_a_bank_that_is_slow_for_one_card_does_not_cost_its_neighbours_their_payment(
    shop: Shop,
) -> None:
    await shop.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=700)
    items = [(f"k{n}", shop.wish(f"o{n}")) for n in range(5)]
    for result in await shop.authorize_all(*items):
        assert result.HasField("response") or failure_error(result.failure).kind is Kind.IN_PROGRESS
    assert {payment.state for payment in await _pay_all(shop, 5)} == {AUTHORIZED}
    assert len(shop.books()) == 5


async def test_a_caller_in_a_hurry_is_told_to_ask_again_and_the_payment_is_finished(shop: Shop) -> None:
    await shop.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=300)
    call = shop.stub.AuthorizePayment(shop.wish(), metadata=with_key("k1"), timeout=0.2)
    assert (await failure_of(call)).kind is Kind.IN_PROGRESS
    assert (await shop.insist(lambda: shop.authorize("k1"))).state == AUTHORIZED
    assert len(shop.books()) == 1


async def test_an_outcome_that_stays_unknown_can_be_seen_from_outside(shop: Shop) -> None:
    await _unknown(shop)

    async def seen() -> bool:
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(shop.mesh.metrics_url).read().decode())
        numbers = dict(
            line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("paymesh_payment_")
        )
        assert float(numbers['paymesh_payment_outcomes_total{event="PaymentOutcomeUnknown"}']) >= 1
        return float(numbers["paymesh_payment_waiting"]) == 1 and (
            0 < float(numbers["paymesh_payment_waiting_seconds_max"]) < 60
        )

    await until(seen)


# Connections and errors.


async def test_refused_connections_end_and_so_do_the_payments(shop: Shop) -> None:
    await shop.arm(REFUSE, strikes=4)
    error = await failure_of(shop.authorize("k1"))
    held = await shop.becomes(error.facts["payment_id"], AUTHORIZED)
    await shop.arm(REFUSE, strikes=3)
    await failure_of(shop.void("v1", held.payment_id))
    await shop.becomes(held.payment_id, VOIDED)
    assert [result for _, _, result in shop.books()] == ["APPROVED", "VOIDED"]


async def test_bursts_of_errors_and_lost_answers_double_nothing(shop: Shop) -> None:
    for kind in (ERROR, LOST_AFTER, LOST_BEFORE, REFUSE):
        await shop.arm(kind, probability_ppm=200_000)

    async def pay(n: int) -> None:
        held = await shop.insist(lambda: shop.authorize(f"k{n}", shop.wish(f"o{n}")))
        assert held.state == AUTHORIZED
        if n % 2:
            voided = await shop.insist(lambda: shop.void(f"v{n}", authorize_key=f"k{n}"))
            assert (voided.payment_id, voided.state) == (held.payment_id, VOIDED)

    await asyncio.gather(*(pay(n) for n in range(60)))
    results = [result for _, _, result in shop.books()]
    assert (results.count("APPROVED"), results.count("VOIDED")) == (60, 30)


async def test_a_void_that_the_processor_refuses_is_told_and_the_hold_stays(shop: Shop) -> None:
    held = await shop.authorize("k1")
    forget = "UPDATE payments SET processor_reference = %s WHERE payment_id = %s"
    shop.mesh.on_payment(forget, "auth_nobody", held.payment_id)
    for key in ("v1", "v1", "v2"):
        error = await failure_of(shop.void(key, held.payment_id))
        assert (error.kind, error.reason) == (Kind.REFUSED, "VOID_REFUSED")
    shop.mesh.on_payment(forget, held.processor_reference, held.payment_id)
    payment = (await shop.get(held.payment_id)).payment
    assert (payment.state, payment.held, payment.auth_code) == (AUTHORIZED, held.held, held.auth_code)
    assert (await shop.void("v3", held.payment_id)).state == VOIDED


# Processes that die or stop.


async def _pay_all(shop: Shop, count: int) -> list[pb.Payment]:
    async def pay(n: int) -> pb.Payment:
        return await shop.insist(lambda: shop.authorize(f"k{n}", shop.wish(f"o{n}")))

    return await asyncio.gather(*(pay(n) for n in range(count)))


async def test_a_bank_killed_and_started_again_has_the_same_books(shop: Shop) -> None:
    await shop.arm(DELAY, AUTHORIZE, delay_ms=200)
    paying = asyncio.create_task(_pay_all(shop, 40))
    await shop.struck()
    shop.mesh.bank.kill()
    await asyncio.to_thread(shop.mesh.bank.start)
    assert {payment.state for payment in await paying} == {AUTHORIZED}
    assert len(shop.books()) == 40


async def test_payment_killed_between_intent_and_outcome_finishes_after_its_restart(shop: Shop) -> None:
    await shop.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=200)
    call = asyncio.create_task(failure_of(shop.authorize("k1")))
    await shop.struck()
    shop.mesh.payment.kill()
    assert (await call).kind is Kind.UNKNOWN
    ((payment_id, state),) = shop.rows()
    assert state == "AUTHORIZING"
    await shop.booked("APPROVED")
    await asyncio.to_thread(shop.mesh.payment.start)
    held = await shop.becomes(payment_id, AUTHORIZED)
    assert await shop.story(payment_id) == ["Initiated", "Authorized"]
    assert await shop.authorize("k1") == held, "the claim of the dead process replays"
    assert shop.books() == [(f"{payment_id}/authorize", "AUTHORIZE", "APPROVED")]


async def test_payment_killed_before_it_asked_the_bank_finishes_after_its_restart(shop: Shop) -> None:
    with _stopped(shop.mesh.fraud):
        call = asyncio.create_task(failure_of(shop.authorize("k1")))
        await until(lambda: _intended(shop, "o1"))
        shop.mesh.payment.kill()
    assert (await call).kind is Kind.UNKNOWN
    assert shop.books() == []
    await asyncio.to_thread(shop.mesh.payment.start)
    assert (await failure_of(shop.authorize("k2"))).reason == "ORDER_ALREADY_PAID", "the intent stands"
    held = await shop.insist(lambda: shop.authorize("k1"))
    assert held.state == AUTHORIZED
    assert shop.rows() == [(held.payment_id, "AUTHORIZED")]


async def test_payment_killed_while_it_voids_finishes_after_its_restart(shop: Shop) -> None:
    held = await shop.authorize("k1")
    await shop.arm(DELAY, VOID, strikes=1, delay_ms=200)
    call = asyncio.create_task(failure_of(shop.void("v1", held.payment_id)))
    await shop.struck()
    shop.mesh.payment.kill()
    assert (await call).kind is Kind.UNKNOWN
    assert shop.rows() == [(held.payment_id, "VOIDING")]
    await asyncio.to_thread(shop.mesh.payment.start)
    voided = await shop.becomes(held.payment_id, VOIDED)
    assert await shop.void("v1", held.payment_id) == voided


async def test_two_payment_processes_on_one_database_double_nothing(shop: Shop) -> None:
    second = shop.mesh.another_payment(**STEADY)
    async with open_channel(second.target, caller="shop", attempts_max=1) as channel:
        stubs = [shop.stub, type(shop.stub)(channel)]
        for kind in (LOST_AFTER, LOST_BEFORE):
            await shop.arm(kind, probability_ppm=200_000)

        async def pay(n: int, stub: int) -> pb.Payment:
            async def ask() -> pb.Payment:
                return (
                    await stubs[stub].AuthorizePayment(shop.wish(f"o{n}"), metadata=with_key(f"k{n}"))
                ).payment

            return await shop.insist(ask)

        answers = await asyncio.gather(*(pay(n // 2, n % 2) for n in range(120)))
        assert all(one == other for one, other in zip(answers[::2], answers[1::2], strict=True))

        async def void(n: int, stub: int) -> pb.Payment:
            request = shop.void_wish(authorize_key=f"k{n}")

            async def ask() -> pb.Payment:
                return (await stubs[stub].VoidPayment(request, metadata=with_key(f"v{n}/{stub}"))).payment

            return await shop.insist(ask)

        voids = await asyncio.gather(*(void(n // 2, n % 2) for n in range(120)))
    second.kill()
    assert {v.state for v in voids} == {VOIDED}
    results = [result for _, _, result in shop.books()]
    assert (results.count("APPROVED"), results.count("VOIDED")) == (60, 60)


async def test_an_outcome_that_another_process_wrote_down_leaves_the_first_answer_as_it_is(
    shop: Shop,
) -> None:
    stalled = shop.mesh.another_payment(**STALLED)
    async with open_channel(stalled.target, caller="shop", attempts_max=1) as channel:
        await shop.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=300)
        stub = type(shop.stub)(channel)
        first = asyncio.create_task(failure_of(stub.AuthorizePayment(shop.wish(), metadata=with_key("k1"))))
        await shop.struck()
        with _stopped(stalled):
            ((payment_id, _),) = shop.rows()
            await shop.booked("APPROVED")
            _give_up(shop)
            held = await shop.becomes(payment_id, AUTHORIZED)
            voided = await shop.void("v1", payment_id)
        error = await first
    stalled.kill()
    assert (error.kind, error.facts["payment_id"]) == (Kind.IN_PROGRESS, payment_id)
    assert await shop.authorize("k1") == held
    assert (await shop.get(payment_id)).payment == voided


async def test_while_fraud_is_down_nothing_is_sent_to_the_bank_and_payments_finish_after_it_is_back(
    shop: Shop,
) -> None:
    shop.mesh.fraud.kill()
    error = await failure_of(shop.authorize("k1"))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    assert shop.books() == []
    await asyncio.to_thread(shop.mesh.fraud.start)
    held = await shop.becomes(error.facts["payment_id"], AUTHORIZED)
    assert await shop.authorize("k1") == held


# The database.


@contextmanager
def _poisoned(mesh: PaymentMesh, table: str, condition: str) -> Iterator[None]:
    """A unique violation, where none is expected, for rows that meet a condition."""
    mesh.on_payment(
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE unique_violation; END IF; RETURN NEW; END $$"
    )
    mesh.on_payment(f"CREATE TRIGGER poison BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION poison()")
    try:
        yield
    finally:
        mesh.on_payment("DROP FUNCTION poison CASCADE")


async def test_bug_14_a_unique_violation_is_a_failure_and_never_an_empty_success(shop: Shop) -> None:
    with _poisoned(shop.mesh, "payments", "NEW.order_id = 'poison'"):
        before = shop.mesh.footprint()
        error = await failure_of(shop.authorize("k1", shop.wish("poison")))
        assert (error.kind, error.reason) == (Kind.BUG, "INTERNAL")
        (result,) = await shop.authorize_all(("k1", shop.wish("poison")))
        assert failure_error(result.failure).kind is Kind.BUG
        assert shop.mesh.footprint() == before
        results = await shop.authorize_all(
            *((f"k{n}", shop.wish("poison" if n == 2 else f"o{n}")) for n in range(5))
        )
        assert [r.response.payment.state for r in results] == [
            AUTHORIZED,
            AUTHORIZED,
            0,
            AUTHORIZED,
            AUTHORIZED,
        ]
        assert failure_error(results[2].failure).kind is Kind.BUG
    assert (await shop.authorize("k2", shop.wish("poison"))).state == AUTHORIZED, "its key is free"


async def test_bug_14_a_unique_violation_at_the_outcome_costs_the_neighbours_nothing(shop: Shop) -> None:
    poison = "NEW.type = 'PaymentAuthorized' AND NEW.data->>'fraud_score_milli' = '250'"
    wishes = [shop.wish(f"o{n}", billing_country="GB") for n in range(5)]
    wishes[2].card.bin = "40000025"
    with _poisoned(shop.mesh, "payment_events", poison):
        results = await shop.authorize_all(*((f"k{n}", wish) for n, wish in enumerate(wishes)))
        assert [r.response.payment.state for r in results] == [
            AUTHORIZED,
            AUTHORIZED,
            0,
            AUTHORIZED,
            AUTHORIZED,
        ]
        error = failure_error(results[2].failure)
        assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    _give_up(shop)
    assert (await shop.insist(lambda: shop.authorize("k2", wishes[2]))).state == AUTHORIZED
    assert len(shop.books()) == 5


async def test_a_database_that_breaks_while_the_outcome_is_written_does_not_say_that_nothing_happened(
    shop: Shop,
) -> None:
    await shop.arm(DELAY, AUTHORIZE, strikes=1, delay_ms=200)
    call = asyncio.create_task(failure_of(shop.authorize("k1")))
    await shop.struck()
    with psycopg.connect(shop.mesh.payment_dsn) as connection:
        connection.execute("SELECT FROM payments WHERE merchant_id = %s FOR UPDATE", (shop.merchant,))

        async def broken() -> bool:
            return bool(
                shop.mesh.on_payment(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )

        await until(broken)
        error = await call
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    held = await shop.becomes(error.facts["payment_id"], AUTHORIZED)
    assert await shop.insist(lambda: shop.authorize("k1")) == held
    assert len(shop.books()) == 1
