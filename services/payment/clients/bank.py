"""The sandbox bank, or whoever else speaks paymesh.bank.v1: sets travel as sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc.aio
from opentelemetry.trace import Span

from paymesh.bank.v1 import bank_pb2, bank_pb2_grpc
from paymesh.result.v1 import failure_pb2
from services.kit.deadline import Deadline
from services.kit.errors import Kind, NotFound, PaymeshError, Refused
from services.kit.rpc.client import call, open_channel
from services.kit.rpc.failures import from_failure
from services.kit.rpc.values import write_money
from services.kit.telemetry import traceparent_of
from services.payment.clients.fraud import Asked
from services.payment.clients.processor import NotSetUp, authorize_key, movement_key, void_key
from services.payment.config import PaymentConfig
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
)


class _Way(NamedTuple):
    """How increments, captures or refunds are asked for."""

    method: Callable[[Any], Any]
    """Of the stub."""
    batch: Callable[[], Any]
    """Makes an empty request for a list."""


_WAYS = {
    State.INCREMENTING: _Way(
        lambda stub: stub.BatchIncrementAuthorizations,
        bank_pb2.BatchIncrementAuthorizationsRequest,
    ),
    State.CAPTURING: _Way(
        lambda stub: stub.BatchCapture,
        bank_pb2.BatchCaptureRequest,
    ),
    State.REFUNDING: _Way(
        lambda stub: stub.BatchRefund,
        bank_pb2.BatchRefundRequest,
    ),
}


async def open_bank(config: PaymentConfig) -> BankProcessor:
    """See `Opener`."""
    if not config.bank_target:
        raise NotSetUp("set PAYMESH_PAYMENT_BANK_TARGET to the address of its gateway")
    # No retries below us: whether a lost answer is asked for again is the resolver's decision.
    channel = open_channel(config.bank_target, caller="payment", attempts_max=1)
    return BankProcessor(channel, config.bank_seconds)


class BankProcessor:
    """A `Processor`."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._channel = channel
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
            _write_movement(request.items.add(), payment, span)
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

    async def look_up(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization | Absent]:
        """What became of authorizations, by their keys; changes nothing."""
        payments = [one.payment for one in asked]
        keys = [authorize_key(payment) for payment in payments]
        return [
            answer if isinstance(answer, Lost | Absent) else _authorized(answer.authorization)
            for answer in await self._look_up(payments, keys, deadline)
        ]

    async def look_up_movements(
        self, payments: Sequence[Payment], deadline: Deadline
    ) -> list[Movement | Absent]:
        """What became of the increments, captures and refunds that payments wait for; changes nothing."""
        keys = [movement_key(payment) for payment in payments]
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

    async def cancel(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        """See to it that the authorizations under the payments' keys hold nothing, now or ever."""
        return list(await asyncio.gather(*(self._cancel(one.payment, deadline) for one in asked)))

    async def close(self) -> None:
        """Let go of the channel."""
        await self._channel.close()

    async def _cancel(self, payment: Payment, deadline: Deadline) -> Authorization:
        request = bank_pb2.CancelByKeyRequest(
            merchant_id=payment.merchant_id, idempotency_key=authorize_key(payment)
        )
        try:
            response = await call(self._stub.CancelByKey, request, deadline.clamp(self._seconds))
        except PaymeshError as error:
            return _lost(error)
        return _authorized(response.authorization)


def _write_authorization(item: bank_pb2.AuthorizeItem, asked: Asked) -> None:
    item.idempotency_key = authorize_key(asked.payment)
    item.traceparent = traceparent_of(asked.span)
    request = item.request
    request.merchant_id = asked.payment.merchant_id
    write_money(request.amount, asked.wish.amount)
    request.card_token = asked.wish.card_token
    request.reference = asked.payment.payment_id


def _void(payment: Payment, span: Span | None) -> bank_pb2.VoidItem:
    return bank_pb2.VoidItem(
        idempotency_key=void_key(payment),
        traceparent=traceparent_of(span),
        request=bank_pb2.VoidRequest(
            merchant_id=payment.merchant_id, authorization_id=payment.processor_reference
        ),
    )


def _write_movement(item: Any, payment: Payment, span: Span | None) -> None:
    item.idempotency_key = movement_key(payment)
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
