"""The RPCs of inventory: proto in, domain, proto out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paymesh.inventory.v1 import events_pb2
from paymesh.inventory.v1 import inventory_pb2 as pb
from services.inventory import domain, store
from services.inventory.domain import ByKey, Delivery, End, NewProduct, Product, Reservation, Reserve
from services.kit.checks import Checks, page_size
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import NotFound, PaymeshError
from services.kit.idempotency import Identity, bar, run_set
from services.kit.outbox import Announcement, announce
from services.kit.rpc.method import SetMethod
from services.kit.rpc.stored import Pack
from services.kit.rpc.values import write_timestamp
from services.kit.sets import Answer, Command, Failed, Outcome
from services.kit.telemetry import traceparent_of

NAME = "paymesh.inventory.v1.InventoryService"
LINES_MAX = 1_000
QUANTITY_MAX = 1_000_000
STOCK_MAX = 1_000_000_000

_STATES = {
    domain.State.RESERVED: pb.RESERVATION_STATE_RESERVED,
    domain.State.RELEASED: pb.RESERVATION_STATE_RELEASED,
    domain.State.COMMITTED: pb.RESERVATION_STATE_COMMITTED,
}


class InventoryService:
    """See the contract, paymesh/inventory/v1/inventory.proto."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reserved = Pack(pb.ReserveStockResponse, _recall)
        create = SetMethod(
            f"{NAME}/CreateProduct",
            parse=_new_product,
            handle=self._create,
            batch_response=pb.BatchCreateProductsResponse,
        )
        add = SetMethod(
            f"{NAME}/AddStock", parse=_delivery, handle=self._add, batch_response=pb.BatchAddStockResponse
        )
        reserve = SetMethod(
            f"{NAME}/ReserveStock",
            parse=_reserve,
            handle=self._reserve,
            batch_response=pb.BatchReserveStockResponse,
            id_prefix="res",
        )
        release = SetMethod(
            f"{NAME}/ReleaseStock",
            parse=_release,
            handle=self._release,
            batch_response=pb.BatchReleaseStockResponse,
        )
        commit = SetMethod(
            f"{NAME}/CommitStock",
            parse=_commit,
            handle=self._commit,
            batch_response=pb.BatchCommitStockResponse,
        )
        self.CreateProduct, self.BatchCreateProducts = create.single, create.batch
        self.AddStock, self.BatchAddStock = add.single, add.batch
        self.ReserveStock, self.BatchReserveStock = reserve.single, reserve.batch
        self.ReleaseStock, self.BatchReleaseStock = release.single, release.batch
        self.CommitStock, self.BatchCommitStock = commit.single, commit.batch
        self._methods = (create, add, reserve, release, commit)

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        for method in self._methods:
            await method.drain()

    async def _create(
        self, commands: Sequence[Command[NewProduct]], deadline: Deadline
    ) -> list[Outcome[pb.CreateProductResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[NewProduct]]
        ) -> list[Outcome[pb.CreateProductResponse]]:
            first = {(c.merchant_id, c.request.sku): c for c in reversed(fresh)}
            created = await store.insert_products(tx, [first[key].request for key in sorted(first)])
            return [
                Answer(pb.CreateProductResponse(product=_product(domain.new_product(c.request))))
                if first[(c.merchant_id, c.request.sku)] is c and (c.merchant_id, c.request.sku) in created
                else Failed(domain.product_exists(c.request.sku))
                for c in fresh
            ]

        return await run_set(
            self._database, "CreateProduct", commands, work, Pack(pb.CreateProductResponse), deadline
        )

    async def _add(
        self, commands: Sequence[Command[Delivery]], deadline: Deadline
    ) -> list[Outcome[pb.AddStockResponse]]:
        async def work(tx: Transaction, fresh: list[Command[Delivery]]) -> list[Outcome[pb.AddStockResponse]]:
            before = await store.lock_products(tx, [(c.merchant_id, c.request.sku) for c in fresh])
            decisions = domain.deliver(before, [c.request for c in fresh])
            after = {(p.merchant_id, p.sku): p for p in decisions if isinstance(p, Product)}
            store.save_stock(tx, {key: p.on_hand - before[key].on_hand for key, p in after.items()}, {})
            return [
                Answer(pb.AddStockResponse(product=_product(d))) if isinstance(d, Product) else Failed(d)
                for d in decisions
            ]

        return await run_set(self._database, "AddStock", commands, work, Pack(pb.AddStockResponse), deadline)

    async def _reserve(
        self, commands: Sequence[Command[Reserve]], deadline: Deadline
    ) -> list[Outcome[pb.ReserveStockResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[Reserve]]
        ) -> list[Outcome[pb.ReserveStockResponse]]:
            # An order that has a reservation already must not take stock from its neighbours: so first all wishes are
            # recorded, then those that were new are decided, then the refused ones are taken out again.
            wishes = [domain.new_reservation(c.request, c.resource_id, now_ms()) for c in fresh]
            recorded, stock = await store.insert_reservations(tx, wishes)
            new = [wish for wish in wishes if wish.reservation_id in recorded]
            refusals = dict(zip((w.reservation_id for w in new), domain.reserve(stock, new), strict=True))
            store.delete_reservations(tx, [w for w in new if refusals[w.reservation_id] is not None])
            store.save_stock(tx, {}, domain.pieces(w for w in new if refusals[w.reservation_id] is None))
            lost = {(w.merchant_id, w.order_id) for w in new if refusals[w.reservation_id] is not None}
            outcomes: list[Outcome[pb.ReserveStockResponse]] = []
            announcements = []
            for command, wish in zip(fresh, wishes, strict=True):
                refusal: PaymeshError | None = refusals.get(
                    wish.reservation_id, domain.order_is_taken(wish, lost)
                )
                if refusal is None:
                    message = _reservation(wish)
                    outcomes.append(Answer(pb.ReserveStockResponse(reservation=message)))
                    announcements.append(
                        _announcement(command, events_pb2.StockReserved(reservation=message))
                    )
                else:
                    outcomes.append(Failed(refusal))
            announce(tx, announcements)
            return outcomes

        return await run_set(self._database, "ReserveStock", commands, work, self._reserved, deadline)

    async def _release(
        self, commands: Sequence[Command[End]], deadline: Deadline
    ) -> list[Outcome[pb.ReleaseStockResponse]]:
        async def work(tx: Transaction, fresh: list[Command[End]]) -> list[Outcome[pb.ReleaseStockResponse]]:
            keys = [_do_key(c) for c in fresh if isinstance(c.request.target, ByKey)]
            arrived = await bar(tx, "ReserveStock", keys, self._reserved) if keys else {}
            ids = [(c.merchant_id, _reservation_id(c, arrived)) for c in fresh]
            decisions, freed = domain.end(await store.lock_reservations(tx, ids), ids, domain.release)
            store.save_ended(tx, freed)
            pieces = domain.pieces(freed)
            await store.lock_products(tx, pieces)
            store.save_stock(tx, {}, {key: -quantity for key, quantity in pieces.items()})
            outcomes: list[Outcome[pb.ReleaseStockResponse]] = []
            for command, decision in zip(fresh, decisions, strict=True):
                if decision is None and isinstance(command.request.target, ByKey):
                    decision = domain.nothing_reserved(command.merchant_id)
                if isinstance(decision, Reservation):
                    outcomes.append(Answer(pb.ReleaseStockResponse(reservation=_reservation(decision))))
                else:
                    outcomes.append(Failed(decision or domain.no_reservation(str(command.request.target))))
            announce(tx, _ended(fresh, decisions, freed, events_pb2.StockReleased))
            return outcomes

        return await run_set(
            self._database, "ReleaseStock", commands, work, Pack(pb.ReleaseStockResponse), deadline
        )

    async def _commit(
        self, commands: Sequence[Command[End]], deadline: Deadline
    ) -> list[Outcome[pb.CommitStockResponse]]:
        async def work(tx: Transaction, fresh: list[Command[End]]) -> list[Outcome[pb.CommitStockResponse]]:
            ids = [(c.merchant_id, str(c.request.target)) for c in fresh]
            decisions, gone = domain.end(await store.lock_reservations(tx, ids), ids, domain.commit)
            store.save_ended(tx, gone)
            pieces = {key: -quantity for key, quantity in domain.pieces(gone).items()}
            await store.lock_products(tx, pieces)
            store.save_stock(tx, pieces, pieces)
            announce(tx, _ended(fresh, decisions, gone, events_pb2.StockCommitted))
            return [
                Answer(pb.CommitStockResponse(reservation=_reservation(d)))
                if isinstance(d, Reservation)
                else Failed(d or domain.no_reservation(str(c.request.target)))
                for c, d in zip(fresh, decisions, strict=True)
            ]

        return await run_set(
            self._database, "CommitStock", commands, work, Pack(pb.CommitStockResponse), deadline
        )

    async def GetProduct(self, request: pb.GetProductRequest, context: Any) -> pb.GetProductResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("sku", request.sku)
        checks.done()
        product = await store.find_product(self._database, request.merchant_id, request.sku)
        if product is None:
            raise NotFound("UNKNOWN_PRODUCT", f"there is no product {request.sku!r}")
        return pb.GetProductResponse(product=_product(product))

    async def ListProducts(self, request: pb.ListProductsRequest, context: Any) -> pb.ListProductsResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("page_token", request.page_token, optional=True)
        checks.done()
        size = page_size(request.page_size)
        page = await store.list_products(self._database, request.merchant_id, request.page_token, size + 1)
        more = page[size - 1].sku if len(page) > size else ""
        return pb.ListProductsResponse(products=[_product(p) for p in page[:size]], next_page_token=more)

    async def GetReservation(
        self, request: pb.GetReservationRequest, context: Any
    ) -> pb.GetReservationResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("reservation_id", request.reservation_id)
        checks.done()
        reservation = await store.find_reservation(
            self._database, request.merchant_id, request.reservation_id
        )
        if reservation is None:
            raise domain.no_reservation(request.reservation_id)
        return pb.GetReservationResponse(reservation=_reservation(reservation))


