"""The RPCs of the orchestrator: proto in, sagas, proto out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.checks import Checks, page_size
from services.kit.coalescer import Limits
from services.kit.db import Database
from services.kit.deadline import Deadline
from services.kit.rpc.method import SetMethod
from services.orchestrator import domain, store
from services.orchestrator.clients import Payments
from services.orchestrator.interventions import Close, Retry, no_saga
from services.orchestrator.ownership import Ownership
from services.orchestrator.runner import Engine
from services.orchestrator.service import messages, requests
from services.orchestrator.service.choreography import Observer
from services.orchestrator.service.intervening import Intervening, close_wish, retry_wish
from services.orchestrator.service.messages import STATES, saga_message
from services.orchestrator.service.placed import BeginWith
from services.orchestrator.service.placing import begin_placing
from services.orchestrator.service.reading import Reader, View
from services.orchestrator.service.requests import Wish
from services.orchestrator.service.starting import Starts

NAME = "paymesh.orchestrator.v1.OrchestratorService"

WATCH_POLL_SECONDS = 0.25
"""How often a watched saga that another orchestrator drives is read again."""
WAVE_MS = 200.0
"""How long a few single orders wait while two small waves are under way: about what a wave takes."""
ANSWER_SECONDS = 30.0
"""How long the answer of a saga may take; it is carried to its end in any case."""
PAYMENT_SECONDS = 1.0
"""How long payment may take to tell how a payment stands; an order is told without it then."""


class OrchestratorService:
    """See the contract, paymesh/orchestrator/v1/orchestrator.proto."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        ownership: Ownership,
        observer: Observer,
        payments: Payments,
    ) -> None:
        self._database = database
        self._engine = engine
        self._payments = payments
        self._reader = Reader(database, engine)
        place: Starts[pb.PlaceOrderRequest, pb.PlaceOrderResponse] = Starts(
            database,
            engine,
            ownership,
            observer,
            "PlaceOrder",
            messages.PLACED,
            begin_placing,
            lambda _, saga_id: domain.order_id_of(saga_id),
        )

        def starts(kind: str, method: str) -> Starts[Wish, Any]:
            begin = BeginWith(domain.PLANS[kind])
            pack = messages.PACKS[kind]
            return Starts(
                database, engine, ownership, observer, method, pack, begin, lambda c, _: c.request.order_id
            )

        placing = _method(place, requests.parse_order, pb.BatchPlaceOrdersResponse)
        dispatching = _method(
            starts("dispatch", "DispatchOrder"), requests.parse_dispatch, pb.BatchDispatchOrdersResponse
        )
        cancelling = _method(
            starts("cancel", "CancelOrder"), requests.parse_cancel, pb.BatchCancelOrdersResponse
        )
        returning = _method(
            starts("return", "ReturnOrder"), requests.parse_return, pb.BatchReturnOrdersResponse
        )
        self.PlaceOrder, self.BatchPlaceOrders = placing.single, placing.batch
        self.DispatchOrder, self.BatchDispatchOrders = dispatching.single, dispatching.batch
        self.CancelOrder, self.BatchCancelOrders = cancelling.single, cancelling.batch
        self.ReturnOrder, self.BatchReturnOrders = returning.single, returning.batch
        intervening = Intervening(database, engine, ownership)
        retrying: SetMethod[Retry, pb.RetrySagaResponse] = SetMethod(
            f"{NAME}/RetrySaga",
            parse=retry_wish,
            handle=intervening.retry,
            batch_response=pb.BatchRetrySagasResponse,
        )
        closing: SetMethod[Close, pb.CloseSagaResponse] = SetMethod(
            f"{NAME}/CloseSaga",
            parse=close_wish,
            handle=intervening.close,
            batch_response=pb.BatchCloseSagasResponse,
        )
        self.RetrySaga, self.BatchRetrySagas = retrying.single, retrying.batch
        self.CloseSaga, self.BatchCloseSagas = closing.single, closing.batch
        self._methods: tuple[SetMethod[Any, Any], ...] = (
            placing,
            dispatching,
            cancelling,
            returning,
            retrying,
            closing,
        )

    async def drain(self) -> None:
        """Wait until every saga that was accepted has been begun; its end may be another orchestrator's."""
        for method in self._methods:
            await method.drain()

    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.GetOrderResponse:
        _check_order(request)
        view = await self._reader.order(request.merchant_id, request.order_id)
        order = view.order()
        payment = None
        if order.payment_id:
            deadline = Deadline.after(PAYMENT_SECONDS)
            payment = await self._payments.find(order.merchant_id, order.payment_id, deadline)
        return pb.GetOrderResponse(
            order=order, saga=view.placing.message(), sagas=view.sagas(), payment=payment
        )

    async def ListOrders(self, request: pb.ListOrdersRequest, context: Any) -> pb.ListOrdersResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("order_reference", request.order_reference, optional=True)
        checks.text("page_token", request.page_token, optional=True)
        checks.done()
        size = page_size(request.page_size)
        page = await self._reader.orders(
            request.merchant_id, request.order_reference, request.page_token, size + 1
        )
        orders = [view.order() for view in page]
        more = orders[size - 1].order_id if len(orders) > size else ""
        return pb.ListOrdersResponse(orders=orders[:size], next_page_token=more)

    async def WatchOrder(
        self, request: pb.WatchOrderRequest, context: Any
    ) -> AsyncIterator[pb.WatchOrderResponse]:
        _check_order(request)
        last: View | None = None
        while True:
            view = await self._reader.order(request.merchant_id, request.order_id)
            if view != last:
                last = view
                yield pb.WatchOrderResponse(
                    order=view.order(), saga=view.placing.message(), sagas=view.sagas()
                )
            if view.under_way is None:
                return
            running = self._engine.running(view.under_way.saga.key)
            if running is None:
                await asyncio.sleep(WATCH_POLL_SECONDS)
            elif running.durable == view.under_way.saga:
                await self._engine.changed(running, WATCH_POLL_SECONDS)

    async def GetSaga(self, request: pb.GetSagaRequest, context: Any) -> pb.GetSagaResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("saga_id", request.saga_id)
        checks.done()
        found = await self._reader.saga((request.merchant_id, request.saga_id))
        if found is None:
            raise no_saga(request.saga_id)
        return pb.GetSagaResponse(saga=found.message())

    async def ListSagas(self, request: pb.ListSagasRequest, context: Any) -> pb.ListSagasResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("page_token", request.page_token, optional=True)
        by_number = {number: state for state, number in STATES.items()}
        for place, number in enumerate(request.states):
            if number not in by_number:
                checks.fail(f"states[{place}]", f"{number} is not a state of a saga")
        checks.done()
        size = page_size(request.page_size)
        states = [by_number[number] for number in request.states]
        page = await store.list_sagas(
            self._database, request.merchant_id, states, request.page_token, size + 1
        )
        more = page[size - 1].saga.saga_id if len(page) > size else ""
        sagas = [
            saga_message(s.saga, s.owner_epoch, history=False, interventions=s.interventions)
            for s in page[:size]
        ]
        return pb.ListSagasResponse(sagas=sagas, next_page_token=more)


def _method(starts: Starts[Any, Any], parse: Any, batch_response: Any) -> SetMethod[Any, Any]:
    return SetMethod(
        f"{NAME}/{starts.method}",
        parse=parse,
        handle=starts.handle,
        batch_response=batch_response,
        id_prefix="saga",
        seconds_max=ANSWER_SECONDS,
        limits=Limits(linger_ms=WAVE_MS),
        starts_traces=True,
    )


def _check_order(request: pb.GetOrderRequest | pb.WatchOrderRequest) -> None:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_id", request.order_id)
    checks.done()
