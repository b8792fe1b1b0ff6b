"""Captures, refunds and increments: three operations about an authorization, of one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import Message

from paymesh.bank.v1 import bank_pb2 as pb
from sandbox.bank import domain, store
from sandbox.bank.domain import Identity, KeyedMove, Kind, MoveWish, Operation
from sandbox.bank.faults import Target
from sandbox.bank.mishaps import Context, Mishaps
from sandbox.bank.service import messages
from services.kit.clock import now
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.rpc.method import SetMethod
from services.kit.sets import Answer, Command, Failed, Outcome, Pending

_SERVICE = "paymesh.bank.v1.BankService"


@dataclass(frozen=True, slots=True)
class _Way:
    """How one kind of them is asked for and answered."""

    target: Target
    response: Callable[..., Any]
    batch_response: type[Message]
    method: SetMethod[MoveWish, Any]


class Movements:
    """Carries them out."""

    def __init__(self, database: Database, mishaps: Mishaps) -> None:
        self._database = database
        self._mishaps = mishaps
        self._ways = {
            Kind.CAPTURE: self._way(
                Kind.CAPTURE,
                Target.CAPTURE,
                "Capture",
                "cap",
                messages.capture_wish,
                pb.CaptureResponse,
                pb.BatchCaptureResponse,
            ),
            Kind.REFUND: self._way(
                Kind.REFUND,
                Target.REFUND,
                "Refund",
                "ref",
                messages.move_wish,
                pb.RefundResponse,
                pb.BatchRefundResponse,
            ),
            Kind.INCREMENT: self._way(
                Kind.INCREMENT,
                Target.INCREMENT,
                "IncrementAuthorization",
                "inc",
                messages.move_wish,
                pb.IncrementAuthorizationResponse,
                pb.BatchIncrementAuthorizationsResponse,
            ),
        }

    def _way(
        self,
        kind: Kind,
        target: Target,
        rpc: str,
        prefix: str,
        parse: Callable[[Any], MoveWish],
        response: Callable[..., Any],
        batch_response: type[Message],
    ) -> _Way:
        method: SetMethod[MoveWish, Any] = SetMethod(
            f"{_SERVICE}/{rpc}",
            parse=parse,
            handle=partial(self._handle, kind),
            batch_response=batch_response,
            id_prefix=prefix,
        )
        return _Way(target, response, batch_response, method)

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out, except what is slow."""
        for way in self._ways.values():
            await way.method.drain()

    async def single(self, kind: Kind, request: Any, context: Context) -> Any:
        """One of them."""
        way = self._ways[kind]
        if await self._mishaps.refuses(way.target, lambda: {request.merchant_id}, context):
            return way.response()
        return await way.method.single(request, context)

    async def batch(self, kind: Kind, request: Any, context: Context) -> Any:
        """A list of them."""
        way = self._ways[kind]
        if await self._mishaps.refuses(way.target, lambda: messages.merchants_of(request), context):
            return way.batch_response()
        return await way.method.batch(request, context)

    async def _handle(
        self, kind: Kind, commands: Sequence[Command[MoveWish]], deadline: Deadline
    ) -> Sequence[Answer[Any] | Failed | Pending[Any]]:
        return await self._mishaps.on_set(
            self._ways[kind].target, commands, deadline, partial(self._carry_out, kind)
        )

    async def _carry_out(
        self, kind: Kind, commands: Sequence[Command[MoveWish]], deadline: Deadline
    ) -> list[Outcome[Any]]:
        """Lock the authorizations, decide in order, write down: a refusal, too, is an operation."""
        asked = [KeyedMove(c.request, c.key, c.fingerprint, c.resource_id) for c in commands]
        targets = [(c.merchant_id, c.request.authorization_id) for c in commands]
        keys = [(c.merchant_id, c.key) for c in commands]
        at = now()

        async def work(tx: Transaction) -> dict[Identity, Operation]:
            holds = await store.lock_holds(tx, targets)
            before = await store.find_operations(tx, keys)
            fresh = domain.move_in_order(kind, asked, before, holds, at)
            await store.insert_all(tx, list(fresh.values()))
            return before | fresh

        standing = await self._database.transact(work, deadline)
        return [self._outcome(kind, c, standing.get((c.merchant_id, c.key))) for c in commands]

    def _outcome(self, kind: Kind, command: Command[MoveWish], standing: Operation | None) -> Outcome[Any]:
        if standing is None:
            return Failed(domain.unknown_authorization(command.request.authorization_id))
        told = messages.move_outcome(kind, command, standing)
        if isinstance(told, Failed):
            return told
        replayed = told.operation_id != command.resource_id
        return Answer(self._ways[kind].response(operation=messages.operation_of(told)), replayed)
