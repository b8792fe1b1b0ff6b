"""Payment as a real process between real neighbours (fraud, the sandbox bank, PostgreSQL, Valkey) on a good day: what
callers are told, what a repeat is told, and what is refused without a trace.

One set of processes serves all tests; each test is a merchant of its own, and after each one payment's books are
compared with the bank's. What goes wrong on the way to the bank is in test_payment_unknown_outcomes.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.channel import open_channel, was_replayed, with_key
from paymesh.errors import Kind, PaymeshCallError
from paymesh.fraud.v1 import fraud_pb2
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import events_pb2
from paymesh.payment.v1 import payment_pb2 as pb
from paymesh.payment.v1.payment_pb2_grpc import PaymentServiceStub
from paymesh.result.v1 import failure_pb2
from sandbox.bank.cards import CARDS
from tests.conftest import Services
from tests.payment_mesh import (
    AUTHORIZED,
    DECLINED,
    REJECTED,
    VOIDED,
    PaymentMesh,
    Shop,
    failure_of,
)

SERVICE = "/paymesh.payment.v1.PaymentService"


@pytest.fixture(scope="module")
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path_factory.mktemp("payment"))
    mesh = PaymentMesh.start(services, valkey.url, {}, resolve_first_ms="20", resolve_poll_ms="20")
    yield mesh
    mesh.close()
    services.stop()


@pytest_asyncio.fixture
async def shop(mesh: PaymentMesh, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with Shop(mesh, request.node.name) as shop:
        yield shop
        await mesh.assert_books_agree(shop.merchant)


async def test_a_payment_is_authorized_then_voided_and_tells_its_story(shop: Shop) -> None:
    held = await shop.authorize(
        "k1", shop.wish("o1", 1_234, customer_id="c1", email="a@b.example", ip_address="::1")
    )
    assert held.payment_id.startswith("pay_")
    assert (held.merchant_id, held.order_id, held.state) == (shop.merchant, "o1", AUTHORIZED)
    assert held.amount == held.held == money_pb2.Money(amount_minor=1_234, currency="GBP")
    assert (len(held.auth_code), held.decline_reason, held.version) == (6, "", 2)
    assert held.processor_reference.startswith("auth_")
    assert (await shop.get(held.payment_id)).payment == held

    voided = await shop.void("v1", held.payment_id, note="changed his mind")
    assert (voided.state, voided.held.amount_minor, voided.amount) == (VOIDED, 0, held.amount)
    story = await shop.get(held.payment_id)
    assert story.payment == voided
    assert [(event.version, event.type) for event in story.events] == [
        (1, "PaymentInitiated"),
        (2, "PaymentAuthorized"),
        (3, "PaymentVoidRequested"),
        (4, "PaymentVoided"),
    ]
    assert "changed his mind" in story.events[2].data_json
    assert shop.books() == [
        (f"{held.payment_id}/authorize", "AUTHORIZE", "APPROVED"),
        (f"{held.payment_id}/void/3", "VOID", "VOIDED"),
    ]


async def test_what_is_announced_is_what_was_answered(shop: Shop) -> None:
    held = await shop.authorize("k1", shop.wish("o1"))
    voided = await shop.void("v1", held.payment_id)
    declined = await shop.authorize("k2", shop.wish("o2", token="tok_declined"))
    announced = shop.mesh.on_payment(
        "SELECT type, payload FROM outbox WHERE merchant_id = %s ORDER BY outbox_id", shop.merchant
    )
    assert [(type_, bytes(payload)) for type_, payload in announced] == [
        (event.DESCRIPTOR.full_name, event.SerializeToString())
        for event in (
            events_pb2.PaymentAuthorized(payment=held),
            events_pb2.PaymentVoided(payment=voided),
            events_pb2.PaymentDeclined(payment=declined),
        )
    ]


@pytest.mark.parametrize("currency", ["JPY", "KWD", "EUR"])
async def test_amounts_are_whole_minor_units_in_every_currency(shop: Shop, currency: str) -> None:
    held = await shop.authorize("k1", shop.wish(currency=currency, amount_minor=1))
    assert held.held == money_pb2.Money(amount_minor=1, currency=currency)


@pytest.mark.parametrize("card", [card for card in CARDS if card.decline_reason], ids=lambda card: card.token)
async def test_a_card_that_declines_makes_a_declined_payment(shop: Shop, card: Any) -> None:
    declined = await shop.authorize("k1", shop.wish(token=card.token))
    assert (declined.state, declined.decline_reason) == (DECLINED, card.decline_reason)
    assert (declined.held.amount_minor, declined.auth_code) == (0, "")
    again = await shop.authorize("k2", shop.wish())
    assert again.state == AUTHORIZED, "the order may be paid with another card"


@pytest.mark.parametrize(
    "card", [c for c in CARDS if not c.decline_reason and not c.delay_ms], ids=lambda c: c.token
)
async def test_a_card_that_approves_makes_an_authorized_payment(shop: Shop, card: Any) -> None:
    assert (await shop.authorize("k1", shop.wish(token=f"{card.token}_7"))).state == AUTHORIZED


async def test_an_unknown_card_is_declined(shop: Shop) -> None:
    declined = await shop.authorize("k1", shop.wish(token="4242424242424242"))
    assert (declined.state, declined.decline_reason) == (DECLINED, "INVALID_CARD")


async def test_a_customer_on_the_block_list_is_rejected_and_the_bank_is_not_asked(shop: Shop) -> None:
    entry = fraud_pb2.AddListEntryRequest(
        merchant_id=shop.merchant,
        kind=fraud_pb2.LIST_KIND_BLOCK,
        subject=fraud_pb2.LIST_SUBJECT_EMAIL,
        value="thief@example.com",
    )
    await shop.fraud.AddListEntry(entry, metadata=with_key("block"))
    rejected = await shop.authorize("k1", shop.wish(email="Thief@example.com"))
    assert (rejected.state, rejected.decline_reason) == (REJECTED, "FRAUD_BLOCK_LIST")
    assert (rejected.fraud_score_milli, rejected.held.amount_minor) == (1_000, 0)
    assert await shop.authorize("k1", shop.wish(email="Thief@example.com")) == rejected
    assert shop.books() == []
    assert (await shop.void("v1", rejected.payment_id)).state == REJECTED, "holds nothing, stays as it is"
    assert (await shop.authorize("k2", shop.wish(email="honest@example.com"))).state == AUTHORIZED


async def test_a_suspicious_payment_that_passes_keeps_its_score(shop: Shop) -> None:
    wish = shop.wish(billing_country="GB")
    wish.card.bin = "40000025"
    held = await shop.authorize("k1", wish)
    assert (held.state, held.fraud_score_milli) == (AUTHORIZED, 250)


async def test_a_repeat_returns_the_first_answer_even_when_the_payment_has_moved_on(shop: Shop) -> None:
    held = await shop.authorize("k1")
    voided = await shop.void("v1", held.payment_id)
    declined = await shop.authorize("k2", shop.wish("o2", token="tok_declined"))
    call = shop.stub.AuthorizePayment(shop.wish(), metadata=with_key("k1"))
    assert (await call).payment == held
    assert await was_replayed(call)
    undo = shop.stub.VoidPayment(shop.void_wish(held.payment_id), metadata=with_key("v1"))
    assert (await undo).payment == voided
    assert await was_replayed(undo)
    assert await shop.authorize("k2", shop.wish("o2", token="tok_declined")) == declined
    results = await shop.authorize_all(("k1", shop.wish()), ("k3", shop.wish("o3")))
    assert [r.replayed for r in results] == [True, False]
    assert results[0].response.payment == held
    assert len(shop.books()) == 4


async def test_one_key_50_times_at_once_is_one_authorization(shop: Shop) -> None:
    async with open_channel(shop.mesh.payment.target, caller="shop") as other:
        stubs = [shop.stub, PaymentServiceStub(other)]
        calls = [stubs[n % 2].AuthorizePayment(shop.wish(), metadata=with_key("same")) for n in range(50)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    paid = [answer.payment for answer in answers if isinstance(answer, pb.AuthorizePaymentResponse)]
    waiting = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(paid) + len(waiting) == 50
    assert paid
    assert all(error.code() is grpc.StatusCode.ABORTED for error in waiting), (
        "told to ask again, nothing else"
    )
    first = await shop.insist(lambda: shop.authorize("same"))
    assert all(payment == first for payment in paid)
    assert shop.books() == [(f"{first.payment_id}/authorize", "AUTHORIZE", "APPROVED")]
    assert shop.rows() == [(first.payment_id, "AUTHORIZED")]


async def test_one_void_50_times_at_once_is_one_void(shop: Shop) -> None:
    held = await shop.authorize("k1")
    keys = ["same"] * 25 + [f"v{n}" for n in range(25)]

    async def void(key: str) -> pb.Payment:
        return await shop.insist(lambda: shop.void(key, held.payment_id))

    answers = await asyncio.gather(*(void(key) for key in keys))
    assert {answer.state for answer in answers} == {VOIDED}
    assert [kind for _, kind, _ in shop.books()] == ["AUTHORIZE", "VOID"]
    assert len((await shop.get(held.payment_id)).events) == 4


async def test_one_key_with_another_body_is_refused_and_the_loser_changes_nothing(shop: Shop) -> None:
    others = [shop.authorize("k1", shop.wish("o1", 1_000 + n)) for n in range(20)]
    answers = await asyncio.gather(*others, return_exceptions=True)
    (won,) = [answer for answer in answers if isinstance(answer, pb.Payment)]
    lost = [answer for answer in answers if isinstance(answer, PaymeshCallError)]
    assert {(error.kind, error.reason) for error in lost} == {(Kind.REFUSED, "IDEMPOTENCY_KEY_REUSED")}
    assert len(lost) == 19
    reused = await failure_of(shop.authorize("k1", shop.wish("o2", won.amount.amount_minor)))
    assert reused.reason == "IDEMPOTENCY_KEY_REUSED"
    voided = await shop.void("v1", won.payment_id)
    assert (
        await failure_of(shop.void("v1", won.payment_id, note="another"))
    ).reason == "IDEMPOTENCY_KEY_REUSED"
    assert shop.rows() == [(voided.payment_id, "VOIDED")]


async def test_one_key_twice_in_one_batch_is_one_payment_and_two_equal_answers(shop: Shop) -> None:
    results = await shop.authorize_all(
        ("k1", shop.wish()),
        ("k2", shop.wish("o2", token="tok_declined")),
        ("k1", shop.wish()),
        ("k1", shop.wish("o3")),
    )
    assert [r.failure.reason for r in results] == ["", "", "", "IDEMPOTENCY_KEY_REUSED"]
    assert results[0].response == results[2].response
    assert [r.replayed for r in results] == [False, False, True, False]
    undo = shop.void_wish(results[0].response.payment.payment_id)
    voids = await shop.void_all(("v1", undo), ("v1", undo))
    assert voids[0].response == voids[1].response
    assert [r.replayed for r in voids] == [False, True]
    assert [kind for _, kind, _ in shop.books()] == ["AUTHORIZE", "AUTHORIZE", "VOID"]


async def test_the_same_key_of_another_caller_or_merchant_is_another_key(shop: Shop) -> None:
    first = await shop.authorize("k1")
    other = await shop.stub.AuthorizePayment(
        shop.wish("o2"), metadata=(*with_key("k1"), ("paymesh-caller", "other"))
    )
    assert other.payment.payment_id != first.payment_id
    async with Shop(shop.mesh, "another merchant") as another:
        assert (await another.authorize("k1")).payment_id != first.payment_id
        assert (await failure_of(another.void("v1", first.payment_id))).kind is Kind.NOT_FOUND
        assert (await failure_of(another.get(first.payment_id))).kind is Kind.NOT_FOUND
        page = await another.stub.ListPayments(pb.ListPaymentsRequest(merchant_id=another.merchant))
        assert [p.merchant_id for p in page.payments] == [another.merchant]


async def test_an_order_is_paid_once_whatever_the_key(shop: Shop) -> None:
    held = await shop.authorize("k1")
    for _ in range(2):
        error = await failure_of(shop.authorize("k2"))
        assert (error.kind, error.reason) == (Kind.REFUSED, "ORDER_ALREADY_PAID")
    results = await shop.authorize_all(
        ("k3", shop.wish("o3")), ("k4", shop.wish("o3")), ("k5", shop.wish("o5"))
    )
    assert [r.failure.reason for r in results] == ["", "ORDER_ALREADY_PAID", ""]
    await shop.void("v1", held.payment_id)
    assert (await failure_of(shop.authorize("k2"))).reason == "ORDER_ALREADY_PAID", "a refusal replays"
    assert (await shop.authorize("k6")).state == AUTHORIZED, "after the void the order may be paid again"


async def test_50_keys_at_once_for_one_order_are_one_payment(shop: Shop) -> None:
    answers = await asyncio.gather(*(shop.authorize(f"k{n}") for n in range(50)), return_exceptions=True)
    lost = [answer.reason for answer in answers if isinstance(answer, PaymeshCallError)]
    assert lost == ["ORDER_ALREADY_PAID"] * 49
    assert len(shop.rows()) == 1


async def test_a_batch_of_1000_is_carried_out_and_each_item_has_its_own_result(shop: Shop) -> None:
    items = [
        (f"k{n}", shop.wish(f"o{n}", 1 + n, f"tok_declined_{n}" if n % 10 == 3 else "")) for n in range(1_000)
    ]
    results = await shop.authorize_all(*items)
    assert [r.response.payment.amount.amount_minor for r in results] == list(range(1, 1_001))
    states = [r.response.payment.state for r in results]
    assert states == [DECLINED if n % 10 == 3 else AUTHORIZED for n in range(1_000)]
    voids = await shop.void_all(*((f"v{n}", shop.void_wish(authorize_key=f"k{n}")) for n in range(1_000)))
    assert [r.response.payment.state for r in voids] == [
        DECLINED if n % 10 == 3 else VOIDED for n in range(1_000)
    ]


async def test_a_void_that_overtakes_its_authorization_bars_it_for_ever(shop: Shop) -> None:
    for key in ("saga/authorize/undo", "saga/authorize/undo", "another"):
        empty = await shop.void(key, authorize_key="saga/authorize")
        assert (empty.state, empty.payment_id, empty.merchant_id) == (VOIDED, "", shop.merchant)
    for _ in range(2):
        error = await failure_of(shop.authorize("saga/authorize"))
        assert (error.kind, error.reason) == (Kind.REFUSED, "UNDONE_BEFORE_ARRIVAL")
    (result,) = await shop.authorize_all(("saga/authorize", shop.wish()))
    assert result.failure.reason == "UNDONE_BEFORE_ARRIVAL"
    assert shop.rows() == []
    assert shop.books() == []
    assert (await shop.authorize("saga2/authorize")).state == AUTHORIZED, "the order itself is not barred"


async def test_a_void_by_key_finds_the_payment_and_a_repeat_of_the_authorization_stays_harmless(
    shop: Shop,
) -> None:
    held = await shop.authorize("saga/authorize")
    voided = await shop.void("saga/authorize/undo", authorize_key="saga/authorize")
    assert (voided.payment_id, voided.state) == (held.payment_id, VOIDED)
    assert await shop.authorize("saga/authorize") == held, "replayed, not done again"
    assert (await shop.get(held.payment_id)).payment == voided


async def test_a_void_by_the_key_of_a_refused_authorization_has_nothing_to_void(shop: Shop) -> None:
    held = await shop.authorize("k1")
    await failure_of(shop.authorize("k2"))
    empty = await shop.void("v1", authorize_key="k2")
    assert (empty.state, empty.payment_id) == (VOIDED, "")
    assert (await shop.get(held.payment_id)).payment == held


async def test_authorizations_and_their_undos_at_once_leave_nothing_held(shop: Shop) -> None:
    async def authorize(n: int) -> None:
        try:
            await shop.authorize(f"k{n}", shop.wish(f"o{n}"))
        except PaymeshCallError as error:
            if error.reason not in ("UNDONE_BEFORE_ARRIVAL", "IN_PROGRESS"):
                raise

    async def undo(n: int) -> None:
        answer = await shop.insist(lambda: shop.void(f"v{n}", authorize_key=f"k{n}"))
        assert answer.state == VOIDED

    await asyncio.gather(*(work(n) for n in range(100) for work in (authorize, undo)))
    assert {state for _, state in shop.rows()} <= {"VOIDED"}


async def test_what_holds_nothing_is_returned_by_a_void_as_it_is(shop: Shop) -> None:
    declined = await shop.authorize("k1", shop.wish(token="tok_declined"))
    assert await shop.void("v1", declined.payment_id) == declined
    assert await shop.void("v2", authorize_key="k1") == declined
    held = await shop.authorize("k2")
    voided = await shop.void("v3", held.payment_id)
    assert await shop.void("v4", held.payment_id) == voided, "a second void changes nothing"
    assert [kind for _, kind, _ in shop.books()] == ["AUTHORIZE", "AUTHORIZE", "VOID"]


async def test_payments_are_listed_newest_first_by_pages(shop: Shop) -> None:
    results = await shop.authorize_all(*((f"k{n}", shop.wish(f"o{n}")) for n in range(5)))
    await shop.void("v", results[4].response.payment.payment_id)
    again = await shop.authorize("k5", shop.wish("o4"))
    listed: list[str] = []
    token = ""
    while True:
        request = pb.ListPaymentsRequest(merchant_id=shop.merchant, page_size=2, page_token=token)
        page = await shop.stub.ListPayments(request)
        listed += [p.payment_id for p in page.payments]
        token = page.next_page_token
        if not token:
            break
    assert listed == [
        again.payment_id,
        *sorted((r.response.payment.payment_id for r in results), reverse=True),
    ]
    of_one = await shop.stub.ListPayments(pb.ListPaymentsRequest(merchant_id=shop.merchant, order_id="o4"))
    assert [p.state for p in of_one.payments] == [AUTHORIZED, VOIDED]


_GBP = money_pb2.Money(amount_minor=1, currency="GBP")
_CARD = pb.Card(token="tok_visa")


def _wish(**changes: object) -> pb.AuthorizePaymentRequest:
    right: dict[str, object] = {"merchant_id": "wrong input", "order_id": "o", "amount": _GBP, "card": _CARD}
    return pb.AuthorizePaymentRequest(**(right | changes))  # type: ignore[arg-type]


def _amount(amount_minor: int, currency: str = "GBP") -> pb.AuthorizePaymentRequest:
    return _wish(amount=money_pb2.Money(amount_minor=amount_minor, currency=currency))


def _customer(**fields: str) -> pb.AuthorizePaymentRequest:
    return _wish(customer=pb.Customer(**fields))


WRONG_WISHES = [
    (_wish(merchant_id=""), "merchant_id"),
    (_wish(merchant_id="m" * 65), "merchant_id"),
    (_wish(merchant_id="m\x00"), "merchant_id"),
    (_wish(order_id=""), "order_id"),
    (_wish(order_id="o" * 65), "order_id"),
    (_wish(order_id="\x00"), "order_id"),
    (_wish(amount=None), "amount.amount_minor"),
    (_amount(0), "amount.amount_minor"),
    (_amount(-1), "amount.amount_minor"),
    (_amount(10**12 + 1), "amount.amount_minor"),
    (_amount(2**63 - 1), "amount.amount_minor"),
    (_amount(-(2**63)), "amount.amount_minor"),
    (_amount(1, ""), "amount.currency"),
    (_amount(1, "gbp"), "amount.currency"),
    (_amount(1, "XXX"), "amount.currency"),
    (_amount(1, "XAU"), "amount.currency"),
    (_amount(1, "G\x00P"), "amount.currency"),
    (_wish(card=None), "card.token"),
    (_wish(card=pb.Card(token="t" * 129)), "card.token"),
    (_wish(card=pb.Card(token="\x00")), "card.token"),
    (_wish(card=pb.Card(token="t", bin="42424")), "card.bin"),
    (_wish(card=pb.Card(token="t", bin="424242424")), "card.bin"),
    (_wish(card=pb.Card(token="t", bin="٤٢٤٢٤٢")), "card.bin"),
    (_customer(customer_id="c" * 65), "customer.customer_id"),
    (_customer(customer_id="\x00"), "customer.customer_id"),
    (_customer(email="e" * 200 + "@b"), "customer.email"),
    (_customer(email="a@b\x00"), "customer.email"),
    (_customer(email="nobody"), "customer.email"),
    (_customer(email="@example.com"), "customer.email"),
    (_customer(email="somebody@"), "customer.email"),
    (_customer(ip_address="1.2.3.4.5"), "customer.ip_address"),
    (_customer(ip_address="1.2.3.4\x00"), "customer.ip_address"),
    (_customer(ip_address="fe80::1%eth0"), "customer.ip_address"),
    (_customer(ip_address="1" * 1_000_000), "customer.ip_address"),
    (_customer(billing_country="gb"), "customer.billing_country"),
    (_customer(billing_country="GBR"), "customer.billing_country"),
    (_customer(billing_country="G\x00"), "customer.billing_country"),
]


@pytest.mark.parametrize(("wish", "field"), WRONG_WISHES)
async def test_a_wrong_field_of_an_authorization_is_named_and_changes_nothing(
    shop: Shop, wish: pb.AuthorizePaymentRequest, field: str
) -> None:
    before = shop.mesh.footprint()
    error = await failure_of(shop.authorize("k1", wish))
    assert error.kind is Kind.INVALID
    assert field in [violation.field for violation in error.violations]
    (result,) = await shop.authorize_all(("k1", wish))
    assert result.failure.kind == failure_pb2.KIND_INVALID
    assert field in [violation.field for violation in result.failure.violations]
    assert shop.mesh.footprint() == before


WRONG_VOIDS = [
    (pb.VoidPaymentRequest(payment_id="pay_1"), "merchant_id"),
    (pb.VoidPaymentRequest(merchant_id="m" * 65, payment_id="pay_1"), "merchant_id"),
    (pb.VoidPaymentRequest(merchant_id="m\x00", payment_id="pay_1"), "merchant_id"),
    (pb.VoidPaymentRequest(merchant_id="m"), "payment_id"),
    (pb.VoidPaymentRequest(merchant_id="m", payment_id=""), "payment_id"),
    (pb.VoidPaymentRequest(merchant_id="m", payment_id="p" * 65), "payment_id"),
    (pb.VoidPaymentRequest(merchant_id="m", payment_id="\x00"), "payment_id"),
    (pb.VoidPaymentRequest(merchant_id="m", authorize_key=""), "authorize_key"),
    (pb.VoidPaymentRequest(merchant_id="m", authorize_key="k" * 256), "authorize_key"),
    (pb.VoidPaymentRequest(merchant_id="m", authorize_key="k\x00"), "authorize_key"),
    (pb.VoidPaymentRequest(merchant_id="m", authorize_key="ключ"), "authorize_key"),
    (pb.VoidPaymentRequest(merchant_id="m", payment_id="pay_1", note="n" * 201), "note"),
    (pb.VoidPaymentRequest(merchant_id="m", payment_id="pay_1", note="\x00"), "note"),
]


@pytest.mark.parametrize(("wish", "field"), WRONG_VOIDS)
async def test_a_wrong_field_of_a_void_is_named_and_changes_nothing(
    shop: Shop, wish: pb.VoidPaymentRequest, field: str
) -> None:
    before = shop.mesh.footprint()
    error = await failure_of(shop.stub.VoidPayment(wish, metadata=with_key("v1")))
    assert (error.kind, [violation.field for violation in error.violations]) == (Kind.INVALID, [field])
    (result,) = await shop.void_all(("v1", wish))
    assert [violation.field for violation in result.failure.violations] == [field]
    assert shop.mesh.footprint() == before


async def test_wrong_items_cost_their_neighbours_nothing(shop: Shop) -> None:
    items = [(f"k{n}", wish) for n, (wish, _) in enumerate(WRONG_WISHES)]
    results = await shop.authorize_all(
        ("first", shop.wish("o1")), *items, ("last", shop.wish("o2")), ("", shop.wish())
    )
    assert [r.WhichOneof("outcome") for r in results] == [
        "response",
        *["failure"] * len(items),
        "response",
        "failure",
    ]
    assert [v.field for v in results[-1].failure.violations] == ["idempotency_key"]
    assert len(shop.rows()) == 2


def _raw(name: str, data: bytes) -> Callable[[Shop], Awaitable[object]]:
    def call(shop: Shop) -> Awaitable[object]:
        raw: Any = shop.channel.unary_unary(f"{SERVICE}/{name}")
        answer: Awaitable[object] = raw(data, metadata=with_key("k1"))
        return answer

    return call


def _send(name: str, request: Message, key: str | None = "k1") -> Callable[[Shop], Awaitable[object]]:
    metadata = (("idempotency-key", key),) if key is not None else None
    return lambda shop: getattr(shop.stub, name)(request, metadata=metadata)


_VOID = pb.VoidPaymentRequest(merchant_id="m", payment_id="pay_1")
_AUTHORIZE_ITEM = pb.AuthorizePaymentItem(idempotency_key="k1", request=_wish())
_VOID_ITEM = pb.VoidPaymentItem(idempotency_key="v1", request=_VOID)
_TEXT_FIELD_1 = b"\x0a"
_BAD_UTF8 = _TEXT_FIELD_1 + b"\x02\xff\xfe"


def _amount_of(number: int) -> bytes:
    """An AuthorizePaymentRequest with nothing but an amount, which no int64 need hold."""
    varint = b""
    while number > 0x7F:
        varint += bytes([number & 0x7F | 0x80])
        number >>= 7
    money = b"\x08" + varint + bytes([number])
    return b"\x1a" + bytes([len(money)]) + money


WRONG_CALLS = [
    ("no key", _send("AuthorizePayment", _wish(), None), "idempotency_key"),
    ("empty key", _send("AuthorizePayment", _wish(), ""), "idempotency_key"),
    ("long key", _send("AuthorizePayment", _wish(), "k" * 256), "idempotency_key"),
    ("no key", _send("VoidPayment", _VOID, None), "idempotency_key"),
    ("long key", _send("VoidPayment", _VOID, "k" * 256), "idempotency_key"),
    ("empty list", _send("BatchAuthorizePayments", pb.BatchAuthorizePaymentsRequest()), "items"),
    (
        "long list",
        _send("BatchAuthorizePayments", pb.BatchAuthorizePaymentsRequest(items=[_AUTHORIZE_ITEM] * 1_001)),
        "items",
    ),
    ("empty list", _send("BatchVoidPayments", pb.BatchVoidPaymentsRequest()), "items"),
    (
        "long list",
        _send("BatchVoidPayments", pb.BatchVoidPaymentsRequest(items=[_VOID_ITEM] * 1_001)),
        "items",
    ),
    ("no merchant", _send("GetPayment", pb.GetPaymentRequest(payment_id="pay_1")), "merchant_id"),
    ("no payment", _send("GetPayment", pb.GetPaymentRequest(merchant_id="m")), "payment_id"),
    ("NUL", _send("GetPayment", pb.GetPaymentRequest(merchant_id="m", payment_id="\x00")), "payment_id"),
    (
        "long id",
        _send("GetPayment", pb.GetPaymentRequest(merchant_id="m", payment_id="p" * 65)),
        "payment_id",
    ),
    ("no merchant", _send("ListPayments", pb.ListPaymentsRequest()), "merchant_id"),
    (
        "long order",
        _send("ListPayments", pb.ListPaymentsRequest(merchant_id="m", order_id="o" * 65)),
        "order_id",
    ),
    ("NUL", _send("ListPayments", pb.ListPaymentsRequest(merchant_id="m", order_id="\x00")), "order_id"),
    ("NUL", _send("ListPayments", pb.ListPaymentsRequest(merchant_id="m", page_token="\x00")), "page_token"),
    (
        "long page",
        _send("ListPayments", pb.ListPaymentsRequest(merchant_id="m", page_size=1_001)),
        "page_size",
    ),
    (
        "negative page",
        _send("ListPayments", pb.ListPaymentsRequest(merchant_id="m", page_size=-1)),
        "page_size",
    ),
    *(
        (why, _raw(name, data), "(request)")
        for name in ("AuthorizePayment", "VoidPayment", "GetPayment", "ListPayments")
        for why, data in (("bad UTF-8", _BAD_UTF8), ("cut off", b"\x0a\x7fm"))
    ),
    ("bad UTF-8 in an item", _raw("BatchAuthorizePayments", b"\x0a\x04" + _BAD_UTF8), "(request)"),
    ("bad UTF-8 in an item", _raw("BatchVoidPayments", b"\x0a\x04" + _BAD_UTF8), "(request)"),
    ("10^19", _raw("AuthorizePayment", _amount_of(10**19)), "amount.amount_minor"),
    ("10^30", _raw("AuthorizePayment", _amount_of(10**30)), "(request)"),
]


@pytest.mark.parametrize(
    ("call", "field"), [(call, field) for _, call, field in WRONG_CALLS], ids=[w[0] for w in WRONG_CALLS]
)
async def test_a_wrong_call_is_refused_and_changes_nothing(
    shop: Shop, call: Callable[[Shop], Awaitable[object]], field: str
) -> None:
    before = shop.mesh.footprint()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(shop)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert field in (caught.value.details() or "")
    assert shop.mesh.footprint() == before


async def test_unknown_ids_are_not_found_and_nothing_is_stored(shop: Shop) -> None:
    before = shop.mesh.footprint()
    for call in (shop.void("v1", "pay_nobody"), shop.get("pay_nobody")):
        error = await failure_of(call)
        assert (error.kind, error.reason) == (Kind.NOT_FOUND, "UNKNOWN_PAYMENT")
    (result,) = await shop.void_all(("v1", shop.void_wish("pay_nobody")))
    assert result.failure.kind == failure_pb2.KIND_NOT_FOUND
    assert shop.mesh.footprint() == before
    held = await shop.authorize("k1")
    assert (await shop.void("v1", held.payment_id)).state == VOIDED, "the key is free for the right request"
