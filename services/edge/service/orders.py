"""Orders over HTTP."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.edge.clients import Clients
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
from services.edge.service.messages import attempt_json, order_json, order_request
from services.kit.checks import ID_LENGTH_MAX

OrderId = Annotated[str, Path(max_length=ID_LENGTH_MAX, examples=["ord_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])]
_PLACING = "place"
"""The kind of the saga that an order begins with; others may follow for the same order."""


class Orders:
    """See the OpenAPI document."""

    def __init__(self, clients: Clients, cards: Cards) -> None:
        self._clients = clients
        self._cards = cards
        self.router = router = APIRouter(prefix="/api/v1/orders", tags=["orders"])
        router.post(
            "",
            status_code=201,
            response_model=bodies.Order,
            responses={201: {"headers": replay_header()}, **responses(*CHANGES, *documented.PLACE)},
            summary="Place an order",
        )(self.place)
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

    async def show(self, order_id: OrderId, request: Request) -> dict[str, Any]:
        """What it is, and every attempt at its steps."""
        found = await self._read(merchant_of(request), order_id)
        history = [attempt_json(attempt) for attempt in found.saga.history]
        return {**order_json(found.order), "history": history}

    async def list(
        self, request: Request, limit: Limit = PAGE_LIMIT_DEFAULT, page: Page = ""
    ) -> dict[str, Any]:
        """The orders of the merchant, page by page."""
        merchant_id = merchant_of(request)
        wish = pb.ListSagasRequest(merchant_id=merchant_id, page_size=limit, page_token=page)
        listed = await self._clients.read(self._clients.orchestrator.ListSagas, wish)
        placed = [saga.order_id for saga in listed.sagas if saga.kind == _PLACING]
        found = await asyncio.gather(*(self._read(merchant_id, order_id) for order_id in placed))
        return page_of([order_json(one.order) for one in found], listed.next_page_token)

    async def _read(self, merchant_id: str, order_id: str) -> pb.GetOrderResponse:
        wish = pb.GetOrderRequest(merchant_id=merchant_id, order_id=order_id)
        found: pb.GetOrderResponse = await self._clients.read(self._clients.orchestrator.GetOrder, wish)
        return found
