"""The RPCs of inventory: proto in, domain, proto out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paymesh.inventory.v1 import events_pb2
from paymesh.inventory.v1 import inventory_pb2 as pb
from services.inventory import domain, store
from services.inventory.domain import (
    ByKey,
    Delivery,
    End,
    NewProduct,
    Product,
    Reservation,
    Reserve,
    Return,
    StockReturn,
)
from services.inventory.service import messages
from services.inventory.service.messages import product_message, reservation_message
from services.kit.checks import Checks, page_size
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import NotFound, PaymeshError
from services.kit.idempotency import Identity, bar, run_set
from services.kit.outbox import Announcement, announce
from services.kit.rpc.method import SetMethod
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, Outcome
from services.kit.telemetry import traceparent_of

NAME = "paymesh.inventory.v1.InventoryService"


class InventoryService:
    """See the contract, paymesh/inventory/v1/inventory.proto."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reserved = Pack(pb.ReserveStockResponse, _recall)
        self._returned = Pack(pb.ReturnStockResponse, _recall_returns)
        create = SetMethod(
            f"{NAME}/CreateProduct",
            parse=messages.new_product,
            handle=self._create,
            batch_response=pb.BatchCreateProductsResponse,
        )
        add = SetMethod(
            f"{NAME}/AddStock",
            parse=messages.delivery,
            handle=self._add,
            batch_response=pb.BatchAddStockResponse,
        )
        reserve = SetMethod(
            f"{NAME}/ReserveStock",
            parse=messages.reserve_wish,
            handle=self._reserve,
            batch_response=pb.BatchReserveStockResponse,
            id_prefix="res",
        )
        release = SetMethod(
            f"{NAME}/ReleaseStock",
            parse=messages.release_wish,
            handle=self._release,
            batch_response=pb.BatchReleaseStockResponse,
        )
        commit = SetMethod(
            f"{NAME}/CommitStock",
            parse=messages.commit_wish,
            handle=self._commit,
            batch_response=pb.BatchCommitStockResponse,
        )
        take_back = SetMethod(
            f"{NAME}/ReturnStock",
            parse=messages.return_wish,
            handle=self._return,
            batch_response=pb.BatchReturnStockResponse,
            id_prefix="ret",
        )
        self.CreateProduct, self.BatchCreateProducts = create.single, create.batch
        self.AddStock, self.BatchAddStock = add.single, add.batch
        self.ReserveStock, self.BatchReserveStock = reserve.single, reserve.batch
        self.ReleaseStock, self.BatchReleaseStock = release.single, release.batch
        self.CommitStock, self.BatchCommitStock = commit.single, commit.batch
        self.ReturnStock, self.BatchReturnStock = take_back.single, take_back.batch
        self.reserving, self.releasing = reserve, release
        self._methods = (create, add, reserve, release, commit, take_back)

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
                Answer(pb.CreateProductResponse(product=product_message(domain.new_product(c.request))))
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
                Answer(pb.AddStockResponse(product=product_message(d)))
                if isinstance(d, Product)
                else Failed(d)
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
                    message = reservation_message(wish)
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
                    outcomes.append(
                        Answer(pb.ReleaseStockResponse(reservation=reservation_message(decision)))
                    )
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
                Answer(pb.CommitStockResponse(reservation=reservation_message(d)))
                if isinstance(d, Reservation)
                else Failed(d or domain.no_reservation(str(c.request.target)))
                for c, d in zip(fresh, decisions, strict=True)
            ]

        return await run_set(
            self._database, "CommitStock", commands, work, Pack(pb.CommitStockResponse), deadline
        )

    async def _return(
        self, commands: Sequence[Command[Return]], deadline: Deadline
    ) -> list[Outcome[pb.ReturnStockResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[Return]]
        ) -> list[Outcome[pb.ReturnStockResponse]]:
            keys = [c.request.reservation_key for c in fresh]
            reservations = await store.lock_reservations(tx, keys)
            earlier = await store.list_returns(tx, reservations)
            wishes = [(c.request, c.resource_id) for c in fresh]
            decisions = domain.take_back(reservations, earlier, wishes, now_ms())
            made = [d for d in decisions if isinstance(d, StockReturn)]
            store.insert_returns(tx, made)
            pieces = domain.pieces(made)
            await store.lock_products(tx, pieces)
            store.save_stock(tx, pieces, {})
            outcomes: list[Outcome[pb.ReturnStockResponse]] = []
            announcements = []
            for command, decision in zip(fresh, decisions, strict=True):
                if isinstance(decision, StockReturn):
                    message = messages.return_message(decision)
                    outcomes.append(Answer(pb.ReturnStockResponse(stock_return=message)))
                    event = events_pb2.StockReturned(stock_return=message)
                    trace = traceparent_of(command.span)
                    announcements.append(Announcement(*decision.key, event, trace))
                else:
                    outcomes.append(Failed(decision))
            announce(tx, announcements)
            return outcomes

        return await run_set(self._database, "ReturnStock", commands, work, self._returned, deadline)

    async def GetProduct(self, request: pb.GetProductRequest, context: Any) -> pb.GetProductResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("sku", request.sku)
        checks.done()
        product = await store.find_product(self._database, request.merchant_id, request.sku)
        if product is None:
            raise NotFound("UNKNOWN_PRODUCT", f"there is no product {request.sku!r}")
        return pb.GetProductResponse(product=product_message(product))

    async def ListProducts(self, request: pb.ListProductsRequest, context: Any) -> pb.ListProductsResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("page_token", request.page_token, optional=True)
        checks.done()
        size = page_size(request.page_size)
        page = await store.list_products(self._database, request.merchant_id, request.page_token, size + 1)
        more = page[size - 1].sku if len(page) > size else ""
        return pb.ListProductsResponse(
            products=[product_message(p) for p in page[:size]], next_page_token=more
        )

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
        return pb.GetReservationResponse(reservation=reservation_message(reservation))


async def _recall(
    tx: Transaction, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], pb.ReserveStockResponse]:
    """The answers of ReserveStock, whatever has become of the reservations since."""
    made = await store.lock_reservations(tx, keys)
    return {
        key: pb.ReserveStockResponse(reservation=reservation_message(domain.as_made(r)))
        for key, r in made.items()
    }


async def _recall_returns(
    tx: Transaction, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], pb.ReturnStockResponse]:
    """The answers of ReturnStock."""
    return {
        made.key: pb.ReturnStockResponse(stock_return=messages.return_message(made))
        for made in await store.find_returns(tx, keys)
    }


def _do_key(command: Command[End]) -> Identity:
    """Identity of the ReserveStock that the command undoes."""
    target = command.request.target
    return (command.merchant_id, command.caller, target.reserve_key if isinstance(target, ByKey) else "")


def _reservation_id(command: Command[End], arrived: Mapping[Identity, str]) -> str:
    """The reservation that the command is about; "" when it is named by a key that has not arrived."""
    target = command.request.target
    return arrived.get(_do_key(command), "") if isinstance(target, ByKey) else target


def _announcement(command: Command[Any], event: Any) -> Announcement:
    reservation: pb.Reservation = event.reservation
    return Announcement(command.merchant_id, reservation.reservation_id, event, traceparent_of(command.span))


def _ended(
    commands: Sequence[Command[End]], decisions: Sequence[object], changed: Sequence[Reservation], event: Any
) -> list[Announcement]:
    """One announcement per reservation that changed, with the trace of the command that changed it."""
    by = {id(d): c for c, d in zip(reversed(commands), reversed(decisions), strict=True)}
    return [_announcement(by[id(r)], event(reservation=reservation_message(r))) for r in changed]
