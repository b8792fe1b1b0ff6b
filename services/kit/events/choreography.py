"""A service's part in a choreography: reacting to what others announce, with the commands that a conductor would send.

A set of events becomes one set of commands through the same handler as the RPC, under the same derived keys. So
whatever comes twice is a replay, a do that comes after its undo is refused (`idempotency.bar`), and nothing here has to
remember anything. What came of the commands is announced in the transaction that moves the inbox: once for each event.

A step that is refused is a result, and announced. One whose outcome is not known, or that could not be tried, is not:
its event is set aside and comes again (`listener`), with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import Message
from opentelemetry.trace import Span

from paymesh.choreography.v1 import choreography_pb2 as pb
from paymesh.orchestrator.v1 import orchestrator_pb2
from services.kit.clock import now_ms
from services.kit.db import Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Kind, PaymeshError
from services.kit.events.handling import Prepare, Received
from services.kit.outbox import Announcement, announce
from services.kit.rpc.method import Item, SetMethod
from services.kit.rpc.values import write_timestamp
from services.kit.sets import Answer
from services.kit.telemetry import traceparent_of

_FINAL = (Kind.REFUSED, Kind.INVALID, Kind.NOT_FOUND)


class Way(Enum):
    """Which way an event moves a saga here."""

    DO = orchestrator_pb2.DIRECTION_DO
    UNDO = orchestrator_pb2.DIRECTION_UNDO


Ways: TypeAlias = Mapping[type[Message], Way]
"""What events of a source call for, by type."""


class Said(NamedTuple):
    """What an answer says of a step."""

    facts: Mapping[str, str] = {}
    refused: str = ""
    """Why it was refused; empty when it was done."""
    message: str = ""


class Part:
    """One step of a choreography and its undo. `seconds` is what a set of commands may take."""

    def __init__(
        self,
        step: str,
        do: SetMethod[Any, Any],
        undo: SetMethod[Any, Any],
        *,
        request: Callable[[pb.Slip], Message],
        undo_request: Callable[[pb.Slip, str], Message],
        read: Callable[[Any], Said],
        seconds: float = 5.0,
    ) -> None:
        self.step = step
        self._methods = {Way.DO: do, Way.UNDO: undo}
        self._request = request
        self._undo_request = undo_request
        self._read = read
        self._seconds = seconds

    def react(self, ways: Ways) -> Prepare:
        """For a `Listener`: carry out what events of these types call for."""

        async def prepare(received: Sequence[Received]) -> Sequence[Any]:
            came_to: dict[int, Any] = {}
            for way in Way:
                ours = [one for one in received if ways[type(one.message)] is way]
                came_to |= await self._take(way, ours)
            return [came_to[one.event.position] for one in received]

        return prepare

    async def apply(self, tx: Transaction, received: Sequence[Received]) -> None:
        """For a `Listener`: announce what the commands came to."""
        announce(tx, [self._announcement(one) for one in received], urgent=True)

    def undo_key(self, slip: pb.Slip) -> str:
        """Idempotency key of the undo."""
        return f"{self.do_key(slip)}/undo"

    def do_key(self, slip: pb.Slip) -> str:
        """Idempotency key of the do."""
        return f"{slip.saga_id}/{self.step}"

    async def _take(self, way: Way, received: Sequence[Received]) -> dict[int, pb.Step | PaymeshError]:
        """By position: the step that was taken, or why it is not known yet what came of it."""
        if not received:
            return {}
        started_at_ms = now_ms()
        items = [self._item(way, one.message.slip, one.span) for one in received]
        outcomes = await self._methods[way].carry_out(items, Deadline.after(self._seconds))
        ended_at_ms = now_ms()
        came_to: dict[int, pb.Step | PaymeshError] = {}
        for one, outcome in zip(received, outcomes, strict=True):
            if isinstance(outcome, Answer):
                said = self._read(outcome.message) if way is Way.DO else Said()
            elif way is Way.DO and outcome.error.kind in _FINAL:
                error = outcome.error
                said = Said(error.facts, error.reason, error.message)
            else:
                came_to[one.event.position] = outcome.error
                continue
            step = pb.Step(name=self.step, direction=way.value, facts=said.facts)
            if said.refused:
                step.refused, step.reason, step.message = True, said.refused, said.message
            write_timestamp(step.started_at, started_at_ms)
            write_timestamp(step.ended_at, ended_at_ms)
            came_to[one.event.position] = step
        return came_to

    def _item(self, way: Way, slip: pb.Slip, span: Span | None) -> Item:
        if way is Way.DO:
            return Item(self.do_key(slip), slip.caller, self._request(slip), span)
        return Item(self.undo_key(slip), slip.caller, self._undo_request(slip, self.do_key(slip)), span)

    def _announcement(self, one: Received) -> Announcement:
        step: pb.Step = one.prepared
        event: pb.StepDone | pb.StepRefused | pb.StepUndone
        if step.direction == Way.UNDO.value:
            event = pb.StepUndone()
        elif step.refused:
            event = pb.StepRefused()
        else:
            event = pb.StepDone()
        slip: pb.Slip = one.message.slip
        event.slip.CopyFrom(slip)
        event.slip.steps.append(step)
        traceparent = traceparent_of(one.span) or one.event.traceparent
        return Announcement(slip.merchant_id, slip.saga_id, event, traceparent)
