"""Orders over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.edge.clients import Clients
from services.edge.domain import problems
from services.edge.domain.problems import Declined
from services.edge.service import bodies, documented
from services.edge.service.documented import CHANGES, NOT_FOUND, READS, replay_header, responses
from services.edge.service.door import (
    PAGE_LIMIT_DEFAULT,
    Cards,
    Key,
    Limit,
    Page,
    key_of,
    mark,
    merchant_of,
    page_of,
)
from services.edge.service.messages import money, order_json, order_request, order_story_json, saga_json
from services.kit.checks import ID_LENGTH_MAX

OrderId = Annotated[str, Path(max_length=ID_LENGTH_MAX, examples=["ord_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])]
_NOTHING_TO_SAY = bodies.DispatchRequest()
_NO_NOTE = bodies.CancelRequest()
_ALL_THAT_IS_LEFT = bodies.ReturnRequest()


class Orders:
    """See the OpenAPI document."""

    def __init__(self, clients: Clients, cards: Cards) -> None:
        self._clients = clients
        self._cards = cards
        self.router = router = APIRouter(prefix="/api/v1/orders", tags=["orders"])
        ok = {"headers": replay_header()}
        router.post(
            "",
            status_code=201,
            response_model=bodies.Order,
            responses={201: ok, **responses(*CHANGES, *documented.PLACE)},
            summary="Place an order",
        )(self.place)
        for name, method, summary, errors in (
            ("dispatch", self.dispatch, "Send an order out of the door", documented.DISPATCH),
            ("cancel", self.cancel, "Undo an order that has not left", documented.CANCEL),
            ("return", self.take_back, "Take goods back, all of them or a part", documented.RETURN),
        ):
            router.post(
                f"/{{order_id}}/{name}",
                response_model=bodies.ChangedOrder,
                responses={200: ok, **responses(*CHANGES, *errors)},
                summary=summary,
            )(method)
        router.get(
            "/{order_id}",
            response_model=bodies.OrderStory,
            responses=responses(*READS, NOT_FOUND),
            summary="An order with its history",
        )(self.show)
        router.get(
            "", response_model=bodies.OrderPage, responses=responses(*READS), summary="Orders, newest first"
        )(self.list)

    async def place(
        self, body: bodies.OrderRequest, request: Request, response: Response, idempotency_key: Key
    ) -> dict[str, Any]:
        """Reserves the stock, authorizes the payment and books the shipment, or undoes all of it. Answers when that is
        decided. Once accepted, an order is carried to its end even if you go away."""
        merchant_id, key = merchant_of(request), key_of(request)
        card, _ = await self._cards.take(merchant_id, body.card)
        wish = order_request(merchant_id, body, card)
        clients = self._clients
        answered = await clients.change(clients.orchestrator.PlaceOrder, wish, key, clients.order_seconds)
        mark(response, answered)
        order = order_json(answered.message.order)
        response.headers["Location"] = f"/api/v1/orders/{order['id']}"
        return order

    async def dispatch(
        self,
        order_id: OrderId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.DispatchRequest = _NOTHING_TO_SAY,
    ) -> dict[str, Any]:
        """Captures the payment, hands the shipment to the carrier and takes the stock out, in this order. When the
        payment cannot be captured nothing has happened: that is a result and no error, with a `saga` that is
        `compensated` and says why."""
        return await self._begin(
            self._clients.orchestrator.DispatchOrder, pb.DispatchOrderRequest(), order_id, request, response
        )

    async def cancel(
        self,
        order_id: OrderId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.CancelRequest = _NO_NOTE,
    ) -> dict[str, Any]:
        """Calls the shipment off, lets go of the money and gives the stock back. Of a cancellation and a dispatch at
        the same moment exactly one is carried out."""
        wish = pb.CancelOrderRequest(note=body.note)
        return await self._begin(self._clients.orchestrator.CancelOrder, wish, order_id, request, response)

    async def take_back(
        self,
        order_id: OrderId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.ReturnRequest = _ALL_THAT_IS_LEFT,
    ) -> dict[str, Any]:
        """Refunds the money, then puts the goods on the shelf again; once or several times, never more than was sold
        and charged. When the refund is refused nothing has happened: a result, with a `saga` that is `compensated`."""
        wish = pb.ReturnOrderRequest(note=body.note)
        if (body.lines is None) != (body.amount is None):
            raise Declined(problems.lines_and_amount("lines" if body.lines is None else "amount"))
        if body.lines is not None and body.amount is not None:
            key_of(request)  # before anybody is asked
            currency = (await self._read(merchant_of(request), order_id)).order.amount.currency
            wish.amount.CopyFrom(money(body.amount, currency))
            for line in body.lines:
                wish.lines.add(sku=line.sku, quantity=line.quantity)
        return await self._begin(self._clients.orchestrator.ReturnOrder, wish, order_id, request, response)

    async def show(self, order_id: OrderId, request: Request) -> dict[str, Any]:
        """What it is, everything that was begun with it, and how its payment stands."""
        return order_story_json(await self._read(merchant_of(request), order_id))

    async def list(
        self,
        request: Request,
        reference: Annotated[
            str, Query(max_length=ID_LENGTH_MAX, description="Only the order of this reference.")
        ] = "",
        limit: Limit = PAGE_LIMIT_DEFAULT,
        page: Page = "",
    ) -> dict[str, Any]:
        """The orders of the merchant, page by page."""
        wish = pb.ListOrdersRequest(
            merchant_id=merchant_of(request), order_reference=reference, page_size=limit, page_token=page
        )
        listed = await self._clients.read(self._clients.orchestrator.ListOrders, wish)
        return page_of([order_json(order) for order in listed.orders], listed.next_page_token)

    async def _begin(
        self, method: Any, wish: Any, order_id: str, request: Request, response: Response
    ) -> dict[str, Any]:
        """Something with an order that is there."""
        wish.merchant_id, wish.order_id = merchant_of(request), order_id
        answered = await self._clients.change(method, wish, key_of(request), self._clients.order_seconds)
        mark(response, answered)
        return {**order_json(answered.message.order), "saga": saga_json(answered.message.saga)}

    async def _read(self, merchant_id: str, order_id: str) -> pb.GetOrderResponse:
        wish = pb.GetOrderRequest(merchant_id=merchant_id, order_id=order_id)
        found: pb.GetOrderResponse = await self._clients.read(self._clients.orchestrator.GetOrder, wish)
        return found
