"""Increments, captures, refunds, expiry and the ledger, on a good day: payment as a real process between real
neighbours. What callers are told, what a repeat is told, what is refused without a trace, and that no sum goes too
far whatever comes at once.

One set of processes serves all tests; each test is a merchant of its own, and after each one payment's events, rows,
ledger, announcements and answers are compared with each other and with the bank's books. What goes wrong on the way
to the bank is in test_payment_lost_movements.py. The numbered bugs are ones that other systems had.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.channel import was_replayed, with_key
from paymesh.errors import Kind, PaymeshCallError, failure_error
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import events_pb2, ledger_pb2
from paymesh.payment.v1 import payment_pb2 as pb
from tests.conftest import Services
from tests.payment_mesh import (
    AUTHORIZED,
    CAPTURED,
    EXPIRED,
    MOVES,
    PARTIALLY_CAPTURED,
    PARTIALLY_REFUNDED,
    REFUNDED,
    VOIDED,
    PaymentMesh,
    Shop,
    failure_of,
)

QUICK = {"resolve_first_ms": "20", "resolve_poll_ms": "20"}


@pytest.fixture(scope="module")
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path_factory.mktemp("payment"))
    mesh = PaymentMesh.start(services, valkey.url, {}, **QUICK)
    yield mesh
    mesh.close()
    services.stop()


@pytest_asyncio.fixture
async def shop(mesh: PaymentMesh, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with Shop(mesh, request.node.name) as shop:
        yield shop
        await shop.calm()
        await mesh.assert_books_agree(shop.merchant)


async def _ready(shop: Shop, what: str, order: str = "o1", token: str = "") -> pb.Payment:
    """A payment of 1,000 that can be captured, incremented, or refunded."""
    payment = await shop.authorize(f"k-{order}", shop.wish(order, token=token))
    return await shop.move("capture", f"c-{order}", payment.payment_id) if what == "refund" else payment


def _minor(payment: pb.Payment) -> tuple[int, int, int, int]:
    """(authorized, held, captured, refunded)."""
    return (
        payment.authorized.amount_minor,
        payment.held.amount_minor,
        payment.captured.amount_minor,
        payment.refunded.amount_minor,
    )


async def test_a_payment_is_captured_and_refunded_in_parts_and_tells_its_story(shop: Shop) -> None:
    held = await shop.authorize("k1")
    assert (held.state, _minor(held)) == (AUTHORIZED, (1_000, 1_000, 0, 0))
    assert held.expires_at.ToMilliseconds() - held.created_at.ToMilliseconds() == 7 * 24 * 3600 * 1000
    more = await shop.move("increment", "i1", held.payment_id, 200, note="a late minibar")
    assert (more.state, _minor(more), more.amount.amount_minor) == (AUTHORIZED, (1_200, 1_200, 0, 0), 1_000)
    part = await shop.move("capture", "c1", held.payment_id, 300)
    assert (part.state, _minor(part)) == (PARTIALLY_CAPTURED, (1_200, 900, 300, 0))
    back = await shop.move("refund", "r1", held.payment_id, 100)
    assert (back.state, _minor(back)) == (PARTIALLY_CAPTURED, (1_200, 900, 300, 100))
    rest = await shop.move("capture", "c2", held.payment_id, 500, final=True)
    assert (rest.state, _minor(rest)) == (PARTIALLY_REFUNDED, (1_200, 0, 800, 100))
    all_back = await shop.move("refund", "r2", held.payment_id)
    assert (all_back.state, _minor(all_back)) == (REFUNDED, (1_200, 0, 800, 800))
    assert await shop.story(held.payment_id) == [
        "Initiated",
        "Authorized",
        "IncrementRequested",
        "AuthorizationIncremented",
        "CaptureRequested",
        "Captured",
        "RefundRequested",
        "Refunded",
        "CaptureRequested",
        "Captured",
        "RefundRequested",
        "Refunded",
    ]
    assert [(key.rpartition("/")[0].partition("/")[2], kind) for key, kind, _ in shop.books()[1:] if key] == [
        ("increment", "INCREMENT"),
        ("capture", "CAPTURE"),
        ("refund", "REFUND"),
        ("capture", "CAPTURE"),
        ("refund", "REFUND"),
    ]
    assert "a late minibar" in (await shop.get(held.payment_id)).events[2].data_json
    again = await shop.authorize("k1")
    assert again == held, "the first answer, whatever has become of it"


async def test_what_is_announced_has_the_amount_of_the_movement(shop: Shop) -> None:
    held = await shop.authorize("k1")
    await shop.move("increment", "i1", held.payment_id, 200)
    await shop.move("capture", "c1", held.payment_id, 300)
    await shop.move("refund", "r1", held.payment_id, 100)
    rows = shop.mesh.on_payment(
        "SELECT type, payload FROM outbox WHERE merchant_id = %s ORDER BY outbox_id", shop.merchant
    )
    told = []
    for type_, payload in rows[1:]:
        message = getattr(events_pb2, type_.rpartition(".")[2]).FromString(bytes(payload))
        told.append((type_.rpartition(".")[2], message.amount.amount_minor, message.payment.payment_id))
    assert told == [
        ("PaymentAuthorizationIncremented", 200, held.payment_id),
        ("PaymentCaptured", 300, held.payment_id),
        ("PaymentRefunded", 100, held.payment_id),
    ]


async def test_the_rest_of_a_captured_payment_is_voided(shop: Shop) -> None:
    payment = await _ready(shop, "capture")
    await shop.move("capture", "c1", payment.payment_id, 400)
    voided = await shop.void("v1", payment.payment_id)
    assert (voided.state, _minor(voided)) == (CAPTURED, (1_000, 0, 400, 0))
    assert (await failure_of(shop.void("v2", payment.payment_id))).reason == "PAYMENT_CAPTURED"
    assert (
        await failure_of(shop.move("capture", "c2", payment.payment_id, 1))
    ).reason == "NOTHING_TO_CAPTURE"
    other = await failure_of(shop.authorize("k2", shop.wish("o1")))
    assert other.reason == "ORDER_ALREADY_PAID", "an order whose money was taken is paid"
    refunded = await shop.move("refund", "r1", payment.payment_id)
    assert refunded.state == REFUNDED
    assert await shop.void("v3", payment.payment_id) == refunded, "nothing is kept: nothing to undo"
    assert (await shop.authorize("k3", shop.wish("o1"))).state == AUTHORIZED, "and it may be paid again"


@pytest.mark.parametrize(
    ("what", "token", "reason", "why"),
    [
        ("increment", "tok_no_increment", "INCREMENT_DECLINED", "INSUFFICIENT_FUNDS"),
        ("capture", "tok_no_capture", "CAPTURE_REFUSED", "CARD_CLOSED"),
        ("refund", "tok_no_refund", "REFUND_REFUSED", "ACCOUNT_CLOSED"),
    ],
)
async def test_a_movement_that_the_bank_refuses_changes_nothing_and_replays(
    shop: Shop, what: str, token: str, reason: str, why: str
) -> None:
    before = await _ready(shop, what, token=token)
    for _ in "12":
        error = await failure_of(shop.move(what, "m1", before.payment_id, 100))
        assert (error.kind, error.reason, error.facts["decline_reason"]) == (Kind.REFUSED, reason, why)
    after = (await shop.get(before.payment_id)).payment
    assert (after.state, _minor(after)) == (before.state, _minor(before))
    assert sum(key == f"{before.payment_id}/{what}/{before.version + 1}" for key, _, _ in shop.books()) == 1


@pytest.mark.parametrize("what", MOVES)
async def test_nobody_touches_anothers_payment_and_unknown_ones_are_not_found(shop: Shop, what: str) -> None:
    payment = await _ready(shop, what)
    async with Shop(shop.mesh, "thief") as thief:
        for payment_id in (payment.payment_id, "pay_unknown"):
            error = await failure_of(thief.move(what, "m1", payment_id, 1))
            assert (error.kind, error.reason) == (Kind.NOT_FOUND, "UNKNOWN_PAYMENT")
    assert (await shop.get(payment.payment_id)).payment == payment


WRONG = [
    ("merchant_id", {"merchant_id": ""}),
    ("merchant_id", {"merchant_id": "m" * 65}),
    ("payment_id", {"payment_id": ""}),
    ("payment_id", {"payment_id": "p" * 65}),
    ("payment_id", {"payment_id": "p\x00"}),
    ("amount.amount_minor", {"amount": money_pb2.Money(amount_minor=0, currency="GBP")}),
    ("amount.amount_minor", {"amount": money_pb2.Money(amount_minor=-1, currency="GBP")}),
    ("amount.amount_minor", {"amount": money_pb2.Money(amount_minor=10**12 + 1, currency="GBP")}),
    ("amount.currency", {"amount": money_pb2.Money(amount_minor=1, currency="gbp")}),
    ("note", {"note": "n" * 201}),
    ("note", {"note": "\x00"}),
]


@pytest.mark.parametrize(
    ("field", "changes"), WRONG, ids=[f"{field}-{n}" for n, (field, _) in enumerate(WRONG)]
)
@pytest.mark.parametrize("what", MOVES)
async def test_a_wrong_field_is_named_and_leaves_no_trace(
    shop: Shop, what: str, field: str, changes: dict[str, Any]
) -> None:
    amount = money_pb2.Money(amount_minor=1, currency="GBP")
    request = MOVES[what][2](
        **{"merchant_id": shop.merchant, "payment_id": "pay_1", "amount": amount, **changes}
    )
    before = shop.mesh.footprint()
    rpc = getattr(shop.stub, MOVES[what][0])
    error = await failure_of(rpc(request, metadata=with_key("m1")))
    assert (error.kind, [v.field for v in error.violations]) == (Kind.INVALID, [field])
    (result,) = await shop.move_all(what, ("m1", request))
    assert [v.field for v in failure_error(result.failure).violations] == [field]
    assert (await failure_of(rpc(request))).kind is Kind.INVALID
    assert shop.mesh.footprint() == before


async def test_bug_13_an_increment_of_nothing_or_less_is_refused_and_so_is_one_without_amount(
    shop: Shop,
) -> None:
    payment = await _ready(shop, "increment")
    for amount_minor in (0, -1, -1_000, None):
        error = await failure_of(shop.move("increment", "i1", payment.payment_id, amount_minor))
        assert error.kind is Kind.INVALID
    assert (await shop.get(payment.payment_id)).payment == payment
    assert len(shop.books()) == 1


@pytest.mark.parametrize("what", MOVES)
async def test_bug_7_one_key_50_times_at_once_has_one_effect(shop: Shop, what: str) -> None:
    payment = await _ready(shop, what)
    answers = await asyncio.gather(
        *(shop.insist(lambda: shop.move(what, "m1", payment.payment_id, 10)) for _ in range(50))
    )
    assert all(answer == answers[0] for answer in answers)
    assert sum(f"/{what}/" in (key or "") for key, _, _ in shop.books()) == 1
    error = await failure_of(shop.move(what, "m1", payment.payment_id, 11))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    call = getattr(shop.stub, MOVES[what][0])(
        shop.move_wish(what, payment.payment_id, 10), metadata=with_key("m1")
    )
    await call
    assert await was_replayed(call)


@pytest.mark.parametrize("what", MOVES)
async def test_bug_7_one_key_with_two_bodies_at_once_takes_one_of_them(shop: Shop, what: str) -> None:
    payment = await _ready(shop, what)
    amounts = [10 + n for n in range(10)]
    answers = await asyncio.gather(
        *(shop.move(what, "m1", payment.payment_id, amount) for amount in amounts), return_exceptions=True
    )
    done = [answer for answer in answers if isinstance(answer, pb.Payment)]
    errors = [answer for answer in answers if isinstance(answer, PaymeshCallError)]
    assert len(done) == 1
    assert {error.reason for error in errors} == {"IDEMPOTENCY_KEY_REUSED"}
    events = [
        e
        for e in (await shop.get(payment.payment_id)).events
        if json.loads(e.data_json).get("idempotency_key") == "m1"
    ]
    assert len(events) == 1, "the losers leave nothing"


async def _at_once(shop: Shop, what: str, payment_id: str, amount_minor: int, count: int) -> list[Any]:
    """What each of several callers gets, who keep asking with keys of their own."""

    async def ask(n: int) -> pb.Payment:
        return await shop.insist(lambda: shop.move(what, f"{what}-{n}", payment_id, amount_minor))

    return await asyncio.gather(*(ask(n) for n in range(count)), return_exceptions=True)


async def test_bug_10_of_two_refunds_of_everything_at_once_one_succeeds(shop: Shop) -> None:
    payment = await _ready(shop, "refund")
    answers = await _at_once(shop, "refund", payment.payment_id, 1_000, 2)
    errors = [answer for answer in answers if isinstance(answer, PaymeshCallError)]
    assert [error.reason for error in errors] == ["NOTHING_TO_REFUND"]
    assert [kind for _, kind, _ in shop.books()] == ["AUTHORIZE", "CAPTURE", "REFUND"]
    assert (await shop.get(payment.payment_id)).payment.state == REFUNDED


async def test_bug_11_of_20_captures_at_once_no_more_succeed_than_the_hold_allows(shop: Shop) -> None:
    payment = await _ready(shop, "capture")
    answers = await _at_once(shop, "capture", payment.payment_id, 150, 20)
    assert sum(isinstance(answer, pb.Payment) for answer in answers) == 6
    reasons = {answer.reason for answer in answers if isinstance(answer, PaymeshCallError)}
    assert reasons == {"CAPTURE_EXCEEDS_HOLD"}
    assert _minor((await shop.get(payment.payment_id)).payment) == (1_000, 100, 900, 0)


@pytest.mark.parametrize("what", MOVES)
async def test_bug_12_what_is_under_way_counts_against_what_is_available(shop: Shop, what: str) -> None:
    payment = await _ready(shop, what)
    fault = {"capture": 5, "refund": 6, "increment": 7}[what]
    await shop.arm(3, fault, strikes=1, delay_ms=250)  # type: ignore[arg-type]  # DELAY
    first = asyncio.create_task(shop.move(what, "m1", payment.payment_id, 900))
    await shop.struck()
    busy = (await shop.get(payment.payment_id)).payment
    assert busy.pending.amount_minor == 900
    assert busy.held.amount_minor == (0 if what == "refund" else 1_000), "nothing is known to have moved"
    for other in MOVES:
        error = await failure_of(shop.move(other, f"x-{other}", payment.payment_id, 900))
        assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "IN_PROGRESS")
    assert (await failure_of(shop.void("v1", payment.payment_id))).kind is Kind.IN_PROGRESS
    done = await first
    assert not done.HasField("pending")
    if what != "increment":
        assert (await failure_of(shop.move(what, "m2", payment.payment_id, 900))).kind is Kind.REFUSED


async def test_in_a_batch_each_has_its_own_result_and_one_payment_is_busy_with_the_first(shop: Shop) -> None:
    first, second = await _ready(shop, "capture", "o1"), await _ready(shop, "capture", "o2")
    results = await shop.move_all(
        "capture",
        ("c1", shop.move_wish("capture", first.payment_id, 400)),
        ("c2", shop.move_wish("capture", first.payment_id, 400)),
        ("c3", shop.move_wish("capture", second.payment_id, 1_001)),
        ("c4", shop.move_wish("capture", second.payment_id)),
        ("c1", shop.move_wish("capture", first.payment_id, 400)),
        ("c1", shop.move_wish("capture", first.payment_id, 401)),
        ("c5", shop.move_wish("capture", "pay_unknown", 1)),
    )
    reasons = [failure_error(r.failure).reason if r.HasField("failure") else "" for r in results]
    assert reasons == [
        "",
        "IN_PROGRESS",
        "CAPTURE_EXCEEDS_HOLD",
        "",
        "",
        "IDEMPOTENCY_KEY_REUSED",
        "UNKNOWN_PAYMENT",
    ]
    assert [r.response.payment.state for r in results[:5:3]] == [PARTIALLY_CAPTURED, CAPTURED]
    assert (results[4].response, results[4].replayed) == (results[0].response, True)
    again = await shop.move("capture", "c2", first.payment_id, 400)
    assert again.captured.amount_minor == 800, "its key was free again"


async def test_refusals_name_what_is_left(shop: Shop) -> None:
    payment = await _ready(shop, "capture")
    error = await failure_of(shop.move("capture", "c1", payment.payment_id, 1_001))
    assert (error.reason, error.facts["held_minor"]) == ("CAPTURE_EXCEEDS_HOLD", "1000")
    assert (await failure_of(shop.move("refund", "r1", payment.payment_id))).reason == "NOTHING_TO_REFUND"
    error = await failure_of(shop.move("capture", "c2", payment.payment_id, 1, currency="EUR"))
    assert error.reason == "CURRENCY_MISMATCH"
    await shop.move("capture", "c3", payment.payment_id, 100)
    error = await failure_of(shop.move("refund", "r2", payment.payment_id, 101))
    assert (error.reason, error.facts["refundable_minor"]) == ("REFUND_EXCEEDS_CAPTURED", "100")
    assert (await failure_of(shop.move("increment", "i1", payment.payment_id, 1))).reason == "NOT_AUTHORIZED"
    voided = await shop.authorize("k2", shop.wish("o2"))
    await shop.void("v1", voided.payment_id)
    assert (await failure_of(shop.move("capture", "c4", voided.payment_id))).reason == "NOTHING_TO_CAPTURE"


# The end of an authorization.


async def test_what_is_held_at_the_end_of_an_authorization_is_let_go_and_what_was_captured_stays(
    shop: Shop,
) -> None:
    brief = shop.mesh.another_payment(**QUICK, authorization_seconds="1.2", expire_poll_ms="50")
    async with Shop(shop.mesh, "brief", brief.target) as hurried:
        untouched = await hurried.authorize("k1", hurried.wish("o1"))
        part = await hurried.authorize("k2", hurried.wish("o2"))
        await hurried.move("capture", "c2", part.payment_id, 400)
        expired = await hurried.becomes(untouched.payment_id, EXPIRED)
        captured = await hurried.becomes(part.payment_id, CAPTURED)
        assert _minor(expired) == (1_000, 0, 0, 0)
        assert _minor(captured) == (1_000, 0, 400, 0)
        assert await hurried.story(untouched.payment_id) == [
            "Initiated",
            "Authorized",
            "ExpiryRequested",
            "Expired",
        ]
        assert (
            await failure_of(hurried.move("capture", "c1", untouched.payment_id))
        ).reason == "NOTHING_TO_CAPTURE"
        assert await hurried.void("v1", untouched.payment_id) == expired
        assert (await hurried.move("refund", "r2", part.payment_id)).state == REFUNDED
        assert await hurried.authorize("k1", hurried.wish("o1")) == untouched, "the first answer stands"
        assert (await hurried.authorize("k3", hurried.wish("o1"))).state == AUTHORIZED
        await hurried.void("v3", authorize_key="k3")
        await hurried.mesh.assert_books_agree(hurried.merchant)
    brief.kill()


# The ledger.


async def _plan(shop: Shop, key: str, points: int, fixed: int, currency: str = "GBP") -> ledger_pb2.FeePlan:
    request = ledger_pb2.SetFeePlanRequest(
        merchant_id=shop.merchant,
        currency=currency,
        plan=ledger_pb2.FeePlan(basis_points=points, fixed_minor=fixed),
    )
    return (await shop.ledger.SetFeePlan(request, metadata=with_key(key))).plan


async def _balance(shop: Shop, account: str, currency: str = "GBP") -> int:
    request = ledger_pb2.GetAccountRequest(merchant_id=shop.merchant, account=account, currency=currency)
    return (await shop.ledger.GetAccount(request)).account.balance.amount_minor


async def test_every_account_shows_what_happened_and_the_books_balance(shop: Shop) -> None:
    await _plan(shop, "p1", 290, 30)
    one, two = await _ready(shop, "capture", "o1"), await _ready(shop, "capture", "o2")
    captured = await shop.move("capture", "c1", one.payment_id, 500)
    assert captured.fee.amount_minor == 30 + 15  # 14.5 is rounded half up
    captured = await shop.move("capture", "c2", one.payment_id, 500)
    assert captured.fee.amount_minor == 30 + 29, "the fixed part is due once"
    await shop.move("refund", "r1", one.payment_id, 200)
    due = {
        "holds": 1_000,
        "holds_control": -1_000,
        "processor_receivable": 800,
        "merchant_payable": 59 + 200 - 1_000,
        "fees": -59,
        "cash": 0,
        "suspense": 0,
    }
    assert {account: await _balance(shop, account) for account in due} == due
    trial = await shop.ledger.GetTrialBalance(ledger_pb2.GetTrialBalanceRequest(merchant_id=shop.merchant))
    assert {a.account: a.balance.amount_minor for a in trial.accounts} == {k: v for k, v in due.items() if v}
    assert [(s.currency, s.amount_minor) for s in trial.sums] == [("GBP", 0)]
    for account in trial.accounts:
        assert account.debits.amount_minor - account.credits.amount_minor == account.balance.amount_minor
        assert account.entries > 0
    await shop.void("v2", two.payment_id)
    assert await _balance(shop, "holds") == 0


async def test_entries_are_listed_by_payment_and_account_page_by_page(shop: Shop) -> None:
    payment = await _ready(shop, "capture", "o1")
    await _ready(shop, "capture", "o2")
    await shop.move("capture", "c1", payment.payment_id, 400)
    listed: list[tuple[str, int, str, int]] = []
    token = ""
    while True:
        page = await shop.ledger.ListEntries(
            ledger_pb2.ListEntriesRequest(
                merchant_id=shop.merchant, payment_id=payment.payment_id, page_size=2, page_token=token
            )
        )
        listed += [(e.journal_id, e.line, e.account, e.amount.amount_minor) for e in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert listed == [
        (f"{payment.payment_id}/2", 1, "holds", 1_000),
        (f"{payment.payment_id}/2", 2, "holds_control", -1_000),
        (f"{payment.payment_id}/4", 1, "holds", -400),
        (f"{payment.payment_id}/4", 2, "holds_control", 400),
        (f"{payment.payment_id}/4", 3, "processor_receivable", 400),
        (f"{payment.payment_id}/4", 4, "merchant_payable", -400),
    ]
    holds = await shop.ledger.ListEntries(
        ledger_pb2.ListEntriesRequest(merchant_id=shop.merchant, account="holds")
    )
    assert [e.amount.amount_minor for e in holds.entries] == [1_000, -400, 1_000]
    assert holds.entries[0].posted_at.ToMilliseconds() > 0


async def test_a_fee_plan_is_set_once_per_key_and_charges_from_then_on(shop: Shop) -> None:
    asked = ledger_pb2.GetFeePlanRequest(merchant_id=shop.merchant, currency="GBP")
    assert (await shop.ledger.GetFeePlan(asked)).plan == ledger_pb2.FeePlan()
    await _plan(shop, "p1", 100, 0)
    await _plan(shop, "p2", 200, 0)
    assert (await _plan(shop, "p1", 100, 0)).basis_points == 100, "a replay"
    assert (await shop.ledger.GetFeePlan(asked)).plan.basis_points == 200, "which changes nothing"
    assert (await _plan(shop, "p3", 300, 5, "EUR")).fixed_minor == 5, "each currency has its own"
    payment = await shop.authorize("k1")
    assert (await shop.move("capture", "c1", payment.payment_id)).fee.amount_minor == 20
    assert (await failure_of(_plan(shop, "p1", 101, 0))).reason == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("GetAccount", ledger_pb2.GetAccountRequest(account="holds", currency="GBP"), "merchant_id"),
        (
            "GetAccount",
            ledger_pb2.GetAccountRequest(merchant_id="m", account="gold", currency="GBP"),
            "account",
        ),
        (
            "GetAccount",
            ledger_pb2.GetAccountRequest(merchant_id="m", account="holds", currency=""),
            "currency",
        ),
        ("ListEntries", ledger_pb2.ListEntriesRequest(), "merchant_id"),
        ("ListEntries", ledger_pb2.ListEntriesRequest(merchant_id="m", account="x"), "account"),
        ("ListEntries", ledger_pb2.ListEntriesRequest(merchant_id="m", payment_id="p" * 65), "payment_id"),
        ("ListEntries", ledger_pb2.ListEntriesRequest(merchant_id="m", page_size=1_001), "page_size"),
        ("ListEntries", ledger_pb2.ListEntriesRequest(merchant_id="m", page_token="nonsense"), "page_token"),
        ("ListEntries", ledger_pb2.ListEntriesRequest(merchant_id="m", page_token="a/99999"), "page_token"),
        ("GetTrialBalance", ledger_pb2.GetTrialBalanceRequest(), "merchant_id"),
        ("GetFeePlan", ledger_pb2.GetFeePlanRequest(merchant_id="m", currency="pound"), "currency"),
        ("SetFeePlan", ledger_pb2.SetFeePlanRequest(currency="GBP"), "merchant_id"),
        ("SetFeePlan", ledger_pb2.SetFeePlanRequest(merchant_id="m"), "currency"),
        (
            "SetFeePlan",
            ledger_pb2.SetFeePlanRequest(
                merchant_id="m", currency="GBP", plan=ledger_pb2.FeePlan(basis_points=10_001)
            ),
            "plan.basis_points",
        ),
        (
            "SetFeePlan",
            ledger_pb2.SetFeePlanRequest(
                merchant_id="m", currency="GBP", plan=ledger_pb2.FeePlan(fixed_minor=-1)
            ),
            "plan.fixed_minor",
        ),
    ],
)
async def test_a_wrong_field_of_a_ledger_call_is_named(
    shop: Shop, rpc: str, request_: Any, field: str
) -> None:
    error = await failure_of(getattr(shop.ledger, rpc)(request_, metadata=with_key("p1")))
    assert (error.kind, [v.field for v in error.violations]) == (Kind.INVALID, [field])


@pytest.mark.parametrize(
    "change",
    [
        "captured_minor = 1001",
        "refunded_minor = 401",
        "settled_minor = 401",
        "fee_minor = 401",
        "captured_minor = -1",
        "captured_minor = 0",
        "pending_minor = 1",
        "state = 'CAPTURING', pending_minor = 601",
        "state = 'REFUNDING', pending_minor = 401",
        "state = 'CAPTURING'",
        "pending_final = true",
        "expiring = true",
        "incremented_minor = 1000000000000",
        "unknown_outcome = 'CAPTURE'",
        "state = 'LOST'",
    ],
)
async def test_the_database_itself_refuses_amounts_that_cannot_be(shop: Shop, change: str) -> None:
    payment = await _ready(shop, "capture")
    await shop.move("capture", "c1", payment.payment_id, 400)
    with pytest.raises(psycopg.errors.CheckViolation):
        shop.mesh.on_payment(f"UPDATE payments SET {change} WHERE payment_id = %s", payment.payment_id)


async def test_a_void_of_an_untouched_payment_is_as_it_was(shop: Shop) -> None:
    payment = await _ready(shop, "capture")
    assert (await shop.void("v1", payment.payment_id)).state == VOIDED


async def _as_saga(shop: Shop, rpc: str, key: str, wish: Any, caller: str = "orchestrator") -> pb.Payment:
    metadata = (*with_key(key), ("paymesh-caller", caller))
    answer = await getattr(shop.stub, rpc)(wish, metadata=metadata)
    payment: pb.Payment = answer.payment
    return payment


@pytest.mark.parametrize("what", ["capture", "refund", "increment", "void"])
async def test_the_money_of_an_order_is_moved_by_its_sagas_alone(shop: Shop, what: str) -> None:
    """Nobody else moves it, with a name or a key that looks like it or with their neighbours in a set; and the sagas
    find it as they left it."""
    number = uuid.uuid4().hex
    order_id, saga = f"ord_{number}", f"saga_{number}"
    held = await _as_saga(shop, "AuthorizePayment", f"{saga}/authorize", shop.wish(order_id))
    if what == "refund":
        wish = shop.move_wish("capture", held.payment_id)
        held = await _as_saga(shop, "CapturePayment", f"{saga}/capture", wish)
    own = await _ready(shop, what)
    name, wish = (
        ("VoidPayment", shop.void_wish(held.payment_id))
        if what == "void"
        else (MOVES[what][0], shop.move_wish(what, held.payment_id, 100))
    )
    events = len((await shop.get(held.payment_id)).events)
    for caller, key in (("orchestrator", "k-1"), ("shop", f"{saga}/{what}"), ("orchestrator", f"{saga}")):
        for _ in range(2):
            error = await failure_of(
                getattr(shop.stub, name)(wish, metadata=(*with_key(key), ("paymesh-caller", caller)))
            )
            assert (error.kind, error.reason) == (Kind.REFUSED, "PAYMENT_OF_AN_ORDER")
            assert error.facts == {"payment_id": held.payment_id, "order_id": order_id}
            assert "ReturnOrder" in str(error)
    if what != "void":
        neighbours = await shop.move_all(
            what, ("n-1", wish), ("n-2", shop.move_wish(what, own.payment_id, 100))
        )
        assert [failure_error(r.failure).reason if r.HasField("failure") else "" for r in neighbours] == [
            "PAYMENT_OF_AN_ORDER",
            "",
        ]
    assert len((await shop.get(held.payment_id)).events) == events
    moved = await _as_saga(shop, name, f"saga_{uuid.uuid4().hex}/{what}", wish)
    assert moved.version == events + 2


@pytest.mark.parametrize("key", ["k-1", "saga_{}/authorize", "saga_1/authorize"])
async def test_a_reference_that_looks_like_an_order_leaves_a_payment_to_its_caller(
    shop: Shop, key: str
) -> None:
    number = uuid.uuid4().hex
    payment = await shop.authorize(key.format(number), shop.wish(f"ord_{number}"))
    captured = await shop.move("capture", "c-1", payment.payment_id, 600)
    assert _minor(captured) == (1_000, 400, 600, 0)
    await shop.move("refund", "r-1", payment.payment_id)
    assert _minor(await shop.void("v-1", payment.payment_id)) == (1_000, 0, 600, 600)
