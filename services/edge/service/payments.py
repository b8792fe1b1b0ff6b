"""Payments over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request, Response

from paymesh.payment.v1 import payment_pb2 as pb
from services.edge.clients import Clients
from services.edge.domain import problems
from services.edge.domain.keys import order_of_key
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
from services.edge.service.messages import card_json, customer_of, event_json, money, payment_json
from services.kit.checks import ID_LENGTH_MAX

PaymentId = Annotated[str, Path(max_length=ID_LENGTH_MAX, examples=["pay_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])]
_ALL_HELD = bodies.CaptureRequest()
_NO_NOTE = bodies.VoidRequest()
_ALL_CAPTURED = bodies.RefundRequest()
_INITIATED = 1
"""Version of the event that names the card."""


class Payments:
    """See the OpenAPI document."""

    def __init__(self, clients: Clients, cards: Cards) -> None:
        self._clients = clients
        self._cards = cards
        self.router = router = APIRouter(prefix="/api/v1/payments", tags=["payments"])
        ok = {"headers": replay_header()}
        router.post(
            "",
            status_code=201,
            response_model=bodies.NewPayment,
            responses={201: ok, **responses(*CHANGES, *documented.AUTHORIZE)},
            summary="Authorize: hold an amount on a card",
        )(self.authorize)
        for name, method, summary, errors in (
            ("capture", self.capture, "Take money that is held, all of it or a part", documented.CAPTURE),
            ("void", self.void, "Let go of what is held and was not captured", documented.VOID),
            ("refund", self.refund, "Give captured money back, all of it or a part", documented.REFUND),
            ("increment", self.increment, "Hold more on the card", documented.INCREMENT),
        ):
            router.post(
                f"/{{payment_id}}/{name}",
                response_model=bodies.Payment,
                responses={200: ok, **responses(*CHANGES, *errors)},
                summary=summary,
            )(method)
        router.get(
            "/{payment_id}",
            response_model=bodies.PaymentStory,
            responses=responses(*READS, NOT_FOUND),
            summary="A payment with its events",
        )(self.show)
        router.get(
            "",
            response_model=bodies.PaymentPage,
            responses=responses(*READS),
            summary="Payments, newest first",
        )(self.list)

    async def authorize(
        self, body: bodies.PaymentRequest, request: Request, response: Response, idempotency_key: Key
    ) -> dict[str, Any]:
        """Checks for fraud and places a hold on the card. A card that is declined is a result and no error: read
        `status`."""
        merchant_id, key = merchant_of(request), key_of(request)
        if body.order_id and body.order_id.startswith(problems.ORDER_PREFIX):
            raise Declined(problems.order_id_taken())
        card, kept = await self._cards.take(merchant_id, body.card)
        wish = pb.AuthorizePaymentRequest(
            merchant_id=merchant_id,
            order_id=body.order_id or order_of_key(key),
            amount=money(body.amount, body.currency),
            card=card,
            customer=customer_of(body.customer),
        )
        payment = await self._change(self._clients.payment.AuthorizePayment, wish, key, response)
        response.headers["Location"] = f"/api/v1/payments/{payment['id']}"
        return {**payment, "card": card_json(kept)}

    async def capture(
        self,
        payment_id: PaymentId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.CaptureRequest = _ALL_HELD,
    ) -> dict[str, Any]:
        """Several captures may share one authorization; their sum never exceeds it."""
        wish = pb.CapturePaymentRequest(final=body.final, note=body.note)
        return await self._move(
            self._clients.payment.CapturePayment, wish, payment_id, body.amount, request, response
        )

    async def void(
        self,
        payment_id: PaymentId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.VoidRequest = _NO_NOTE,
    ) -> dict[str, Any]:
        """Repeating it, also with another key, changes nothing."""
        wish = pb.VoidPaymentRequest(note=body.note)
        return await self._move(self._clients.payment.VoidPayment, wish, payment_id, None, request, response)

    async def refund(
        self,
        payment_id: PaymentId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.RefundRequest = _ALL_CAPTURED,
    ) -> dict[str, Any]:
        """Several refunds may share one payment; their sum never exceeds what was captured."""
        wish = pb.RefundPaymentRequest(note=body.note)
        return await self._move(
            self._clients.payment.RefundPayment, wish, payment_id, body.amount, request, response
        )

    async def increment(
        self,
        payment_id: PaymentId,
        body: bodies.IncrementRequest,
        request: Request,
        response: Response,
        idempotency_key: Key,
    ) -> dict[str, Any]:
        """Only while the payment is `authorized`. Its expiry stays."""
        wish = pb.IncrementAuthorizationRequest(note=body.note)
        method = self._clients.payment.IncrementAuthorization
        return await self._move(method, wish, payment_id, body.amount, request, response)

    async def show(self, payment_id: PaymentId, request: Request) -> dict[str, Any]:
        """What it is, and everything that has happened to it."""
        merchant_id = merchant_of(request)
        found = await self._read(merchant_id, payment_id)
        initiated = next((e for e in found.events if e.version == _INITIATED), None)
        token = str(orjson.loads(initiated.data_json).get("card_token", "")) if initiated else ""
        kept = await self._cards.of_token(merchant_id, token) if token else None
        events = [event_json(event) for event in found.events]
        for event in events:
            if kept is not None and event["version"] == _INITIATED:
                # The processor takes its own token of a card from whoever sends it: it is nobody else's business.
                event["data"]["card_token"] = kept.card_id
        return {**payment_json(found.payment), "card": card_json(kept), "events": events}

    async def list(
        self,
        request: Request,
        order_id: Annotated[
            str, Query(max_length=ID_LENGTH_MAX, description="Only those of this order.")
        ] = "",
        limit: Limit = PAGE_LIMIT_DEFAULT,
        page: Page = "",
    ) -> dict[str, Any]:
        """The payments of the merchant, page by page."""
        wish = pb.ListPaymentsRequest(
            merchant_id=merchant_of(request), order_id=order_id, page_size=limit, page_token=page
        )
        listed = await self._clients.read(self._clients.payment.ListPayments, wish)
        return page_of([payment_json(payment) for payment in listed.payments], listed.next_page_token)

    async def _move(
        self,
        method: Any,
        wish: Any,
        payment_id: str,
        amount: int | None,
        request: Request,
        response: Response,
    ) -> dict[str, Any]:
        """A change of a payment that is there. An amount is in the payment's currency. That never changes, so a repeat
        finds it as it was."""
        wish.merchant_id, wish.payment_id = merchant_of(request), payment_id
        key = key_of(request)
        if amount is not None:
            payment = (await self._read(wish.merchant_id, payment_id)).payment
            wish.amount.CopyFrom(money(amount, payment.amount.currency))
        return await self._change(method, wish, key, response)

    async def _change(self, method: Any, wish: Any, key: str, response: Response) -> dict[str, Any]:
        answered = await self._clients.change(method, wish, key, self._clients.payment_seconds)
        mark(response, answered)
        return payment_json(answered.message.payment)

    async def _read(self, merchant_id: str, payment_id: str) -> pb.GetPaymentResponse:
        wish = pb.GetPaymentRequest(merchant_id=merchant_id, payment_id=payment_id)
        found: pb.GetPaymentResponse = await self._clients.read(self._clients.payment.GetPayment, wish)
        return found