async def _recall(
    tx: Transaction, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], pb.ReserveStockResponse]:
    """The answers of ReserveStock, whatever has become of the reservations since."""
    made = await store.lock_reservations(tx, keys)
    return {
        key: pb.ReserveStockResponse(reservation=_reservation(domain.as_made(r))) for key, r in made.items()
    }


def _new_product(request: pb.CreateProductRequest) -> NewProduct:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("sku", request.sku)
    checks.text("name", request.name, max_length=200, optional=True)
    checks.number("initial_quantity", request.initial_quantity, at_least=0, at_most=STOCK_MAX)
    checks.done()
    return NewProduct(request.merchant_id, request.sku, request.name, request.initial_quantity)


def _delivery(request: pb.AddStockRequest) -> Delivery:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("sku", request.sku)
    checks.number("quantity", request.quantity, at_least=1, at_most=STOCK_MAX)
    checks.done()
    return Delivery(request.merchant_id, request.sku, request.quantity)


def _reserve(request: pb.ReserveStockRequest) -> Reserve:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_id", request.order_id)
    checks.number("lines", len(request.lines), at_least=1, at_most=LINES_MAX)
    for place, line in enumerate(request.lines[:LINES_MAX]):
        checks.text(f"lines[{place}].sku", line.sku)
        checks.number(f"lines[{place}].quantity", line.quantity, at_least=1, at_most=QUANTITY_MAX)
    checks.done()
    lines = domain.merge_lines((line.sku, line.quantity) for line in request.lines)
    return Reserve(request.merchant_id, request.order_id, lines)


