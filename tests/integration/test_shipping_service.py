"""Shipping as a real process on a real PostgreSQL: book, cancel, dispatch; each takes effect once, however
often and in whatever order the calls arrive. Where calls race, two replicas share one database, so that only the
database can decide."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

import grpc
import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from paymesh.channel import open_channel, was_replayed, with_key
from paymesh.result.v1 import failure_pb2
from paymesh.shipping.v1 import events_pb2
from paymesh.shipping.v1 import shipping_pb2 as pb
from paymesh.shipping.v1.shipping_pb2_grpc import ShippingServiceStub
from tests.conftest import Services

MERCHANT = "mer_1"
HOME = pb.Address(
    name="A. Buyer",
    street_lines=["Flat 2", "1 High Street"],
    city="York",
    postal_code="YO1 7HH",
    country="GB",
)


@pytest.fixture(scope="module")
def module_services(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    services = Services(postgres, tmp_path_factory.mktemp("shipping"))
    yield services
    services.stop()


@pytest.fixture(scope="module")
def targets(module_services: Services) -> tuple[str, str]:
    """Two replicas, which all tests share that neither kill nor configure one."""
    return module_services.start("shipping").target, module_services.start("shipping").target


@pytest.fixture
def services(module_services: Services, targets: tuple[str, str]) -> Services:
    """Services whose database is empty."""
    module_services.empty("shipping")
    return module_services


@pytest_asyncio.fixture
async def stub(services: Services, targets: tuple[str, str]) -> AsyncIterator[ShippingServiceStub]:
    async with open_channel(targets[0], caller="test") as channel:
        yield ShippingServiceStub(channel)


@pytest_asyncio.fixture
async def replicas(
    services: Services, targets: tuple[str, str]
) -> AsyncIterator[tuple[ShippingServiceStub, ShippingServiceStub]]:
    async with (
        open_channel(targets[0], caller="test") as one,
        open_channel(targets[1], caller="test") as two,
    ):
        yield ShippingServiceStub(one), ShippingServiceStub(two)


def _create(order: str, address: pb.Address = HOME, merchant: str = MERCHANT) -> pb.CreateShipmentRequest:
    return pb.CreateShipmentRequest(merchant_id=merchant, order_id=order, address=address)


def _to(country: str) -> pb.Address:
    return pb.Address(name="A. Buyer", country=country)


def _cancel(shipment_id: str) -> pb.CancelShipmentRequest:
    return pb.CancelShipmentRequest(merchant_id=MERCHANT, shipment_id=shipment_id)


def _undo(create_key: str) -> pb.CancelShipmentRequest:
    return pb.CancelShipmentRequest(merchant_id=MERCHANT, create_key=create_key)


def _dispatch(shipment_id: str) -> pb.DispatchShipmentRequest:
    return pb.DispatchShipmentRequest(merchant_id=MERCHANT, shipment_id=shipment_id)


def _batch(*items: tuple[str, pb.CreateShipmentRequest]) -> pb.BatchCreateShipmentsRequest:
    return pb.BatchCreateShipmentsRequest(
        items=[pb.CreateShipmentItem(idempotency_key=key, request=request) for key, request in items]
    )


async def _created(stub: ShippingServiceStub, orders: Iterable[str]) -> list[str]:
    """Ids of new shipments, booked for `orders` under the keys "create/<order>"."""
    results = (
        await stub.BatchCreateShipments(_batch(*((f"create/{o}", _create(o)) for o in orders)))
    ).results
    return [result.response.shipment.shipment_id for result in results]


async def _get(stub: ShippingServiceStub, shipment_id: str) -> pb.Shipment:
    return (
        await stub.GetShipment(pb.GetShipmentRequest(merchant_id=MERCHANT, shipment_id=shipment_id))
    ).shipment


async def _states(services: Services) -> Counter[str]:
    """How many shipments stand in each state."""
    async with await psycopg.AsyncConnection.connect(services.dsn("shipping")) as connection:
        rows = await (
            await connection.execute("SELECT state, count(*) FROM shipments GROUP BY state")
        ).fetchall()
    return Counter(dict(rows))


async def _announced(services: Services) -> list[tuple[str, str, bytes]]:
    """(event, shipment id, payload) of everything announced, in order."""
    async with await psycopg.AsyncConnection.connect(services.dsn("shipping")) as connection:
        query = "SELECT type, aggregate_id, payload FROM outbox ORDER BY outbox_id"
        rows = await (await connection.execute(query)).fetchall()
    return [(type_.rsplit(".", 1)[-1], aggregate_id, bytes(payload)) for type_, aggregate_id, payload in rows]


def _reason(error: object) -> str:
    assert isinstance(error, grpc.aio.AioRpcError), error
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    return (error.details() or "").partition(":")[0]


async def test_a_shipment_is_booked_as_asked_and_reads_back_as_answered(
    stub: ShippingServiceStub, services: Services
) -> None:
    shipment = (await stub.CreateShipment(_create("o1"), metadata=with_key("k1"))).shipment
    assert shipment.shipment_id.startswith("shp_")
    assert len(shipment.tracking_number) == 14
    assert shipment.tracking_number.startswith("PM")
    assert (shipment.merchant_id, shipment.order_id, shipment.address) == (MERCHANT, "o1", HOME)
    assert shipment.state == pb.SHIPMENT_STATE_CREATED
    assert await _get(stub, shipment.shipment_id) == shipment
    event = events_pb2.ShipmentCreated(shipment=shipment)
    assert await _announced(services) == [
        ("ShipmentCreated", shipment.shipment_id, event.SerializeToString()),
    ]


async def test_an_address_keeps_every_character(stub: ShippingServiceStub) -> None:
    address = pb.Address(name='Łucja "Ö\\\n\t😀', street_lines=["", "{}", "a,b"], country="PL")
    shipment = (await stub.CreateShipment(_create("o1", address), metadata=with_key("k1"))).shipment
    assert (await _get(stub, shipment.shipment_id)).address == address


async def test_cancel_and_dispatch_take_effect_once_whatever_the_key(
    stub: ShippingServiceStub, services: Services
) -> None:
    cancelled_id, dispatched_id = await _created(stub, ["o1", "o2"])
    for key in ("c1", "c1", "c2"):
        cancelled = await stub.CancelShipment(_cancel(cancelled_id), metadata=with_key(key))
        assert cancelled.shipment == await _get(stub, cancelled_id)
        assert cancelled.shipment.state == pb.SHIPMENT_STATE_CANCELLED
    for key in ("d1", "d1", "d2"):
        dispatched = await stub.DispatchShipment(_dispatch(dispatched_id), metadata=with_key(key))
        assert dispatched.shipment == await _get(stub, dispatched_id)
        assert dispatched.shipment.state == pb.SHIPMENT_STATE_DISPATCHED
    assert [(type_, id_) for type_, id_, _ in await _announced(services)] == [
        ("ShipmentCreated", cancelled_id),
        ("ShipmentCreated", dispatched_id),
        ("ShipmentCancelled", cancelled_id),
        ("ShipmentDispatched", dispatched_id),
    ]


async def test_what_has_left_cannot_be_cancelled_and_what_was_cancelled_cannot_leave(
    stub: ShippingServiceStub, services: Services
) -> None:
    cancelled_id, dispatched_id = await _created(stub, ["o1", "o2"])
    await stub.CancelShipment(_cancel(cancelled_id), metadata=with_key("c"))
    await stub.DispatchShipment(_dispatch(dispatched_id), metadata=with_key("d"))
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.CancelShipment(_cancel(dispatched_id), metadata=with_key("too late"))
        assert _reason(error.value) == "SHIPMENT_DISPATCHED"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.CancelShipment(_undo("create/o2"), metadata=with_key("too late by key"))
        assert _reason(error.value) == "SHIPMENT_DISPATCHED"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.DispatchShipment(_dispatch(cancelled_id), metadata=with_key("never"))
        assert _reason(error.value) == "SHIPMENT_CANCELLED"
    assert await _states(services) == {"CANCELLED": 1, "DISPATCHED": 1}


async def test_dispatch_and_cancel_at_once_on_two_replicas_let_exactly_one_win(
    replicas: tuple[ShippingServiceStub, ShippingServiceStub], services: Services
) -> None:
    one, two = replicas
    ids = await _created(one, [f"o{n}" for n in range(100)])
    calls: list[Awaitable[object]] = []
    for place, id_ in enumerate(ids):
        first, second = (one, two) if place % 2 else (two, one)
        calls.append(first.CancelShipment(_cancel(id_), metadata=with_key(f"c/{id_}")))
        calls.append(second.DispatchShipment(_dispatch(id_), metadata=with_key(f"d/{id_}")))
    results = await asyncio.gather(*calls, return_exceptions=True)
    for id_, cancelled, dispatched in zip(ids, results[::2], results[1::2], strict=True):
        shipment = await _get(one, id_)
        if isinstance(cancelled, pb.CancelShipmentResponse):
            assert shipment == cancelled.shipment
            assert shipment.state == pb.SHIPMENT_STATE_CANCELLED
            assert _reason(dispatched) == "SHIPMENT_CANCELLED"
        else:
            assert isinstance(dispatched, pb.DispatchShipmentResponse)
            assert shipment == dispatched.shipment
            assert shipment.state == pb.SHIPMENT_STATE_DISPATCHED
            assert _reason(cancelled) == "SHIPMENT_DISPATCHED"
    ended = [id_ for type_, id_, _ in await _announced(services) if type_ != "ShipmentCreated"]
    assert sorted(ended) == sorted(ids)


async def test_a_booking_and_its_undo_at_once_on_two_replicas_leave_nothing_booked(
    replicas: tuple[ShippingServiceStub, ShippingServiceStub], services: Services
) -> None:
    one, two = replicas
    calls: list[Awaitable[object]] = []
    for n in range(100):
        create, undo = (one, two) if n % 2 else (two, one)
        calls.append(create.CreateShipment(_create(f"o{n}"), metadata=with_key(f"k{n}")))
        calls.append(undo.CancelShipment(_undo(f"k{n}"), metadata=with_key(f"k{n}/undo")))
    results = await asyncio.gather(*calls, return_exceptions=True)
    booked = 0
    for created, undone in zip(results[::2], results[1::2], strict=True):
        assert isinstance(undone, pb.CancelShipmentResponse), undone
        assert undone.shipment.state == pb.SHIPMENT_STATE_CANCELLED
        if isinstance(created, pb.CreateShipmentResponse):
            booked += 1
            assert undone.shipment.shipment_id == created.shipment.shipment_id
        else:
            assert undone.shipment.shipment_id == ""
            assert _reason(created) == "UNDONE_BEFORE_ARRIVAL"
    assert await _states(services) == ({"CANCELLED": booked} if booked else {})


async def test_a_refused_item_costs_its_neighbours_nothing(
    stub: ShippingServiceStub, services: Services
) -> None:
    batch = _batch(
        ("k1", _create("o1")),
        ("k2", _create("o2", _to("AQ"))),
        ("k3", _create("o1")),
        ("k4", _create("o4")),
        ("k5", _create("o5", _to("KP"))),
    )
    for attempt in range(2):
        results = (await stub.BatchCreateShipments(batch)).results
        assert [r.failure.reason for r in results] == [
            "",
            "COUNTRY_NOT_SERVED",
            "ORDER_ALREADY_SHIPPED",
            "",
            "COUNTRY_NOT_SERVED",
        ]
        assert [r.replayed for r in results] == [attempt == 1] * 5
        assert results[1].failure.kind == failure_pb2.KIND_REFUSED
        assert dict(results[1].failure.facts) == {"country": "AQ"}
    assert await _states(services) == {"CREATED": 2}


async def test_a_refused_or_unknown_end_costs_its_neighbours_nothing(stub: ShippingServiceStub) -> None:
    first, second, third = await _created(stub, ["o1", "o2", "o3"])
    await stub.CancelShipment(_cancel(second), metadata=with_key("c"))
    items = [
        pb.DispatchShipmentItem(idempotency_key=f"d{place}", request=_dispatch(id_))
        for place, id_ in enumerate((first, second, "shp_none", third, first))
    ]
    results = (await stub.BatchDispatchShipments(pb.BatchDispatchShipmentsRequest(items=items))).results
    assert [r.failure.reason for r in results] == ["", "SHIPMENT_CANCELLED", "UNKNOWN_SHIPMENT", "", ""]
    assert results[2].failure.kind == failure_pb2.KIND_NOT_FOUND
    assert results[0].response == results[4].response
    assert [(await _get(stub, id_)).state for id_ in (first, third)] == [pb.SHIPMENT_STATE_DISPATCHED] * 2


async def test_countries_that_are_not_served_are_the_configurations_choice(services: Services) -> None:
    process = services.start("shipping", unserved_countries="FR")
    async with open_channel(process.target, caller="test") as channel:
        stub = ShippingServiceStub(channel)
        batch = _batch(("k1", _create("o1", _to("FR"))), ("k2", _create("o2", _to("AQ"))))
        results = (await stub.BatchCreateShipments(batch)).results
    assert [r.failure.reason for r in results] == ["COUNTRY_NOT_SERVED", ""]


async def test_an_order_to_a_country_that_is_not_served_can_still_go_elsewhere(
    stub: ShippingServiceStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.CreateShipment(_create("o", _to("AQ")), metadata=with_key("k1"))
    assert _reason(error.value) == "COUNTRY_NOT_SERVED"
    answer = await stub.CreateShipment(_create("o"), metadata=with_key("k2"))
    assert answer.shipment.state == pb.SHIPMENT_STATE_CREATED


async def test_one_key_fifty_times_at_once_on_two_replicas_books_once(
    replicas: tuple[ShippingServiceStub, ShippingServiceStub], services: Services
) -> None:
    calls = [replicas[n % 2].CreateShipment(_create("o1"), metadata=with_key("same")) for n in range(50)]
    answers = await asyncio.gather(*calls)
    assert all(answer == answers[0] for answer in answers)
    assert [await was_replayed(call) for call in calls].count(False) == 1
    assert await _states(services) == {"CREATED": 1}
    assert len(await _announced(services)) == 1


async def test_fifty_keys_at_once_for_one_order_book_once(
    replicas: tuple[ShippingServiceStub, ShippingServiceStub], services: Services
) -> None:
    calls = [replicas[n % 2].CreateShipment(_create("o1"), metadata=with_key(f"k{n}")) for n in range(50)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    lost = [r for r in results if not isinstance(r, pb.CreateShipmentResponse)]
    assert [_reason(error) for error in lost] == ["ORDER_ALREADY_SHIPPED"] * 49
    assert await _states(services) == {"CREATED": 1}


async def test_one_key_twice_in_one_batch_has_one_effect_and_two_equal_answers(
    stub: ShippingServiceStub, services: Services
) -> None:
    results = (await stub.BatchCreateShipments(_batch(("k", _create("o")), ("k", _create("o"))))).results
    assert results[0].response == results[1].response
    assert [r.replayed for r in results] == [False, True]
    assert await _states(services) == {"CREATED": 1}


async def test_one_key_for_two_requests_is_refused_and_the_loser_changes_nothing(
    stub: ShippingServiceStub, services: Services
) -> None:
    results = (await stub.BatchCreateShipments(_batch(("k", _create("o")), ("k", _create("other"))))).results
    assert [r.failure.reason for r in results] == ["", "IDEMPOTENCY_KEY_REUSED"]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.CreateShipment(_create("o", _to("FR")), metadata=with_key("k"))
    assert _reason(error.value) == "IDEMPOTENCY_KEY_REUSED"
    assert await _states(services) == {"CREATED": 1}
    assert len(await _announced(services)) == 1


async def test_an_order_is_shipped_once_whatever_the_key_and_even_after_a_cancellation(
    stub: ShippingServiceStub, services: Services
) -> None:
    (id_,) = await _created(stub, ["o"])
    for key in ("k2", "k3"):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.CreateShipment(_create("o"), metadata=with_key(key))
        assert _reason(error.value) == "ORDER_ALREADY_SHIPPED"
        await stub.CancelShipment(_cancel(id_), metadata=with_key("c"))
    assert await _states(services) == {"CANCELLED": 1}


async def test_orders_and_keys_of_two_merchants_do_not_meet(stub: ShippingServiceStub) -> None:
    ours = (await stub.CreateShipment(_create("o"), metadata=with_key("k"))).shipment
    theirs = (await stub.CreateShipment(_create("o", merchant="mer_2"), metadata=with_key("k"))).shipment
    assert ours.shipment_id != theirs.shipment_id
    for call in (
        stub.GetShipment(pb.GetShipmentRequest(merchant_id=MERCHANT, shipment_id=theirs.shipment_id)),
        stub.CancelShipment(_cancel(theirs.shipment_id), metadata=with_key("c")),
        stub.DispatchShipment(_dispatch(theirs.shipment_id), metadata=with_key("d")),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="UNKNOWN_SHIPMENT") as error:
            await call
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_cancellation_that_overtakes_its_booking_bars_it_for_ever(
    stub: ShippingServiceStub, services: Services
) -> None:
    for key in ("saga/ship/undo", "saga/ship/undo", "another"):
        answer = await stub.CancelShipment(_undo("saga/ship"), metadata=with_key(key))
        assert answer.shipment == pb.Shipment(merchant_id=MERCHANT, state=pb.SHIPMENT_STATE_CANCELLED)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.CreateShipment(_create("o"), metadata=with_key("saga/ship"))
        assert _reason(error.value) == "UNDONE_BEFORE_ARRIVAL"
    assert await _states(services) == {}
    assert await _announced(services) == []


async def test_a_cancellation_by_key_finds_the_shipment_and_a_late_repeat_of_the_booking_stays_harmless(
    stub: ShippingServiceStub, services: Services
) -> None:
    (id_,) = await _created(stub, ["o"])
    for key in ("undo", "undo", "again"):
        answer = await stub.CancelShipment(_undo("create/o"), metadata=with_key(key))
        assert answer.shipment == await _get(stub, id_)
        assert answer.shipment.state == pb.SHIPMENT_STATE_CANCELLED
    await stub.CreateShipment(_create("o"), metadata=with_key("create/o"))  # replays the old answer
    assert await _states(services) == {"CANCELLED": 1}


async def test_a_cancellation_by_the_key_of_a_refused_booking_finds_nothing_to_cancel(
    stub: ShippingServiceStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.CreateShipment(_create("o", _to("AQ")), metadata=with_key("k"))
    answer = await stub.CancelShipment(_undo("k"), metadata=with_key("undo"))
    assert answer.shipment == pb.Shipment(merchant_id=MERCHANT, state=pb.SHIPMENT_STATE_CANCELLED)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.CreateShipment(_create("o", _to("AQ")), metadata=with_key("k"))
    assert _reason(error.value) == "COUNTRY_NOT_SERVED"


async def test_a_batch_of_undos_bars_what_is_missing_and_cancels_what_is_there(
    stub: ShippingServiceStub, services: Services
) -> None:
    first, second = await _created(stub, ["o1", "o2"])
    requests = (_undo("create/o1"), _undo("never"), _cancel(second), _undo("create/o2"), _undo("never"))
    items = [pb.CancelShipmentItem(idempotency_key=f"u{n}", request=r) for n, r in enumerate(requests)]
    results = (await stub.BatchCancelShipments(pb.BatchCancelShipmentsRequest(items=items))).results
    assert [r.response.shipment.shipment_id for r in results] == [first, "", second, second, ""]
    assert {r.response.shipment.state for r in results} == {pb.SHIPMENT_STATE_CANCELLED}
    assert await _states(services) == {"CANCELLED": 2}
    cancelled = [id_ for type_, id_, _ in await _announced(services) if type_ == "ShipmentCancelled"]
    assert sorted(cancelled) == sorted([first, second])


async def test_another_callers_key_names_nothing(services: Services, targets: tuple[str, str]) -> None:
    async with open_channel(targets[0], caller="a") as a, open_channel(targets[0], caller="b") as b:
        created = await ShippingServiceStub(a).CreateShipment(_create("o"), metadata=with_key("k"))
        undone = await ShippingServiceStub(b).CancelShipment(_undo("k"), metadata=with_key("undo"))
        assert undone.shipment.shipment_id == ""
        assert (await _get(ShippingServiceStub(a), created.shipment.shipment_id)) == created.shipment


async def test_answers_replay_after_the_process_was_killed(services: Services) -> None:
    process = services.start("shipping")
    async with open_channel(process.target, caller="test", wait_for_ready=True) as channel:
        stub = ShippingServiceStub(channel)
        before = await stub.CreateShipment(_create("o"), metadata=with_key("k"))
        process.kill()
        process.start()
        call = stub.CreateShipment(_create("o"), metadata=with_key("k"))
        assert await call == before
        assert await was_replayed(call)
    assert await _states(services) == {"CREATED": 1}


_LONG = "x" * 201

WRONG_ADDRESSES: list[tuple[pb.Address, list[str]]] = [
    (pb.Address(country="GB"), ["address.name"]),
    (pb.Address(name=_LONG, country="GB"), ["address.name"]),
    (pb.Address(name="A\x00", country="GB"), ["address.name"]),
    (pb.Address(name="A", street_lines=["1"] * 11, country="GB"), ["address.street_lines"]),
    (pb.Address(name="A", street_lines=["1", _LONG], country="GB"), ["address.street_lines[1]"]),
    (pb.Address(name="A", street_lines=["\x00"], country="GB"), ["address.street_lines[0]"]),
    (pb.Address(name="A", city=_LONG, country="GB"), ["address.city"]),
    (pb.Address(name="A", postal_code="1" * 33, country="GB"), ["address.postal_code"]),
    (pb.Address(name="A"), ["address.country"]),
    (pb.Address(name="A", country="gb"), ["address.country"]),
    (pb.Address(name="A", country="GBR"), ["address.country"]),
    (pb.Address(name="A", country="ÄÖ"), ["address.country"]),
    (pb.Address(), ["address.name", "address.country"]),
]


WRONG_REQUESTS = [
    (_create(""), ["order_id"]),
    (_create("o" * 65), ["order_id"]),
    (_create("o\x00"), ["order_id"]),
    (_create("o", merchant=""), ["merchant_id"]),
    (_create("o", merchant="m" * 65), ["merchant_id"]),
    (pb.CreateShipmentRequest(merchant_id=MERCHANT, order_id="o"), ["address.name", "address.country"]),
    *((_create("o", address), fields) for address, fields in WRONG_ADDRESSES),
]
"""A request and the fields that it must be told are wrong."""


async def test_wrong_input_names_the_fields_and_changes_nothing(
    stub: ShippingServiceStub, services: Services
) -> None:
    for request, fields in WRONG_REQUESTS:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.CreateShipment(request, metadata=with_key("k"))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert all(field in (error.value.details() or "") for field in fields)
    items = [(f"k{place}", request) for place, (request, _) in enumerate(WRONG_REQUESTS)]
    results = (await stub.BatchCreateShipments(_batch(*items, ("good", _create("good"))))).results
    named = [[violation.field for violation in result.failure.violations] for result in results]
    assert named == [fields for _, fields in WRONG_REQUESTS] + [[]]
    assert results[-1].WhichOneof("outcome") == "response"
    assert await _states(services) == {"CREATED": 1}
    # Nothing was stored for their keys: they serve requests that are right.
    repaired = _batch(("k", _create("o")), *((key, _create(f"o/{key}")) for key, _ in items))
    results = (await stub.BatchCreateShipments(repaired)).results
    assert [(r.replayed, r.WhichOneof("outcome")) for r in results] == [(False, "response")] * len(results)


async def test_wrong_targets_name_the_field(stub: ShippingServiceStub) -> None:
    calls: list[tuple[Callable[..., Awaitable[object]], object, str]] = [
        (stub.CancelShipment, pb.CancelShipmentRequest(merchant_id=MERCHANT), "shipment_id"),
        (stub.CancelShipment, _cancel("s" * 65), "shipment_id"),
        (stub.CancelShipment, _undo(""), "create_key"),
        (stub.CancelShipment, _undo("k" * 256), "create_key"),
        (stub.CancelShipment, pb.CancelShipmentRequest(shipment_id="shp_1"), "merchant_id"),
        (stub.DispatchShipment, _dispatch(""), "shipment_id"),
        (stub.DispatchShipment, _dispatch("s\x00"), "shipment_id"),
        (stub.GetShipment, pb.GetShipmentRequest(merchant_id=MERCHANT), "shipment_id"),
        (stub.GetShipment, pb.GetShipmentRequest(shipment_id="shp_1"), "merchant_id"),
    ]
    for method, request, field in calls:
        with pytest.raises(grpc.aio.AioRpcError, match=field) as error:
            await method(request, metadata=with_key("k"))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_shipment_is_not_found_and_its_key_stays_free(stub: ShippingServiceStub) -> None:
    for call in (
        stub.GetShipment(pb.GetShipmentRequest(merchant_id=MERCHANT, shipment_id="shp_none")),
        stub.CancelShipment(_cancel("shp_none"), metadata=with_key("k")),
        stub.DispatchShipment(_dispatch("shp_none"), metadata=with_key("k")),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="UNKNOWN_SHIPMENT") as error:
            await call
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
    (id_,) = await _created(stub, ["o"])
    answer = await stub.CancelShipment(_cancel(id_), metadata=with_key("k"))
    assert answer.shipment.state == pb.SHIPMENT_STATE_CANCELLED


async def test_a_missing_key_and_a_list_too_long_or_empty_are_refused(
    stub: ShippingServiceStub, services: Services
) -> None:
    for call in (
        stub.CreateShipment(_create("o")),
        stub.CreateShipment(_create("o"), metadata=(("idempotency-key", "k" * 256),)),
        stub.BatchCreateShipments(pb.BatchCreateShipmentsRequest()),
        stub.BatchCancelShipments(pb.BatchCancelShipmentsRequest()),
        stub.BatchDispatchShipments(pb.BatchDispatchShipmentsRequest()),
        stub.BatchCreateShipments(_batch(*((f"k{n}", _create(f"o{n}")) for n in range(1001)))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await _states(services) == {}


async def test_the_longest_list_is_booked_whole(stub: ShippingServiceStub, services: Services) -> None:
    ids = await _created(stub, [f"o{n}" for n in range(1_000)])
    assert len(set(ids)) == 1_000
    assert await _states(services) == {"CREATED": 1_000}


async def test_bytes_that_are_no_text_are_invalid(targets: tuple[str, str]) -> None:
    async with grpc.aio.insecure_channel(targets[0]) as channel:
        raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/paymesh.shipping.v1.ShippingService/CreateShipment"
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await raw(b"\x0a\x02\xff\xfe", metadata=with_key("k"))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
