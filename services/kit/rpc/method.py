"""One mutating RPC in its two forms, single and batch, over one handler of sets.

A service writes `parse` (request → domain, raises Invalid) and `handle` (a set of commands → an outcome each);
`SetMethod` adds keys, fingerprints, gathering, deadlines, replays and per-item traces.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import Message
from opentelemetry import trace

from services.kit import metrics, telemetry
from services.kit.checks import check_key
from services.kit.coalescer import Coalescer, Limits, within
from services.kit.deadline import Deadline
from services.kit.errors import InProgress, Invalid, Overloaded, PaymeshError
from services.kit.idempotency import IN_PROGRESS_RETRY_AFTER_MS, as_replay
from services.kit.ids import new_id
from services.kit.rpc.failures import as_error, to_failure
from services.kit.sets import Answer, Command, Failed, Handle, M, Outcome, Pending, R

BATCH_SIZE_MAX = 1_000
"""Items in one batch call: about 200 kB, and a transaction of well under a second."""
CALLER_DEFAULT = "anonymous"


class Item(NamedTuple):
    """One call of a method from inside its own process."""

    key: str
    caller: str
    request: Any
    span: trace.Span | None


class SetMethod(Generic[R, M]):
    """`name` is the full method name of the single form, "paymesh.payment.v1.PaymentService/AuthorizePayment"."""

    def __init__(
        self,
        name: str,
        *,
        parse: Callable[[Any], R],
        handle: Handle[R, M],
        batch_response: type[Message],
        id_prefix: str = "cmd",
        seconds_max: float = 10.0,
        limits: Limits | None = None,
        starts_traces: bool = False,
    ) -> None:
        self.name = name
        self._parse = parse
        self._batch_response: Any = batch_response
        self._id_prefix = id_prefix
        self._seconds_max = seconds_max
        self._starts_traces = starts_traces
        self._handle = handle
        self._coalescer: Coalescer[Command[R], Answer[M] | Failed | Pending[M]] = Coalescer(
            name, self._observed, lambda error: Failed(as_error(error)), limits or Limits(), _rest
        )
        self._set_size = metrics.SET_SIZE.labels(name)
        self._shed = metrics.SHED.labels(name)
        metrics.QUEUED.labels(name).set_function(lambda: self._coalescer.queued)

    async def single(self, request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> M:
        """The single form: the key comes from the metadata, failures are raised."""
        metadata = dict(context.invocation_metadata() or ())
        key = str(metadata.get("idempotency-key", ""))
        span = trace.get_current_span()
        command = self._command(key, _caller(metadata), request, span if span.is_recording() else None)
        (outcome,) = await self._outcomes([command], self._deadline(context), single=True)
        self._coalescer.answered()
        if outcome.replayed:
            context.set_trailing_metadata((("idempotent-replayed", "true"),))
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome.message

    async def batch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """The batch form: every item has its own key and its own result."""
        items = request.items
        if not 1 <= len(items) <= BATCH_SIZE_MAX:
            raise Invalid.field("items", f"has {len(items)} items; it must have from 1 to {BATCH_SIZE_MAX:,}")
        caller = _caller(dict(context.invocation_metadata() or ()))
        outcomes: list[Outcome[M] | None] = [None] * len(items)
        commands: list[Command[R]] = []
        places: list[int] = []
        for place, item in enumerate(items):
            span = telemetry.start_item(self.name, item.traceparent, sample_root=self._starts_traces)
            try:
                commands.append(self._command(item.idempotency_key, caller, item.request, span))
                places.append(place)
            except PaymeshError as error:
                outcomes[place] = Failed(error)
                telemetry.end(span, error.reason, failed=True)
        if commands:
            for place, outcome in zip(
                places, await self._outcomes(commands, self._deadline(context)), strict=True
            ):
                outcomes[place] = outcome
        for command, place in zip(commands, places, strict=True):
            if command.span is not None:
                _end(command, outcomes[place])
        return self._response(outcomes)

    async def carry_out(self, items: Sequence[Item], deadline: Deadline) -> list[Outcome[M]]:
        """The batch form for callers in this process: as many items as they like, an outcome for each."""
        outcomes: list[Outcome[M] | None] = []
        commands: list[Command[R]] = []
        for item in items:
            try:
                commands.append(self._command(item.key, item.caller, item.request, item.span))
                outcomes.append(None)
            except PaymeshError as error:
                outcomes.append(Failed(error))
        if not commands:
            return [outcome for outcome in outcomes if outcome is not None]
        carried_out = iter(await self._outcomes(commands, deadline))
        return [next(carried_out) if outcome is None else outcome for outcome in outcomes]

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        await self._coalescer.drain()

    def _command(self, key: str, caller: str, request: Any, span: trace.Span | None) -> Command[R]:
        check_key(key)
        parsed = self._parse(request)
        fingerprint = hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=16).digest()
        return Command(request.merchant_id, caller, key, fingerprint, new_id(self._id_prefix), parsed, span)

    async def _outcomes(
        self, commands: Sequence[Command[R]], deadline: Deadline, *, single: bool = False
    ) -> list[Outcome[M]]:
        try:
            accepted = await self._coalescer.submit(commands, deadline, single=single)
        except Overloaded as error:
            self._shed.inc(len(commands))
            return [Failed(error)] * len(commands)
        for outcome in accepted:
            # One after the other: what was accepted together mostly ends together, and is done when the first is. To
            # wait for all of them at once costs a callback each.
            if isinstance(outcome, Pending) and not outcome.outcome.done():
                if deadline.expired():
                    break
                await within(outcome.outcome, deadline)
        return [_settled(outcome) for outcome in accepted]

    async def _observed(
        self, commands: Sequence[Command[R]], deadline: Deadline
    ) -> Sequence[Answer[M] | Failed | Pending[M]]:
        self._set_size.observe(len(commands))
        return await self._handle(commands, deadline)

    def _deadline(self, context: grpc.aio.ServicerContext[Any, Any]) -> Deadline:
        own = Deadline.after(self._seconds_max)
        remaining = context.time_remaining()
        return own if remaining is None else Deadline.after(remaining).clamp(self._seconds_max)

    def _response(self, outcomes: Sequence[Outcome[M] | None]) -> Any:
        response = self._batch_response()
        for outcome in outcomes:
            result = response.results.add()
            if isinstance(outcome, Answer):
                result.response.CopyFrom(outcome.message)
                if outcome.replayed:
                    result.replayed = True
            elif isinstance(outcome, Failed):
                result.failure.CopyFrom(to_failure(outcome.error))
                result.replayed = outcome.replayed
        return response


def _rest(outcome: Answer[M] | Failed | Pending[M]) -> asyncio.Future[Any] | None:
    return outcome.outcome if isinstance(outcome, Pending) else None


def _settled(outcome: Answer[M] | Failed | Pending[M] | None) -> Outcome[M]:
    facts: Mapping[str, str] = {}
    if isinstance(outcome, Pending):
        pending = outcome
        outcome = pending.outcome.result() if pending.outcome.done() else None
        if pending.replayed:
            outcome = as_replay(outcome)
        if outcome is None:
            facts = pending.facts
    if outcome is None:
        return Failed(
            InProgress(
                "IN_PROGRESS",
                "accepted, but not ended within the deadline; ask again with the same key",
                facts=facts,
                retry_after_ms=IN_PROGRESS_RETRY_AFTER_MS,
            )
        )
    return outcome


def _caller(metadata: dict[str, str | bytes]) -> str:
    return str(metadata.get("paymesh-caller", CALLER_DEFAULT))[:64] or CALLER_DEFAULT


def _end(command: Command[R], outcome: Outcome[M] | None) -> None:
    if isinstance(outcome, Failed):
        telemetry.end(command.span, outcome.error.reason, failed=True)
    else:
        telemetry.end(command.span, "REPLAYED" if outcome and outcome.replayed else "DONE")
