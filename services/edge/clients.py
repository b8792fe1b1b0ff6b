"""Calls to the services behind the edge, with the caller's key, and whether the answer is a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from paymesh.bank.v1 import bank_pb2
from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub
from paymesh.channel import REPLAYED_KEY, with_key
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from paymesh.payment.v1.payment_pb2_grpc import PaymentServiceStub
from services.edge.domain.cards import Card
from services.kit.deadline import Deadline
from services.kit.errors import Invalid, PaymeshError, Retryable, Unknown, Violation
from services.kit.rpc.client import call
from services.kit.rpc.failures import from_call

_CARD_FIELDS = {"number": "number", "expiry_month": "exp_month", "expiry_year": "exp_year", "cvc": "cvc"}


class Replayed(Exception):
    """Carries the failure of an earlier call with the same key."""

    def __init__(self, error: PaymeshError) -> None:
        super().__init__(error.reason)
        self.error = error


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer of a call that changes something."""

    message: Any
    replayed: bool


@dataclass(frozen=True, slots=True)
class Clients:
    """Everybody whom the edge calls."""

    payment: PaymentServiceStub
    orchestrator: OrchestratorServiceStub
    bank: BankServiceStub
    payment_seconds: float
    order_seconds: float
    read_seconds: float

    async def change(self, method: Any, request: Any, key: str, seconds: float) -> Answered:
        """A call that changes something, under the caller's key. Raises PaymeshError, or Replayed with one.

        A call that is cut off on the way is Unknown: repeated with its key, it is told."""
        sent = method(request, timeout=seconds, metadata=with_key(key))
        try:
            message = await sent
        except grpc.aio.AioRpcError as error:
            failure = from_call(error)
            if dict(error.trailing_metadata() or ()).get(REPLAYED_KEY) == "true":
                raise Replayed(failure) from error
            raise failure from error
        trailing = await sent.trailing_metadata()
        return Answered(message, dict(trailing or ()).get(REPLAYED_KEY) == "true")

    async def read(self, method: Any, request: Any) -> Any:
        """A call that changes nothing: whatever became of it, nothing happened. Raises PaymeshError."""
        try:
            return await call(method, request, Deadline.after(self.read_seconds))
        except Unknown as error:
            raise Retryable("UNAVAILABLE", "the service behind this does not answer") from error

    async def tokenize(self, card: Card) -> bank_pb2.TokenizeCardResponse:
        """The processor's token of a card. Raises PaymeshError; no text of it holds the number."""
        request = bank_pb2.TokenizeCardRequest(
            number=card.number, expiry_month=card.exp_month, expiry_year=card.exp_year, cvc=card.cvc
        )
        try:
            response: bank_pb2.TokenizeCardResponse = await self.read(self.bank.TokenizeCard, request)
        except Invalid as error:
            wrong = [
                Violation(f"card.{_CARD_FIELDS.get(v.field, v.field)}", v.description)
                for v in error.violations
            ]
            raise Invalid(wrong) from None
        return response
