"""Calls to other services: a channel with the mesh's habits, and one function that makes a call within a deadline and
turns what goes wrong into our errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from opentelemetry.trace import Span, SpanKind

from paymesh.channel import open_channel
from services.kit import telemetry
from services.kit.deadline import Deadline
from services.kit.errors import Retryable
from services.kit.rpc.failures import from_call

__all__ = ["call", "open_channel"]


async def call(
    method: Any,
    request: Any,
    deadline: Deadline,
    *,
    spans: Sequence[Span | None] = (),
    metadata: Sequence[tuple[str, str]] = (),
) -> Any:
    """Call `method` (a stub's) with what is left of `deadline`. `spans` are those of the commands that travel in the
    request: the span of the call hangs under the first that is traced and links to the others. Raises PaymeshError."""
    remaining = deadline.remaining()
    if remaining <= 0:
        raise Retryable("DEADLINE_TOO_SHORT", "no time was left to make the call")
    traced = [span for span in spans if span is not None]
    name = method._method.decode().lstrip("/") if traced else ""
    span = telemetry.start_child(
        traced[0] if traced else None,
        name,
        {"rpc.system.name": "grpc", "rpc.method": name, "paymesh.batch.traced": len(traced)},
        kind=SpanKind.CLIENT,
        links=traced[1:],
    )
    headers = (
        [*metadata, ("traceparent", telemetry.traceparent_of(span))] if span is not None else list(metadata)
    )
    try:
        response = await method(request, timeout=remaining, metadata=headers or None)
    except grpc.aio.AioRpcError as error:
        failure = from_call(error)
        telemetry.end(span, failure.reason, failed=True)
        raise failure from error
    except BaseException:
        telemetry.end(span, "CANCELLED", failed=True)
        raise
    telemetry.end(span)
    return response
