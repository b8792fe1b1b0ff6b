"""Wrong input, at every RPC and field: the answer names the field and says what is wrong, and not a row changes in any
database of the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from paymesh.bank.v1 import bank_pb2
from paymesh.channel import with_key
from paymesh.errors import Kind, failure_error
from paymesh.fraud.v1 import fraud_pb2
from paymesh.inventory.v1 import inventory_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.payment.v1 import payment_pb2
from paymesh.shipping.v1 import shipping_pb2
from tests.orders import Shop, batch, new_key, new_merchant, order, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

INT64_MAX = 2**63 - 1
METHOD = "/paymesh.orchestrator.v1.OrchestratorService/"
MODULES = (pb, payment_pb2, inventory_pb2, shipping_pb2, fraud_pb2, bank_pb2)

Change = Callable[[pb.PlaceOrderRequest], Any]


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def nothing_changes(shop: Shop) -> AsyncIterator[None]:
    """Around every test of this file."""
    before = await shop.everything()
    yield
    assert await shop.everything() == before


def _set(**values: Any) -> Change:
    """Sets fields by dotted names with __ for dots; None clears the top field."""

    def change(request: pb.PlaceOrderRequest) -> None:
        for path, value in values.items():
            *parents, name = path.split("__")
            target: Any = request
            for parent in parents:
                target = getattr(target, parent)
            if value is None:
                target.ClearField(name)
            else:
                setattr(target, name, value)

    return change


def _lines(*lines: tuple[str, int]) -> Change:
    def change(request: pb.PlaceOrderRequest) -> None:
        del request.lines[:]
        request.lines.extend(pb.OrderLine(sku=sku, quantity=quantity) for sku, quantity in lines)

    return change


def _street(*lines: str) -> Change:
    return lambda request: request.shipping_address.street_lines.extend(lines)


WRONG_ORDERS: list[tuple[str, Change, set[str]]] = [
    ("merchant missing", _set(merchant_id=None), {"merchant_id"}),
    ("merchant too long", _set(merchant_id="m" * 65), {"merchant_id"}),
    ("merchant with NUL", _set(merchant_id="mer\0chant"), {"merchant_id"}),
    ("reference too long", _set(order_reference="r" * 65), {"order_reference"}),
    ("reference with NUL", _set(order_reference="\0"), {"order_reference"}),
    ("no lines", _lines(), {"lines"}),
    ("1,001 lines", _lines(*[("cup", 1)] * 1_001), {"lines"}),
    ("sku missing", _lines(("cup", 1), ("", 1)), {"lines[1].sku"}),
    ("sku too long", _lines(("s" * 65, 1)), {"lines[0].sku"}),
    ("sku with NUL", _lines(("cu\0p", 1)), {"lines[0].sku"}),
    ("quantity zero", _lines(("cup", 0)), {"lines[0].quantity"}),
    ("quantity negative", _lines(("cup", -1)), {"lines[0].quantity"}),
    ("quantity above the limit", _lines(("cup", 1_000_001)), {"lines[0].quantity"}),
    ("quantity absurd", _lines(("cup", 1), ("cup", INT64_MAX)), {"lines[1].quantity"}),
    ("amount missing", _set(amount=None), {"amount.amount_minor", "amount.currency"}),
    ("amount zero", _set(amount__amount_minor=0), {"amount.amount_minor"}),
    ("amount negative", _set(amount__amount_minor=-2_500), {"amount.amount_minor"}),
    ("amount above the limit", _set(amount__amount_minor=10**12 + 1), {"amount.amount_minor"}),
    ("amount absurd", _set(amount__amount_minor=INT64_MAX), {"amount.amount_minor"}),
    ("currency missing", _set(amount__currency=""), {"amount.currency"}),
    ("currency unknown", _set(amount__currency="ZZZ"), {"amount.currency"}),
    ("currency in lower case", _set(amount__currency="usd"), {"amount.currency"}),
    ("card missing", _set(card=None), {"card.token"}),
    ("token too long", _set(card__token="t" * 129), {"card.token"}),
    ("token with NUL", _set(card__token="tok_visa\0"), {"card.token"}),
    ("bin too short", _set(card__bin="42424"), {"card.bin"}),
    ("bin too long", _set(card__bin="424242424"), {"card.bin"}),
    ("bin of letters", _set(card__bin="42424x"), {"card.bin"}),
    ("bin of other digits", _set(card__bin="٤٢٤٢٤٢"), {"card.bin"}),
    ("customer too long", _set(customer__customer_id="c" * 65), {"customer.customer_id"}),
    ("email too long", _set(customer__email="e" * 201), {"customer.email"}),
    ("email with NUL", _set(customer__email="a\0@example.com"), {"customer.email"}),
    ("address that is none", _set(customer__ip_address="10.0.0.256"), {"customer.ip_address"}),
    ("billing country by name", _set(customer__billing_country="Britain"), {"customer.billing_country"}),
    (
        "shipping address missing",
        _set(shipping_address=None),
        {"shipping_address.name", "shipping_address.country"},
    ),
    ("name too long", _set(shipping_address__name="n" * 201), {"shipping_address.name"}),
    ("country in lower case", _set(shipping_address__country="gb"), {"shipping_address.country"}),
    ("country of three letters", _set(shipping_address__country="GBR"), {"shipping_address.country"}),
    ("city too long", _set(shipping_address__city="c" * 201), {"shipping_address.city"}),
    ("city with NUL", _set(shipping_address__city="Yo\0rk"), {"shipping_address.city"}),
    ("postal code too long", _set(shipping_address__postal_code="1" * 33), {"shipping_address.postal_code"}),
    ("eleven street lines", _street(*["x"] * 11), {"shipping_address.street_lines"}),
    ("street line too long", _street("1 High Street", "x" * 201), {"shipping_address.street_lines[1]"}),
    ("street line with NUL", _street("\0"), {"shipping_address.street_lines[0]"}),
    (
        "much at once",
        lambda request: (_set(amount__amount_minor=-1, card=None)(request), _lines(("", 0))(request)),
        {"amount.amount_minor", "card.token", "lines[0].sku", "lines[0].quantity"},
    ),
]


@pytest.mark.parametrize(("change", "fields"), [pytest.param(c, f, id=name) for name, c, f in WRONG_ORDERS])
async def test_a_wrong_order_is_refused_with_every_field_at_fault(
    shop: Shop, change: Change, fields: set[str]
) -> None:
    request = order(new_merchant())
    change(request)
    single = await refusal(shop.orders.PlaceOrder(request, metadata=with_key(new_key())))
    (result,) = await shop.place_all([(new_key(), request)])
    assert not result.replayed
    for error in (single, failure_error(result.failure)):
        assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_REQUEST")
        assert {violation.field for violation in error.violations} == fields
        assert all(violation.description for violation in error.violations)


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_single_order_without_a_proper_key_is_refused(shop: Shop, key: str) -> None:
    metadata = (("idempotency-key", key),) if key else ()
    error = await refusal(shop.orders.PlaceOrder(order(new_merchant()), metadata=metadata))
    assert error.kind is Kind.INVALID
    assert [violation.field for violation in error.violations] == ["idempotency_key"]


@pytest.mark.parametrize("key", ["", "k" * 256, "clé", "a\nb", "a\0b", "\x7f"])
async def test_an_item_without_a_proper_key_is_refused(shop: Shop, key: str) -> None:
    (result,) = await shop.place_all([(key, order(new_merchant()))])
    error = failure_error(result.failure)
    assert error.kind is Kind.INVALID
    assert [violation.field for violation in error.violations] == ["idempotency_key"]


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_of_none_or_too_many_is_refused_as_a_whole(shop: Shop, count: int) -> None:
    merchant = new_merchant()
    items = [(f"key-{n}", order(merchant)) for n in range(count)]
    error = await refusal(shop.orders.BatchPlaceOrders(batch(items)))
    assert error.kind is Kind.INVALID
    assert [violation.field for violation in error.violations] == ["items"]


async def test_an_item_without_a_request_is_refused(shop: Shop) -> None:
    answer = await shop.orders.BatchPlaceOrders(
        pb.BatchPlaceOrdersRequest(items=[pb.PlaceOrderItem(idempotency_key=new_key())])
    )
    error = failure_error(answer.results[0].failure)
    assert error.kind is Kind.INVALID
    assert "merchant_id" in {violation.field for violation in error.violations}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def _raw(tag: int, payload: bytes) -> bytes:
    return bytes([tag << 3 | 2]) + _varint(len(payload)) + payload


def _order_bytes(**raw_fields: bytes) -> bytes:
    """A good order followed by raw bytes, which a parser takes as later values of the same fields."""
    return order(new_merchant()).SerializeToString() + b"".join(raw_fields.values())


@pytest.mark.parametrize(
    ("rpc", "data", "field"),
    [
        ("PlaceOrder", _order_bytes(merchant=_raw(1, b"mer_\xff")), "(request)"),
        ("PlaceOrder", _order_bytes(reference=_raw(2, b"\xc3\x28")), "(request)"),
        ("PlaceOrder", _order_bytes(lines=_raw(3, _raw(1, b"\xed\xa0\x80"))), "(request)"),
        ("PlaceOrder", b"\x0a\xff", "(request)"),
        ("PlaceOrder", b"not a message at all", "(request)"),
        ("BatchPlaceOrders", _raw(1, _raw(1, b"\xff")), "(request)"),
        ("GetOrder", _raw(1, b"mer_1") + _raw(2, b"ord_\xfe"), "(request)"),
        ("GetSaga", _raw(1, b"\x80"), "(request)"),
        ("ListSagas", _raw(1, b"mer_1") + _raw(4, b"\xff\xff"), "(request)"),
        ("ListOrders", _raw(1, b"mer_1") + _raw(4, b"\xff\xff"), "(request)"),
        # 10^19 has no place in an int64: the wire brings it in as a negative number.
        ("PlaceOrder", _order_bytes(amount=_raw(4, b"\x08" + _varint(10**19))), "amount.amount_minor"),
    ],
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    shop: Shop, rpc: str, data: bytes, field: str
) -> None:
    call = shop.channels["orchestrator"].unary_unary(
        METHOD + rpc, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw
    )
    error = await refusal(call(data, metadata=with_key(new_key())))
    assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_REQUEST")
    assert field in {violation.field for violation in error.violations}


async def _watch(shop: Shop, request: pb.WatchOrderRequest) -> None:
    async for _ in shop.orders.WatchOrder(request):
        pass


@pytest.mark.parametrize(
    ("merchant", "name", "field"),
    [
        ("", "{}_1", "merchant_id"),
        ("m" * 65, "{}_1", "merchant_id"),
        ("m\0", "{}_1", "merchant_id"),
        ("mer_1", "", "{}_id"),
        ("mer_1", "{}_" + "1" * 64, "{}_id"),
        ("mer_1", "{}_\0", "{}_id"),
    ],
)
async def test_reading_needs_a_merchant_and_a_name(shop: Shop, merchant: str, name: str, field: str) -> None:
    an_order = {"merchant_id": merchant, "order_id": name.format("ord")}
    a_saga = {"merchant_id": merchant, "saga_id": name.format("saga")}
    for call, kind in (
        (shop.orders.GetOrder(pb.GetOrderRequest(**an_order)), "order"),
        (_watch(shop, pb.WatchOrderRequest(**an_order)), "order"),
        (shop.orders.GetSaga(pb.GetSagaRequest(**a_saga)), "saga"),
    ):
        error = await refusal(call)
        assert error.kind is Kind.INVALID
        assert [violation.field for violation in error.violations] == [field.format(kind)]


@pytest.mark.parametrize("name", ["{}_0", "{}_019ab2c4f3d07c61b6a3f2f1d9a4e5b7", "nonsense", "' OR ''='"])
async def test_what_does_not_exist_is_not_found(shop: Shop, name: str) -> None:
    for call, reason in (
        (
            shop.orders.GetOrder(pb.GetOrderRequest(merchant_id="mer_1", order_id=name.format("ord"))),
            "UNKNOWN_ORDER",
        ),
        (
            _watch(shop, pb.WatchOrderRequest(merchant_id="mer_1", order_id=name.format("ord"))),
            "UNKNOWN_ORDER",
        ),
        (
            shop.orders.GetSaga(pb.GetSagaRequest(merchant_id="mer_1", saga_id=name.format("saga"))),
            "UNKNOWN_SAGA",
        ),
    ):
        error = await refusal(call)
        assert (error.kind, error.reason) == (Kind.NOT_FOUND, reason)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListSagasRequest(), "merchant_id"),
        (pb.ListSagasRequest(merchant_id="m" * 65), "merchant_id"),
        (pb.ListSagasRequest(merchant_id="mer_1", page_size=-1), "page_size"),
        (pb.ListSagasRequest(merchant_id="mer_1", page_size=1_001), "page_size"),
        (pb.ListSagasRequest(merchant_id="mer_1", page_token="\0"), "page_token"),
        (pb.ListSagasRequest(merchant_id="mer_1", page_token="t" * 65), "page_token"),
        (pb.ListSagasRequest(merchant_id="mer_1", states=[pb.SAGA_STATE_UNSPECIFIED]), "states[0]"),
    ],
)
async def test_a_wrong_listing_is_refused(shop: Shop, request_: pb.ListSagasRequest, field: str) -> None:
    error = await refusal(shop.orders.ListSagas(request_))
    assert error.kind is Kind.INVALID
    assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListOrdersRequest(), "merchant_id"),
        (pb.ListOrdersRequest(merchant_id="mer_1", order_reference="r" * 65), "order_reference"),
        (pb.ListOrdersRequest(merchant_id="mer_1", page_size=1_001), "page_size"),
        (pb.ListOrdersRequest(merchant_id="mer_1", page_token="\0"), "page_token"),
    ],
)
async def test_a_wrong_listing_of_orders_is_refused(
    shop: Shop, request_: pb.ListOrdersRequest, field: str
) -> None:
    error = await refusal(shop.orders.ListOrders(request_))
    assert error.kind is Kind.INVALID
    assert [violation.field for violation in error.violations] == [field]


def _methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """(service, method) of every RPC of the mesh."""
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield module.DESCRIPTOR.package.split(".")[1], method


@pytest.mark.parametrize(
    ("service", "method"), [pytest.param(s, m, id=f"{s}-{m.name}") for s, m in _methods()]
)
async def test_no_rpc_of_the_mesh_takes_an_empty_or_broken_request(
    shop: Shop, service: str, method: MethodDescriptor
) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    channel = shop.channels[service]
    send: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = send(path, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)

    async def ask(data: bytes) -> None:
        answer = call(data, metadata=with_key(new_key()))
        if method.server_streaming:
            async for _ in answer:
                pass
        else:
            await answer

    broken = await refusal(ask(b"\x0a\x02\xff\xfe" if method.input_type.fields else b"\x0a\xff"))
    assert (broken.kind, broken.reason) == (Kind.INVALID, "INVALID_REQUEST")
    if method.input_type.fields:
        empty = await refusal(ask(b""))
        assert (empty.kind, empty.reason) == (Kind.INVALID, "INVALID_REQUEST")
        assert empty.violations


@pytest.mark.parametrize(
    ("service", "method"),
    [
        pytest.param(s, m, id=f"{s}-{m.name}")
        for s, m in _methods()
        if m.name.startswith("Batch") and "Lookup" not in m.name
    ],
)
async def test_no_batch_of_the_mesh_takes_items_without_a_key_or_too_many(
    shop: Shop, service: str, method: MethodDescriptor
) -> None:
    item_type = method.input_type.fields_by_name["items"].message_type
    assert item_type is not None
    request_type = message_factory.GetMessageClass(method.input_type)
    response_type = message_factory.GetMessageClass(
        descriptor_pool.Default().FindMessageTypeByName(method.output_type.full_name)
    )
    assert "idempotency_key" in item_type.fields_by_name
    call: Any = shop.channels[service].unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )

    def items(count: int) -> Message:
        request: Any = request_type()
        for _ in range(count):
            request.items.add()
        return request  # type: ignore[no-any-return]  # a message made at run time

    (result,) = (await call(items(1))).results
    error = failure_error(result.failure)
    assert error.kind is Kind.INVALID
    assert [violation.field for violation in error.violations] == ["idempotency_key"]
    too_many = await refusal(call(items(1_001)))
    assert [violation.field for violation in too_many.violations] == ["items"]