def _release(request: pb.ReleaseStockRequest) -> End:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    which = request.WhichOneof("target")
    if which == "reserve_key":
        checks.text("reserve_key", request.reserve_key, max_length=255)
    else:
        checks.text("reservation_id", request.reservation_id)
    checks.done()
    by_key = which == "reserve_key"
    return End(request.merchant_id, ByKey(request.reserve_key) if by_key else request.reservation_id)


def _commit(request: pb.CommitStockRequest) -> End:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("reservation_id", request.reservation_id)
    checks.done()
    return End(request.merchant_id, request.reservation_id)


def _do_key(command: Command[End]) -> Identity:
    """Identity of the ReserveStock that the command undoes."""
    target = command.request.target
    return (command.merchant_id, command.caller, target.reserve_key if isinstance(target, ByKey) else "")


def _reservation_id(command: Command[End], arrived: Mapping[Identity, str]) -> str:
    """The reservation that the command is about; "" when it is named by a key that has not arrived."""
    target = command.request.target
    return arrived.get(_do_key(command), "") if isinstance(target, ByKey) else target


def _product(product: Product) -> pb.Product:
    return pb.Product(
        merchant_id=product.merchant_id,
        sku=product.sku,
        name=product.name,
        on_hand_quantity=product.on_hand,
        reserved_quantity=product.reserved,
    )


def _reservation(reservation: Reservation) -> pb.Reservation:
    message = pb.Reservation(
        merchant_id=reservation.merchant_id,
        reservation_id=reservation.reservation_id,
        order_id=reservation.order_id,
        state=_STATES[reservation.state],
    )
    lines = message.lines
    for sku, quantity in reservation.lines.items():
        lines.add(sku=sku, quantity=quantity)
    if reservation.created_at_ms:
        write_timestamp(message.created_at, reservation.created_at_ms)
    return message


def _announcement(command: Command[Any], event: Any) -> Announcement:
    reservation: pb.Reservation = event.reservation
    return Announcement(command.merchant_id, reservation.reservation_id, event, traceparent_of(command.span))


def _ended(
    commands: Sequence[Command[End]], decisions: Sequence[object], changed: Sequence[Reservation], event: Any
) -> list[Announcement]:
    """One announcement per reservation that changed, with the trace of the command that changed it."""
    by = {id(d): c for c, d in zip(reversed(commands), reversed(decisions), strict=True)}
    return [_announcement(by[id(r)], event(reservation=_reservation(r))) for r in changed]
