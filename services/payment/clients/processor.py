"""The processor. Keys are derived from the payment and the operation, so that every repeat is recognized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc.aio
from opentelemetry.trace import Span

from paymesh.bank.v1 import bank_pb2, bank_pb2_grpc
from paymesh.result.v1 import failure_pb2
from services.kit.deadline import Deadline
from services.kit.errors import Kind, NotFound, PaymeshError, Refused
from services.kit.rpc.client import call
from services.kit.rpc.failures import from_failure
from services.kit.rpc.values import write_money
from services.kit.telemetry import traceparent_of
from services.payment.clients.fraud import Asked
from services.payment.domain import (
    Absent,
    Approved,
    Authorization,
    Declined,
    Done,
    Gone,
    Letting,
    Lost,
    Movement,
    Payment,
    RefusedByProcessor,
    State,
    intent_number,
)


class _Way(NamedTuple):
    """How increments, captures or refunds are asked for."""

    name: str
    """In the key of the operation."""
    method: Callable[[Any], Any]
    """Of the stub."""
    batch: Callable[[], Any]
    """Makes an empty request for a list."""


_WAYS = {
    State.INCREMENTING: _Way(
        "increment",
        lambda stub: stub.BatchIncrementAuthorizations,
        bank_pb2.BatchIncrementAuthorizationsRequest,
    ),
    State.CAPTURING: _Way(
        "capture",
        lambda stub: stub.BatchCapture,
        bank_pb2.BatchCaptureRequest,
    ),
    State.REFUNDING: _Way(
        "refund",
        lambda stub: stub.BatchRefund,
        bank_pb2.BatchRefundRequest,
    ),
}


class Processor:
    """Asks the processor."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._stub = bank_pb2_grpc.BankServiceStub(channel)
        self._seconds = seconds

    async def authorize(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        """Hold the amounts."""
        request = bank_pb2.BatchAuthorizeRequest()
        for one in asked:
            _write_authorization(request.items.add(), one)
        try:
            response = await call(
                self._stub.BatchAuthorize,
                request,
                deadline.clamp(self._seconds),
                spans=[a.span for a in asked],
            )
        except PaymeshError as error:
            return [_lost(error)] * len(asked)
        return [
            _authorized(r.response.authorization)
            if r.WhichOneof("outcome") == "response"
            else _failed(r.failure)
            for r in response.results
        ]

    async def void(self, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline) -> list[Letting]:
        """Let go of holds."""
        request = bank_pb2.BatchVoidRequest(items=[_void(payment, span) for payment, span in asked])
        try:
            response = await call(
                self._stub.BatchVoid,
                request,
                deadline.clamp(self._seconds),
                spans=[span for _, span in asked],
            )
        except PaymeshError as error:
            return [_lost(error)] * len(asked)
        return [
            Gone() if r.WhichOneof("outcome") == "response" else _failed(r.failure) for r in response.results
        ]

    async def move(
        self, state: State, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline
    ) -> list[Movement]:
        """Carry out what payments in `state` (INCREMENTING, CAPTURING, REFUNDING) wait for."""
        way = _WAYS[state]
        request = way.batch()
        for payment, span in asked:
            _write_movement(request.items.add(), way, payment, span)
        try:
            response = await call(
                way.method(self._stub),
                request,
                deadline.clamp(self._seconds),
                spans=[span for _, span in asked],
            )
        except PaymeshError as error:
            return [_lost(error)] * len(asked)
        return [
            _moved(r.response.operation) if r.WhichOneof("outcome") == "response" else _failed(r.failure)
            for r in response.results
        ]

    async def look_up(self, payments: Sequence[Payment], deadline: Deadline) -> list[Authorization | Absent]:
        """What became of authorizations, by their keys; changes nothing."""
        keys = [_authorize_key(payment) for payment in payments]
        return [
            answer if isinstance(answer, Lost | Absent) else _authorized(answer.authorization)
            for answer in await self._look_up(payments, keys, deadline)
        ]

    async def look_up_movements(
        self, payments: Sequence[Payment], deadline: Deadline
    ) -> list[Movement | Absent]:
        """What became of the increments, captures and refunds that payments wait for; changes nothing."""
        keys = [_movement_key(_WAYS[payment.state], payment) for payment in payments]
        return [
            answer if isinstance(answer, Lost | Absent) else _moved(answer.operation)
            for answer in await self._look_up(payments, keys, deadline)
        ]

    async def _look_up(
        self, payments: Sequence[Payment], keys: Sequence[str], deadline: Deadline
    ) -> list[bank_pb2.LookupByKeyResponse | Lost | Absent]:
        request = bank_pb2.BatchLookupByKeyRequest(
            items=[
                bank_pb2.LookupByKeyRequest(merchant_id=p.merchant_id, idempotency_key=key)
                for p, key in zip(payments, keys, strict=True)
            ]
        )
        try:
            response = await call(self._stub.BatchLookupByKey, request, deadline.clamp(self._seconds))
        except PaymeshError as error:
            return [_lost(error)] * len(payments)
        return [
            _lost(from_failure(r.failure))
            if r.WhichOneof("outcome") != "response"
            else r.response
            if r.response.found
            else Absent()
            for r in response.results
        ]

    async def cancel(self, payment: Payment, deadline: Deadline) -> Authorization:
        """See to it that the authorization under the payment's key holds nothing, now or ever."""
        request = bank_pb2.CancelByKeyRequest(
            merchant_id=payment.merchant_id, idempotency_key=_authorize_key(payment)
        )
        try:
            response = await call(self._stub.CancelByKey, request, deadline.clamp(self._seconds))
        except PaymeshError as error:
            return _lost(error)
        return _authorized(response.authorization)


def _authorize_key(payment: Payment) -> str:
    return f"{payment.payment_id}/authorize"


def _write_authorization(item: bank_pb2.AuthorizeItem, asked: Asked) -> None:
    item.idempotency_key = _authorize_key(asked.payment)
    item.traceparent = traceparent_of(asked.span)
    request = item.request
    request.merchant_id = asked.payment.merchant_id
    write_money(request.amount, asked.wish.amount)
    request.card_token = asked.wish.card_token
    request.reference = asked.payment.payment_id


def _void(payment: Payment, span: Span | None) -> bank_pb2.VoidItem:
    return bank_pb2.VoidItem(
        idempotency_key=f"{payment.payment_id}/void/{intent_number(payment)}",
        traceparent=traceparent_of(span),
        request=bank_pb2.VoidRequest(
            merchant_id=payment.merchant_id, authorization_id=payment.processor_reference
        ),
    )


def _movement_key(way: _Way, payment: Payment) -> str:
    return f"{payment.payment_id}/{way.name}/{intent_number(payment)}"


def _write_movement(item: Any, way: _Way, payment: Payment, span: Span | None) -> None:
    item.idempotency_key = _movement_key(way, payment)
    item.traceparent = traceparent_of(span)
    request = item.request
    request.merchant_id = payment.merchant_id
    request.authorization_id = payment.processor_reference
    request.amount.amount_minor = payment.pending_minor
    request.amount.currency = payment.amount.currency
    if payment.pending_final:
        request.final = True


def _moved(operation: bank_pb2.Operation) -> Movement:
    match operation.state:
        case bank_pb2.OPERATION_STATE_DONE:
            return Done(operation.operation_id, operation.amount.amount_minor)
        case bank_pb2.OPERATION_STATE_DECLINED:
            return Declined(operation.operation_id, operation.reason)
        case bank_pb2.OPERATION_STATE_REFUSED:
            return RefusedByProcessor(operation.reason)
    return Lost(f"STATE_{operation.state}")


def _authorized(authorization: bank_pb2.Authorization) -> Authorization:
    match authorization.state:
        case bank_pb2.AUTHORIZATION_STATE_APPROVED | bank_pb2.AUTHORIZATION_STATE_CAPTURED:
            return Approved(authorization.authorization_id, authorization.auth_code)
        case bank_pb2.AUTHORIZATION_STATE_DECLINED:
            return Declined(authorization.authorization_id, authorization.decline_reason)
        case bank_pb2.AUTHORIZATION_STATE_VOIDED | bank_pb2.AUTHORIZATION_STATE_CANCELLED:
            return Gone()
    return Lost(f"STATE_{authorization.state}")


def _failed(failure: failure_pb2.Failure) -> Lost | RefusedByProcessor:
    error = from_failure(failure)
    # Our keys are ours alone: another fingerprint under one means that an operation stands there, not that none does.
    stands = error.reason == "IDEMPOTENCY_KEY_REUSED"
    if not stands and (isinstance(error, Refused | NotFound) or error.kind is Kind.INVALID):
        return RefusedByProcessor(error.reason)
    return _lost(error)


def _lost(error: PaymeshError) -> Lost:
    return Lost(error.reason)
