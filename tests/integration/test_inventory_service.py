"""Inventory as a real process on a real PostgreSQL: reserve, release, commit, and what must never happen to stock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from paymesh.channel import open_channel, with_key
from paymesh.inventory.v1 import inventory_pb2 as pb
from paymesh.inventory.v1.inventory_pb2_grpc import InventoryServiceStub
from paymesh.result.v1 import failure_pb2
from tests.conftest import Services

MERCHANT = "mer_1"


@pytest.fixture(scope="module")
def running(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Services, str]]:
    """Inventory and its target; all tests share it."""
    services = Services(postgres, tmp_path_factory.mktemp("inventory"))
    yield services, services.start("inventory").target
    services.stop()


@pytest_asyncio.fixture
async def stub(running: tuple[Services, str]) -> AsyncIterator[InventoryServiceStub]:
    """Of an inventory that is empty."""
    services, target = running
    services.empty("inventory")
    async with open_channel(target, caller="test") as channel:
        yield InventoryServiceStub(channel)


async def _product(stub: InventoryServiceStub, sku: str, quantity: int) -> None:
    request = pb.CreateProductRequest(merchant_id=MERCHANT, sku=sku, name=sku, initial_quantity=quantity)
    await stub.CreateProduct(request, metadata=with_key(f"product/{sku}"))


async def _stock(stub: InventoryServiceStub, sku: str) -> tuple[int, int]:
    product = (await stub.GetProduct(pb.GetProductRequest(merchant_id=MERCHANT, sku=sku))).product
    return product.on_hand_quantity, product.reserved_quantity


def _reserve(order: str, **lines: int) -> pb.ReserveStockRequest:
    return pb.ReserveStockRequest(
        merchant_id=MERCHANT,
        order_id=order,
        lines=[pb.StockLine(sku=sku, quantity=quantity) for sku, quantity in lines.items()],
    )


def _batch(*items: tuple[str, pb.ReserveStockRequest]) -> pb.BatchReserveStockRequest:
    return pb.BatchReserveStockRequest(
        items=[pb.ReserveStockItem(idempotency_key=key, request=request) for key, request in items]
    )


async def test_reserve_release_and_commit_move_stock_once(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 10)
    first = await stub.ReserveStock(_reserve("o1", a=4), metadata=with_key("k1"))
    second = await stub.ReserveStock(_reserve("o2", a=3), metadata=with_key("k2"))
    assert await _stock(stub, "a") == (10, 7)
    release = pb.ReleaseStockRequest(merchant_id=MERCHANT, reservation_id=first.reservation.reservation_id)
    for key in ("r1", "r1", "r2"):
        answer = await stub.ReleaseStock(release, metadata=with_key(key))
        assert answer.reservation.state == pb.RESERVATION_STATE_RELEASED
    assert await _stock(stub, "a") == (10, 3)
    commit = pb.CommitStockRequest(merchant_id=MERCHANT, reservation_id=second.reservation.reservation_id)
    for key in ("c1", "c1", "c2"):
        committed = await stub.CommitStock(commit, metadata=with_key(key))
        assert committed.reservation.state == pb.RESERVATION_STATE_COMMITTED
    assert await _stock(stub, "a") == (7, 0)


async def test_stock_is_never_oversold_when_many_want_the_last_pieces(stub: InventoryServiceStub) -> None:
    await _product(stub, "hot", 10)
    calls = [stub.ReserveStock(_reserve(f"o{n}", hot=1), metadata=with_key(f"k{n}")) for n in range(50)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    won = [r for r in results if isinstance(r, pb.ReserveStockResponse)]
    assert len(won) == 10
    assert await _stock(stub, "hot") == (10, 10)


async def test_a_refused_item_costs_its_neighbours_nothing(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 5)
    batch = _batch(
        ("k1", _reserve("o1", a=3)),
        ("k2", _reserve("o2", a=3)),
        ("k3", _reserve("o3", a=2)),
        ("k4", _reserve("o4", b=1)),
    )
    for attempt in range(2):
        results = (await stub.BatchReserveStock(batch)).results
        assert [r.failure.reason for r in results] == ["", "OUT_OF_STOCK", "", "UNKNOWN_PRODUCT"]
        assert [r.replayed for r in results] == [attempt == 1] * 4
        assert results[1].failure.kind == failure_pb2.KIND_REFUSED
    assert await _stock(stub, "a") == (5, 5)


async def test_one_key_fifty_times_at_once_reserves_once(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 100)
    calls = [stub.ReserveStock(_reserve("o1", a=2), metadata=with_key("same")) for _ in range(50)]
    answers = await asyncio.gather(*calls)
    assert {a.reservation.reservation_id for a in answers} == {answers[0].reservation.reservation_id}
    assert await _stock(stub, "a") == (100, 2)


async def test_one_key_twice_in_one_batch_has_one_effect_and_two_equal_answers(
    stub: InventoryServiceStub,
) -> None:
    await _product(stub, "a", 100)
    results = (
        await stub.BatchReserveStock(_batch(("k", _reserve("o", a=2)), ("k", _reserve("o", a=2))))
    ).results
    assert results[0].response == results[1].response
    assert [r.replayed for r in results] == [False, True]
    assert await _stock(stub, "a") == (100, 2)


async def test_one_key_for_two_requests_is_refused_and_the_loser_changes_nothing(
    stub: InventoryServiceStub,
) -> None:
    await _product(stub, "a", 100)
    results = (
        await stub.BatchReserveStock(_batch(("k", _reserve("o", a=2)), ("k", _reserve("o", a=3))))
    ).results
    assert [r.failure.reason for r in results] == ["", "IDEMPOTENCY_KEY_REUSED"]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.ReserveStock(_reserve("o", a=4), metadata=with_key("k"))
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "IDEMPOTENCY_KEY_REUSED" in (error.value.details() or "")
    assert await _stock(stub, "a") == (100, 2)


async def test_an_order_is_reserved_for_once_whatever_the_key(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 100)
    results = (
        await stub.BatchReserveStock(_batch(("k1", _reserve("o", a=2)), ("k2", _reserve("o", a=2))))
    ).results
    assert [r.failure.reason for r in results] == ["", "ORDER_ALREADY_RESERVED"]
    assert await _stock(stub, "a") == (100, 2)


async def test_an_order_that_is_reserved_already_takes_nothing_from_its_neighbours(
    stub: InventoryServiceStub,
) -> None:
    await _product(stub, "a", 5)
    await stub.ReserveStock(_reserve("o", a=1), metadata=with_key("k"))
    results = (
        await stub.BatchReserveStock(_batch(("k1", _reserve("o", a=4)), ("k2", _reserve("o3", a=4))))
    ).results
    assert [r.failure.reason for r in results] == ["ORDER_ALREADY_RESERVED", ""]
    assert await _stock(stub, "a") == (5, 5)


async def test_a_key_that_lost_to_a_refused_one_in_its_set_may_try_again(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 5)
    two = _batch(("k1", _reserve("o", a=6)), ("k2", _reserve("o", a=2)))
    assert [r.failure.reason for r in (await stub.BatchReserveStock(two)).results] == [
        "OUT_OF_STOCK",
        "ORDER_CONTENDED",
    ]
    await stub.ReserveStock(_reserve("o", a=2), metadata=with_key("k2"))
    assert await _stock(stub, "a") == (5, 2)


async def test_the_answer_is_what_is_stored(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 5)
    answer = await stub.ReserveStock(_reserve("o", a=1), metadata=with_key("k"))
    request = pb.GetReservationRequest(merchant_id=MERCHANT, reservation_id=answer.reservation.reservation_id)
    assert (await stub.GetReservation(request)).reservation == answer.reservation


async def test_a_release_that_overtakes_its_reserve_bars_it_for_ever(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 100)
    undo = pb.ReleaseStockRequest(merchant_id=MERCHANT, reserve_key="saga/reserve")
    for key in ("saga/reserve/undo", "saga/reserve/undo", "another"):
        answer = await stub.ReleaseStock(undo, metadata=with_key(key))
        assert answer.reservation.state == pb.RESERVATION_STATE_RELEASED
        assert answer.reservation.reservation_id == ""
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="UNDONE_BEFORE_ARRIVAL"):
            await stub.ReserveStock(_reserve("o", a=2), metadata=with_key("saga/reserve"))
    assert await _stock(stub, "a") == (100, 0)


async def test_a_release_by_key_finds_the_reservation_and_a_repeat_of_the_reserve_stays_harmless(
    stub: InventoryServiceStub,
) -> None:
    await _product(stub, "a", 100)
    await stub.ReserveStock(_reserve("o", a=2), metadata=with_key("saga/reserve"))
    undo = pb.ReleaseStockRequest(merchant_id=MERCHANT, reserve_key="saga/reserve")
    await stub.ReleaseStock(undo, metadata=with_key("saga/reserve/undo"))
    await stub.ReserveStock(_reserve("o", a=2), metadata=with_key("saga/reserve"))  # replays the old answer
    assert await _stock(stub, "a") == (100, 0)
    with pytest.raises(grpc.aio.AioRpcError, match="ORDER_ALREADY_RESERVED"):
        await stub.ReserveStock(_reserve("o", a=2), metadata=with_key("other"))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_reserve("", a=1), "order_id"),
        (_reserve("o"), "lines"),
        (_reserve("o", a=0), "lines[0].quantity"),
        (_reserve("o", a=-1), "lines[0].quantity"),
        (_reserve("o", a=10**15), "lines[0].quantity"),
        (_reserve("o" * 65, a=1), "order_id"),
        (_reserve("o\x00", a=1), "order_id"),
        (pb.ReserveStockRequest(order_id="o", lines=[pb.StockLine(sku="a", quantity=1)]), "merchant_id"),
    ],
)
async def test_wrong_input_names_the_field_and_changes_nothing(
    stub: InventoryServiceStub, request_: pb.ReserveStockRequest, field: str
) -> None:
    await _product(stub, "a", 100)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.ReserveStock(request_, metadata=with_key("k"))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (error.value.details() or "")
    results = (await stub.BatchReserveStock(_batch(("k", request_), ("good", _reserve("good", a=1))))).results
    assert [v.field for v in results[0].failure.violations] == [field]
    assert results[1].WhichOneof("outcome") == "response"
    assert await _stock(stub, "a") == (100, 1)


async def test_a_missing_key_a_list_too_long_or_empty_and_broken_text_are_refused(
    stub: InventoryServiceStub,
) -> None:
    await _product(stub, "a", 100)
    for call in (
        stub.ReserveStock(_reserve("o", a=1)),
        stub.BatchReserveStock(pb.BatchReserveStockRequest()),
        stub.BatchReserveStock(_batch(*((f"k{n}", _reserve(f"o{n}", a=1)) for n in range(1001)))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await _stock(stub, "a") == (100, 0)


async def _committed(stub: InventoryServiceStub, order: str, **lines: int) -> str:
    """A reservation whose goods have left."""
    made = await stub.ReserveStock(_reserve(order, **lines), metadata=with_key(f"{order}/reserve"))
    reservation_id = made.reservation.reservation_id
    commit = pb.CommitStockRequest(merchant_id=MERCHANT, reservation_id=reservation_id)
    await stub.CommitStock(commit, metadata=with_key(f"{order}/commit"))
    return reservation_id


def _return(reservation_id: str, *lines: tuple[str, int]) -> pb.ReturnStockRequest:
    return pb.ReturnStockRequest(
        merchant_id=MERCHANT,
        reservation_id=reservation_id,
        lines=[pb.StockLine(sku=sku, quantity=quantity) for sku, quantity in lines],
    )


async def _returned(stub: InventoryServiceStub, key: str, request: pb.ReturnStockRequest) -> str:
    """The reason of the refusal; empty when the goods are back."""
    item = pb.ReturnStockItem(idempotency_key=key, request=request)
    (result,) = (await stub.BatchReturnStock(pb.BatchReturnStockRequest(items=[item]))).results
    return result.failure.reason


async def test_goods_that_come_back_are_for_sale_again_and_never_more_than_left(
    stub: InventoryServiceStub,
) -> None:
    await _product(stub, "a", 10)
    await _product(stub, "b", 10)
    reservation = await _committed(stub, "o1", a=4, b=1)
    assert await _stock(stub, "a") == (6, 0)
    answers = [
        (
            await stub.ReturnStock(_return(reservation, ("a", 1), ("a", 2)), metadata=with_key("k"))
        ).stock_return
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert answers[0].return_id.startswith("ret_")
    assert (answers[0].order_id, answers[0].reservation_id) == ("o1", reservation)
    assert [(line.sku, line.quantity) for line in answers[0].lines] == [("a", 3)]
    assert await _stock(stub, "a") == (9, 0)
    for key, lines in (("k2", [("a", 2)]), ("k3", [("a", 1), ("b", 2)]), ("k4", [("c", 1)])):
        assert await _returned(stub, key, _return(reservation, *lines)) == "RETURN_EXCEEDS_COMMITTED"
        assert await _returned(stub, key, _return(reservation, *lines)) == "RETURN_EXCEEDS_COMMITTED"
    assert (await _stock(stub, "a"), await _stock(stub, "b")) == ((9, 0), (9, 0)), "all lines or none"
    assert await _returned(stub, "k5", _return(reservation, ("a", 1), ("b", 1))) == ""
    assert (await _stock(stub, "a"), await _stock(stub, "b")) == ((10, 0), (10, 0))


async def test_only_goods_that_have_left_come_back(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 10)
    held = (await stub.ReserveStock(_reserve("o1", a=4), metadata=with_key("k1"))).reservation.reservation_id
    assert await _returned(stub, "r1", _return(held, ("a", 1))) == "RESERVATION_NOT_COMMITTED"
    assert await _returned(stub, "r2", _return("res_nobodys", ("a", 1))) == "UNKNOWN_RESERVATION"
    release = pb.ReleaseStockRequest(merchant_id=MERCHANT, reservation_id=held)
    await stub.ReleaseStock(release, metadata=with_key("k2"))
    assert await _returned(stub, "r3", _return(held, ("a", 1))) == "RESERVATION_NOT_COMMITTED"
    assert await _stock(stub, "a") == (10, 0)


async def test_of_many_returns_at_once_no_more_come_back_than_left(stub: InventoryServiceStub) -> None:
    await _product(stub, "a", 10)
    reservation = await _committed(stub, "o1", a=5)
    calls = [stub.ReturnStock(_return(reservation, ("a", 1)), metadata=with_key(f"k{n}")) for n in range(30)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, pb.ReturnStockResponse) for result in results) == 5
    assert await _stock(stub, "a") == (10, 0)


async def test_one_key_fifty_times_at_once_returns_once_and_another_request_is_refused(
    stub: InventoryServiceStub,
) -> None:
    await _product(stub, "a", 10)
    reservation = await _committed(stub, "o1", a=5)
    request = _return(reservation, ("a", 1))
    answers = await asyncio.gather(*(stub.ReturnStock(request, metadata=with_key("k")) for _ in range(50)))
    assert len({answer.stock_return.return_id for answer in answers}) == 1
    assert await _stock(stub, "a") == (6, 0)
    assert await _returned(stub, "k", _return(reservation, ("a", 2))) == "IDEMPOTENCY_KEY_REUSED"
    items = [pb.ReturnStockItem(idempotency_key="twin", request=request) for _ in range(2)]
    results = (await stub.BatchReturnStock(pb.BatchReturnStockRequest(items=items))).results
    assert results[0].response == results[1].response
    assert [result.replayed for result in results] == [False, True]
    assert await _stock(stub, "a") == (7, 0)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_return(""), "reservation_id"),
        (_return("res_1"), "lines"),
        (_return("res_1", ("a", 0)), "lines[0].quantity"),
        (_return("res_1", ("a", 1), ("", 1)), "lines[1].sku"),
        (_return("res_1", *(("a", 1) for _ in range(1001))), "lines"),
        (pb.ReturnStockRequest(reservation_id="r", lines=[pb.StockLine(sku="a", quantity=1)]), "merchant_id"),
    ],
)
async def test_a_wrong_return_names_the_field(
    stub: InventoryServiceStub, request_: pb.ReturnStockRequest, field: str
) -> None:
    item = pb.ReturnStockItem(idempotency_key="k", request=request_)
    (result,) = (await stub.BatchReturnStock(pb.BatchReturnStockRequest(items=[item]))).results
    assert field in [violation.field for violation in result.failure.violations]


async def test_bytes_that_are_no_text_are_invalid(running: tuple[Services, str]) -> None:
    async with grpc.aio.insecure_channel(running[1]) as channel:
        raw: Any = channel.unary_unary("/paymesh.inventory.v1.InventoryService/ReserveStock")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await raw(b"\x0a\x02\xff\xfe", metadata=with_key("k"))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
