"""Payment with Stripe: the whole life of a payment, answers that are lost before or after, errors that Stripe
remembers, calls that arrive late, processes that are killed between intent and outcome. Whatever happens, money is
held, taken and given back once, and at the end localstripe's books are ours.

One set of processes serves all tests; each test is a merchant of its own, and after each one the books are compared.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.channel import open_channel, with_key
from paymesh.errors import Kind, PaymeshCallError
from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.clock import now_ms
from services.kit.deadline import Deadline
from services.kit.ids import new_id
from services.kit.money import Money
from services.payment.clients import Asked
from services.payment.clients.stripe.processor import StripeProcessor
from services.payment.clients.stripe.settings import StripeSettings
from services.payment.domain import Approved, Authorize, Gone, Lost, initiate
from tests.conftest import Services
from tests.payment_mesh import (
    AUTHORIZED,
    CAPTURED,
    DECLINED,
    FAILED,
    MOVES,
    PARTIALLY_REFUNDED,
    REFUNDED,
    VOIDED,
    failure_of,
    until,
)
from tests.processes import ROOT
from tests.stripe_mesh import KEY, StripeMesh, StripeSandbox, StripeShop

STEADY = {
    "stripe_seconds": "1.5",
    "stripe_probe_seconds": "0.1",
    "fraud_seconds": "2",
    "resolve_first_ms": "20",
    "resolve_max_ms": "100",
    "resolve_poll_ms": "20",
    "resolve_attempts_max": "4",
    "intent_seconds": "2.5",
    "log_level": "debug",
}
OPERATIONS = ("authorize", "void", *MOVES)


@pytest.fixture(scope="module")
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StripeMesh]:
    folder = tmp_path_factory.mktemp("stripe")
    services = Services(postgres, folder)
    stripe = StripeSandbox(folder)
    mesh = StripeMesh.begin(services, valkey.url, stripe, **STEADY)
    yield mesh
    assert KEY not in mesh.payment.log(), "the key is never logged"
    assert "pm_card" not in mesh.payment.log(), "nor what a card is called"
    mesh.close()
    services.stop()
    stripe.stop()


@pytest_asyncio.fixture
async def shop(mesh: StripeMesh, request: pytest.FixtureRequest) -> AsyncIterator[StripeShop]:
    async with StripeShop(mesh, request.node.name) as shop:
        try:
            yield shop
        finally:
            mesh.stripe.calm()
        await mesh.assert_books_agree(shop.merchant)
        mesh.stripe.forget_the_past()


async def _call(shop: StripeShop, what: str) -> Callable[[], Awaitable[pb.Payment]]:
    """One of the five operations, on a payment that is ready for it, to be sent as often as one likes."""
    if what == "authorize":
        return lambda: shop.authorize("m1", shop.wish())
    held = await shop.authorize("k1")
    if what == "void":
        return lambda: shop.void("m1", held.payment_id)
    if what == "refund":
        await shop.move("capture", "c1", held.payment_id)
    final = {"final": True} if what == "capture" else {}
    return lambda: shop.move(what, "m1", held.payment_id, 400, **final)


TARGET = {"void": "cancel"}
"""What the gate calls it, where that is another word."""


async def test_the_life_of_a_payment(shop: StripeShop) -> None:
    held = await shop.authorize("k1", shop.wish(currency="USD", amount_minor=10_000))
    assert (held.state, len(held.auth_code)) == (AUTHORIZED, 6)
    assert held.processor_reference.startswith("pi_")
    more = await shop.move("increment", "i1", held.payment_id, 500, currency="USD")
    assert more.authorized.amount_minor == 10_500
    captured = await shop.move("capture", "c1", held.payment_id, 9_000, currency="USD", final=True)
    assert (captured.state, captured.held.amount_minor) == (CAPTURED, 0)
    part = await shop.move("refund", "r1", held.payment_id, 4_000, currency="USD")
    assert part.state == PARTIALLY_REFUNDED
    assert (await shop.move("refund", "r2", held.payment_id)).state == REFUNDED
    other = await shop.authorize("k2", shop.wish("o2"))
    assert (await shop.void("v2", other.payment_id)).state == VOIDED
    events = (await shop.get(held.payment_id)).events
    assert '"processor":"stripe"' in events[0].data_json


async def test_a_set_is_answered_one_by_one(shop: StripeShop) -> None:
    tokens = [f"tok_visa_{n}" for n in range(12)] + ["tok_declined", "tok_4_" + "0" * 32]
    results = await shop.authorize_all(
        *((f"k{n}", shop.wish(f"o{n}", token=token)) for n, token in enumerate(tokens))
    )
    payments = [one.response.payment for one in results]
    assert [p.state for p in payments] == [AUTHORIZED] * 12 + [DECLINED] * 2
    assert [p.decline_reason for p in payments[12:]] == ["CARD_DECLINED", "INVALID_CARD"]
    captures = [(f"c{n}", shop.move_wish("capture", p.payment_id)) for n, p in enumerate(payments[:12])]
    assert {r.response.payment.state for r in await shop.move_all("capture", *captures)} == {CAPTURED}


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("tok_declined", "CARD_DECLINED"),
        ("tok_insufficient_funds", "INSUFFICIENT_FUNDS"),
        ("tok_expired_card", "EXPIRED_CARD"),
        ("tok_velocity_exceeded", "VELOCITY_EXCEEDED"),
        ("pm_card_authenticationRequired", "AUTHENTICATION_REQUIRED"),
        ("pm_nobody", "INVALID_CARD"),
    ],
)
async def test_a_card_is_declined_for_the_same_reason_as_everywhere(
    shop: StripeShop, token: str, reason: str
) -> None:
    declined = await shop.authorize("k1", shop.wish(token=token))
    assert (declined.state, declined.decline_reason) == (DECLINED, reason)
    shop.stripe.arm("after", "authorize", strikes=1)
    again = await shop.insist(lambda: shop.authorize("k2", shop.wish("o2", token=token)))
    assert (again.state, again.decline_reason) == (DECLINED, reason), "also when the answer was lost"


async def test_a_capture_that_is_not_the_last_is_refused_and_takes_nothing(shop: StripeShop) -> None:
    held = await shop.authorize("k1")
    error = await failure_of(shop.move("capture", "c1", held.payment_id, 400))
    assert (error.kind, error.reason, error.facts["decline_reason"]) == (
        Kind.REFUSED,
        "CAPTURE_REFUSED",
        "CAPTURES_ONCE",
    )
    assert (await shop.get(held.payment_id)).payment.held.amount_minor == 1_000
    last = await shop.move("capture", "c2", held.payment_id, 400, final=True)
    assert (last.state, last.captured.amount_minor) == (CAPTURED, 400)


async def test_what_stripe_refuses_is_refused_and_changes_nothing(shop: StripeShop) -> None:
    held = await shop.authorize("k1")
    error = await failure_of(shop.move("increment", "i1", held.payment_id, 900_000))
    assert (error.reason, error.facts["decline_reason"]) == ("INCREMENT_DECLINED", "INSUFFICIENT_FUNDS")
    failing = await shop.authorize("k2", shop.wish("o2", token="tok_no_refund"))
    await shop.move("capture", "c2", failing.payment_id)
    error = await failure_of(shop.move("refund", "r2", failing.payment_id))
    assert (error.reason, error.facts["decline_reason"]) == ("REFUND_REFUSED", "EXPIRED_OR_CANCELED_CARD")
    assert (await shop.get(failing.payment_id)).payment.state == CAPTURED


async def test_a_refund_is_done_when_stripe_says_so_and_not_before(shop: StripeShop) -> None:
    held = await shop.authorize("k1")
    await shop.move("capture", "c1", held.payment_id)
    shop.stripe.arm("pending", "refund", strikes=1, delay_ms=700)
    error = await failure_of(shop.move("refund", "r1", held.payment_id, 400))
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    done = await shop.insist(lambda: shop.move("refund", "r1", held.payment_id, 400))
    assert done.refunded.amount_minor == 400
    assert len(shop.stripe.refunds()) == len(
        {one["metadata"]["paymesh_key"] for one in shop.stripe.refunds()}
    )


@pytest.mark.parametrize(
    ("currency", "minor", "refund_minor"), [("JPY", 500, 123), ("KWD", 5_120, 2_560), ("UGX", 7_000, 350)]
)
async def test_currencies_with_other_decimals(
    shop: StripeShop, currency: str, minor: int, refund_minor: int
) -> None:
    held = await shop.authorize("k1", shop.wish(currency=currency, amount_minor=minor))
    captured = await shop.move("capture", "c1", held.payment_id)
    assert captured.captured.amount_minor == minor
    refunded = await shop.move("refund", "r1", held.payment_id, refund_minor, currency=currency)
    assert refunded.refunded.amount_minor == refund_minor


async def test_an_amount_that_stripe_cannot_count_is_refused_before_it_is_asked(shop: StripeShop) -> None:
    failed = await shop.authorize("k1", shop.wish(currency="KWD", amount_minor=5_124))
    assert (failed.state, failed.decline_reason) == (FAILED, "AMOUNT_TOO_FINE")
    held = await shop.authorize("k2", shop.wish("o2", currency="KWD", amount_minor=5_120))
    error = await failure_of(shop.move("increment", "i1", held.payment_id, 5, currency="KWD"))
    assert error.facts["decline_reason"] == "AMOUNT_TOO_FINE"


@pytest.mark.parametrize("what", OPERATIONS)
async def test_one_key_twenty_times_at_once_has_one_effect(shop: StripeShop, what: str) -> None:
    call = await _call(shop, what)
    before = shop.stripe.calls(TARGET.get(what, what))
    answers = await asyncio.gather(*(shop.insist(call) for _ in range(20)))
    assert len({answer.version for answer in answers}) == 1
    assert shop.stripe.calls(TARGET.get(what, what)) == before + 1


async def test_of_two_full_refunds_at_once_one_succeeds(shop: StripeShop) -> None:
    held = await shop.authorize("k1")
    await shop.move("capture", "c1", held.payment_id)

    async def refund(n: int) -> str:
        try:
            await shop.insist(lambda: shop.move("refund", f"r{n}", held.payment_id, 1_000))
        except PaymeshCallError as error:
            return error.reason
        return "done"

    assert sorted(await asyncio.gather(refund(1), refund(2))) in (
        ["NOTHING_TO_REFUND", "done"],
        ["REFUND_EXCEEDS_CAPTURED", "done"],
    )


@pytest.mark.parametrize("kind", ["before", "after", "error", "rate_limit"])
@pytest.mark.parametrize("what", OPERATIONS)
async def test_a_lost_answer_is_found_out_without_help_and_money_moves_once(
    shop: StripeShop, what: str, kind: str
) -> None:
    call = await _call(shop, what)
    shop.stripe.arm(kind, TARGET.get(what, what), strikes=2)
    error = await failure_of(call())
    assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN")
    done = await shop.insist(call)
    assert done.unknown_outcome == pb.UNKNOWN_OUTCOME_UNSPECIFIED
    assert await call() == done, "a replay"
    assert (await shop.story(done.payment_id)).count("OutcomeUnknown") == 1


async def test_while_the_outcome_is_unknown_nothing_else_is_sent(shop: StripeShop) -> None:
    held = await shop.authorize("k1")
    shop.stripe.arm("after", "capture", strikes=1)
    shop.stripe.arm("before", "retrieve")
    error = await failure_of(shop.move("capture", "c1", held.payment_id))
    assert error.reason == "OUTCOME_UNKNOWN"
    for what in MOVES:
        assert (await failure_of(shop.move(what, f"x-{what}", held.payment_id, 1))).kind is Kind.IN_PROGRESS
    assert (await failure_of(shop.void("v1", held.payment_id))).kind is Kind.IN_PROGRESS
    shop.stripe.calm()
    assert (await shop.insist(lambda: shop.move("capture", "c1", held.payment_id))).state == CAPTURED


@pytest.mark.parametrize("what", OPERATIONS)
async def test_a_call_that_arrives_after_it_was_sent_again_has_no_second_effect(
    shop: StripeShop, what: str
) -> None:
    call = await _call(shop, what)
    shop.stripe.arm("delay", TARGET.get(what, what), strikes=1, delay_ms=2_500)
    before = shop.stripe.calls(TARGET.get(what, what))
    assert (await failure_of(call())).kind is Kind.IN_PROGRESS
    done = await shop.insist(call)

    async def arrived() -> bool:
        return shop.stripe.calls(TARGET.get(what, what)) >= before + 2

    await until(arrived)
    assert (await shop.get(done.payment_id)).payment == done


async def test_an_authorization_that_nobody_answers_is_cancelled_and_a_late_one_finds_its_key_taken(
    shop: StripeShop,
) -> None:
    shop.stripe.arm("delay", "authorize", strikes=1, delay_ms=3_000)
    shop.stripe.arm("before", "authorize")
    assert (await failure_of(shop.authorize("k1"))).kind is Kind.IN_PROGRESS
    failed = await shop.insist(lambda: shop.authorize("k1"))
    assert (failed.state, failed.decline_reason) == (FAILED, "CANCELLED_AT_PROCESSOR")

    async def arrived() -> bool:
        return any(
            call["what"] == "authorize" and call["status"] == 400
            for call in shop.stripe.command("GET", "calls")
            if call["key"] == f"{failed.payment_id}/authorize"
        )

    await until(arrived)
    assert [intent["status"] for intent in shop.intents()] == ["canceled"], "only what claimed the key"


async def test_an_authorization_that_had_arrived_is_found_by_its_key_and_cancelled(shop: StripeShop) -> None:
    shop.stripe.command("POST", "search", lag_seconds=3_600.0)
    shop.stripe.arm("after", "authorize", strikes=1)
    shop.stripe.arm("before", "authorize", strikes=3)
    assert (await failure_of(shop.authorize("k1"))).kind is Kind.IN_PROGRESS
    failed = await shop.insist(lambda: shop.authorize("k1"))
    assert (failed.state, failed.decline_reason) == (FAILED, "CANCELLED_AT_PROCESSOR")
    (intent,) = shop.intents()
    assert (intent["status"], intent["payment_method"] is not None) == ("canceled", True)


async def test_an_authorization_is_found_without_a_search(shop: StripeShop) -> None:
    shop.stripe.command("POST", "search", refused=True)
    shop.stripe.arm("after", "authorize", strikes=1)
    assert (await shop.insist(lambda: shop.authorize("k1"))).state == AUTHORIZED
    assert len(shop.intents()) == 1


async def test_an_error_that_stripe_remembers_ends_an_authorization(shop: StripeShop) -> None:
    """Until Stripe forgets the key, its answer to it is that error; nothing was made, but who knows."""
    before = shop.stripe.calls("claim")
    shop.stripe.arm("stored_error", "authorize", strikes=1)
    assert (await failure_of(shop.authorize("k1"))).kind is Kind.IN_PROGRESS
    payment_id = shop.rows()[0][0]

    async def refused() -> bool:
        return shop.stripe.calls("claim") > before

    await until(refused)
    assert (await shop.get(payment_id)).payment.unknown_outcome == pb.UNKNOWN_OUTCOME_AUTHORIZATION
    shop.stripe.command("POST", "forget")  # a day later
    failed = await shop.insist(lambda: shop.authorize("k1"))
    assert (failed.state, failed.decline_reason) == (FAILED, "CANCELLED_AT_PROCESSOR")


@pytest.mark.parametrize("what", ["capture", "refund", "increment"])
async def test_an_error_that_stripe_remembers_delays_a_movement_until_it_is_forgotten(
    shop: StripeShop, what: str
) -> None:
    call = await _call(shop, what)
    before = shop.stripe.calls(what)
    shop.stripe.arm("stored_error", what, strikes=1)
    assert (await failure_of(call())).kind is Kind.IN_PROGRESS

    async def asked_again() -> bool:
        return shop.stripe.calls(what) >= before + 3

    await until(asked_again)
    assert (await failure_of(call())).kind is Kind.IN_PROGRESS
    shop.stripe.command("POST", "forget")
    assert (await shop.insist(call)).unknown_outcome == pb.UNKNOWN_OUTCOME_UNSPECIFIED


@pytest.mark.parametrize("what", ["void", *MOVES])
async def test_what_was_done_under_a_key_that_stripe_has_forgotten_is_not_done_twice(
    shop: StripeShop, what: str
) -> None:
    call = await _call(shop, what)
    shop.stripe.arm("after", TARGET.get(what, what), strikes=1)
    shop.stripe.arm("before", "retrieve", strikes=2)
    shop.stripe.arm("before", "list_refunds", strikes=2)
    shop.stripe.arm("before", "search", strikes=2)
    assert (await failure_of(call())).kind is Kind.IN_PROGRESS
    shop.stripe.command("POST", "forget")
    done = await shop.insist(call)
    assert done.unknown_outcome == pb.UNKNOWN_OUTCOME_UNSPECIFIED


async def test_a_cancellation_lets_go_of_what_was_made_under_a_key_that_stripe_has_forgotten(
    shop: StripeShop,
) -> None:
    settings = StripeSettings(key=SecretStr(KEY), url=shop.stripe.url)
    processor = StripeProcessor(settings)
    yesterday = now_ms() - 86_400_000
    wish = Authorize(shop.merchant, "o1", Money(1_000, "GBP"), "tok_visa", "", "", "", "", "")
    payment, _ = initiate(wish, new_id("pay"), "shop", "k1", yesterday, "stripe")
    asked, deadline = [Asked(payment, wish, None)], Deadline.after(20)
    try:
        (approved,) = await processor.authorize(asked, deadline)
        assert isinstance(approved, Approved)
        shop.stripe.command("POST", "forget")
        assert await processor.look_up(asked, deadline) == [approved], "found, and so not sent again"
        assert await processor.cancel(asked, deadline) == [Gone()]
        assert await processor.cancel(asked, deadline) == [Gone()], "a second one changes nothing"
        assert [intent["status"] for intent in shop.intents()] == ["canceled"] * 2, "and what took the key"
        (late,) = await processor.authorize(asked, deadline)
        assert late == Lost("IDEMPOTENCY_KEY_REUSED")
    finally:
        await processor.close()


@pytest.mark.parametrize("what", OPERATIONS)
async def test_payment_killed_between_intent_and_outcome_finishes_after_its_restart(
    shop: StripeShop, what: str
) -> None:
    call = await _call(shop, what)
    shop.stripe.arm("delay", TARGET.get(what, what), strikes=1, delay_ms=1_000)
    asked = asyncio.create_task(failure_of(call()))
    await shop.stripe.struck()
    shop.mesh.payment.kill()
    await asyncio.to_thread(shop.mesh.payment.start)
    assert (await asked).kind is Kind.UNKNOWN
    done = await shop.insist(call)
    assert (await shop.get(done.payment_id)).payment == done
    assert await call() == done, "the claim of the dead process replays"


async def test_a_late_success_is_let_go_and_reported(shop: StripeShop) -> None:
    """A process that was frozen comes back with an approval after another has cancelled."""
    settings = STEADY | {"stripe_seconds": "20", "resolve_poll_ms": "600000", "intent_seconds": "600"}
    shop.stripe.command("POST", "search", lag_seconds=3_600.0)
    stalled = shop.mesh.another_payment(**StripeMesh.chosen(shop.stripe), **settings)
    async with open_channel(stalled.target, caller="shop", attempts_max=1) as channel:
        shop.stripe.arm("delay", "authorize", strikes=1, delay_ms=600)
        stub = type(shop.stub)(channel)
        first = asyncio.create_task(failure_of(stub.AuthorizePayment(shop.wish(), metadata=with_key("k1"))))
        await shop.stripe.struck()
        os.kill(stalled.pid, signal.SIGSTOP)
        try:

            async def held() -> bool:
                return bool(shop.intents())

            await until(held)
            ((payment_id,),) = shop.mesh.on_payment(
                "UPDATE payments SET resolve_at = now(), resolve_attempts = 10 WHERE merchant_id = %s"
                " RETURNING payment_id",
                shop.merchant,
            )
            await shop.becomes(payment_id, FAILED)
        finally:
            os.kill(stalled.pid, signal.SIGCONT)
        error = await first
    stalled.kill()
    assert error.kind is Kind.IN_PROGRESS
    await shop.becomes(payment_id, VOIDED)
    assert "LateApprovalFound" in await shop.story(payment_id)


async def test_stripe_that_cannot_be_reached_is_left_alone_and_asked_when_it_is_back(
    shop: StripeShop,
) -> None:
    held = await shop.authorize("k1")
    shop.stripe.stop_gate()
    try:
        for n in range(15):
            assert (await failure_of(shop.authorize(f"n{n}", shop.wish(f"n{n}")))).kind is Kind.IN_PROGRESS
        error = await failure_of(shop.move("capture", "c1", held.payment_id))
        assert error.kind is Kind.IN_PROGRESS
        reasons = shop.mesh.on_payment(
            "SELECT DISTINCT data->>'reason' FROM payment_events"
            " WHERE merchant_id = %s AND type = 'PaymentOutcomeUnknown'",
            shop.merchant,
        )
        assert ("LEFT_ALONE",) in reasons
    finally:
        shop.stripe.start_gate()
    assert (await shop.insist(lambda: shop.move("capture", "c1", held.payment_id))).state == CAPTURED
    ended = await asyncio.gather(
        *(shop.insist(lambda n=n: shop.authorize(f"n{n}", shop.wish(f"n{n}"))) for n in range(15))  # type: ignore[misc]
    )
    assert {payment.state for payment in ended} <= {AUTHORIZED, FAILED}


async def test_a_key_that_is_revoked_loses_nothing_and_says_so(shop: StripeShop) -> None:
    held = await shop.authorize("k1")
    shop.stripe.command("POST", "key", key="sk_test_another")
    assert (await failure_of(shop.move("capture", "c1", held.payment_id))).kind is Kind.IN_PROGRESS
    metrics = httpx.get(f"http://{shop.mesh.metrics}/metrics").text
    assert 'paymesh_payment_processor_lost_total{processor="stripe",reason="KEY_REFUSED"}' in metrics
    shop.stripe.calm()
    assert (await shop.insist(lambda: shop.move("capture", "c1", held.payment_id))).state == CAPTURED


def test_a_key_that_stripe_does_not_accept_ends_the_process_with_what_to_do(mesh: StripeMesh) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PAYMESH_")} | {
        "PAYMESH_PAYMENT_LISTEN": "127.0.0.1:0",
        "PAYMESH_PAYMENT_DATABASE_DSN": mesh.payment_dsn,
        "PAYMESH_PAYMENT_FRAUD_TARGET": mesh.fraud.target,
        "PAYMESH_PAYMENT_PROCESSOR": "stripe",
        "PAYMESH_PAYMENT_STRIPE_KEY": "sk_test_mistyped",
        "PAYMESH_PAYMENT_STRIPE_URL": mesh.stripe.url,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "services.payment"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "payment: Stripe does not accept the key in PAYMESH_PAYMENT_STRIPE_KEY" in ended.stderr
    assert "mistyped" not in ended.stderr
    assert "Traceback" not in ended.stderr


@dataclass
class _Sums:
    """What a payment of 1,000 should have come to."""

    authorized: int = 1_000
    captured: int = 0
    refunded: int = 0

    def step(self, what: str, amount: int) -> int:
        """Add up one step; how much of it may be asked for, which is nothing where it cannot be."""
        if what == "refund":
            back = min(amount, self.captured - self.refunded)
            self.refunded += back
            return back
        if self.captured:
            return 0
        if what == "capture":
            self.captured = min(amount, self.authorized)
            return self.captured
        self.authorized += amount
        return amount


async def test_in_a_storm_of_faults_with_two_processes_every_sum_is_right(shop: StripeShop) -> None:
    """Random lives, each step sent to both processes under one key, while answers are lost on the way. What each
    payment should have come to is added up beside it."""
    second = shop.mesh.another_payment(**StripeMesh.chosen(shop.stripe), **STEADY)
    dice = random.Random(20_261_126)
    steps = ("increment", "capture", "refund", "refund")
    async with open_channel(second.target, caller="shop", attempts_max=1) as channel:
        stubs = [shop.stub, type(shop.stub)(channel)]
        for target in ("authorize", "capture", "refund", "increment", "cancel", "retrieve", "list_refunds"):
            for kind in ("before", "after"):
                shop.stripe.arm(kind, target, strikes=6)

        async def twice(what: str, key: str, payment_id: str, amount: int) -> pb.Payment:
            wish = shop.move_wish(what, payment_id, amount)
            if what == "capture":
                wish.final = True

            async def send(stub: object) -> pb.Payment:
                rpc = getattr(stub, MOVES[what][0])

                async def ask() -> pb.Payment:
                    payment: pb.Payment = (await rpc(wish, metadata=with_key(key))).payment
                    return payment

                return await shop.insist(ask)

            first, other = await asyncio.gather(*(send(stub) for stub in stubs))
            assert first == other
            return first

        async def live(n: int, plan: list[tuple[str, int]]) -> None:
            now = await shop.insist(lambda: shop.authorize(f"k{n}", shop.wish(f"o{n}")))
            if now.state == FAILED:
                return  # nobody could be asked in time, so it was cancelled
            sums = _Sums()
            for step, (what, wanted) in enumerate(plan):
                if amount := sums.step(what, wanted):
                    now = await twice(what, f"s{n}-{step}", now.payment_id, amount)
            if not sums.captured:
                now = await shop.insist(lambda: shop.void(f"v{n}", now.payment_id))
            told = _Sums(now.authorized.amount_minor, now.captured.amount_minor, now.refunded.amount_minor)
            assert (told, now.held.amount_minor) == (sums, 0)

        plans = [[(dice.choice(steps), dice.randint(1, 700)) for _ in range(6)] for _ in range(10)]
        await asyncio.gather(*(live(n, plan) for n, plan in enumerate(plans)))
    second.kill()
