"""A gRPC server that checks, observes and drains itself.

Around every call stands one interceptor: it turns malformed bytes (bad UTF-8, truncated messages) into
INVALID_ARGUMENT, continues the caller's trace, measures, and maps errors to the wire. Health and reflection come with
every server.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from prometheus_client import Histogram

from services.kit import metrics, telemetry
from services.kit.errors import Invalid
from services.kit.rpc.failures import as_error, to_status

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
CONNECTION_AGE_MS = 5 * 60 * 1000
"""Connections end after this, so that clients look names up again and see new replicas."""
CONNECTION_GRACE_SECONDS = 60.0
"""How long a call may outlive its connection's age, unless a service's calls take longer."""
PING_INTERVAL_MS_MIN = 10 * 1000
"""Clients may ping this often; they do so every 30 s."""
PENDING_CALLS_MAX = 20_000
"""Calls that gRPC holds until Python takes them. Its own limit of 1,000 drops calls of a rush without a word of ours;
above `concurrent_rpcs_max`, ours decides what is shed."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
)

Context = grpc.aio.ServicerContext[Any, Any]


class _Malformed:
    """Stands for a request that could not be read."""

    def __init__(self, error: DecodeError) -> None:
        self.error = error


class _Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler once; the wrapped handler is kept."""

    def __init__(self) -> None:
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None or not method.startswith("/paymesh."):
                return handler
            wrapped = self._wrapped[method] = _wrap(handler, method.lstrip("/"))
        return wrapped


def _wrap(handler: Any, name: str) -> grpc.RpcMethodHandler[Any, Any]:
    def read(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except (DecodeError, UnicodeDecodeError) as error:
            return _Malformed(DecodeError(str(error)))

    if handler.unary_stream is not None:

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with _Observation(name, context) as observation:
                observation.check(request)
                async for response in handler.unary_stream(request, context):
                    yield response

        return grpc.unary_stream_rpc_method_handler(stream, read, handler.response_serializer)

    if handler.stream_stream is not None:

        async def converse(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async with _Observation(name, context) as observation:
                async for response in handler.stream_stream(_readable(requests, observation), context):
                    yield response

        return grpc.stream_stream_rpc_method_handler(converse, read, handler.response_serializer)

    async def unary(request: Any, context: Context) -> Any:
        async with _Observation(name, context) as observation:
            observation.check(request)
            return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(unary, read, handler.response_serializer)


async def _readable(requests: AsyncIterator[Any], observation: _Observation) -> AsyncIterator[Any]:
    """The messages of a caller, each checked as it comes."""
    async for request in requests:
        observation.check(request)
        yield request


@functools.cache
def _duration(name: str, code: str) -> Histogram:
    return metrics.RPC_SERVER_DURATION.labels(name, code)


class _Observation:
    """One call: its span, its duration, and the mapping of what it raises."""

    __slots__ = ("_context", "_name", "_scope", "_span", "_started")

    def __init__(self, name: str, context: Context) -> None:
        self._name = name
        self._context = context
        self._span: Span | None = None
        self._scope: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    async def __aenter__(self) -> _Observation:
        self._started = time.perf_counter()
        if not telemetry.tracing():
            return self
        headers = {
            key: value for key, value in self._context.invocation_metadata() or () if isinstance(value, str)
        }
        self._span = telemetry.start_call(self._name, headers, SpanKind.SERVER)
        self._scope = trace.use_span(self._span, record_exception=False, set_status_on_exception=False)
        self._scope.__enter__()
        return self

    def check(self, request: Any) -> None:
        """Raise Invalid for a request that could not be read."""
        if isinstance(request, _Malformed):
            raise Invalid.field("(request)", f"is not a valid message: {request.error}")

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        self._scope.__exit__(None, None, None)
        if error is None:
            self._ended("OK")
            telemetry.end(self._span)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.AbortError):
            self._ended("CANCELLED")
            telemetry.end(self._span, "CANCELLED", failed=True)
        else:
            await self._abort(error)

    async def _abort(self, error: BaseException) -> None:
        mapped = as_error(error)
        if mapped is not error:
            log.error("%s failed", self._name, exc_info=error)
        status = to_status(mapped)
        self._ended(status.code.name)
        telemetry.end(self._span, mapped.reason, failed=True)
        trailing = tuple(self._context.trailing_metadata() or ()) + tuple(status.trailing_metadata or ())
        await self._context.abort(status.code, status.details or "", trailing)

    def _ended(self, code: str) -> None:
        _duration(self._name, code).observe(time.perf_counter() - self._started)


class Server:
    """Collects servicers, then serves until it is told to drain."""

    def __init__(
        self,
        listen: str,
        *,
        concurrent_rpcs_max: int,
        connection_grace_seconds: float = CONNECTION_GRACE_SECONDS,
    ) -> None:
        self._listen = listen
        self._health = HealthServicer()
        self._names: list[str] = []
        grace = ("grpc.max_connection_age_grace_ms", int(connection_grace_seconds * 1000))
        self._server = grpc.aio.server(
            interceptors=[_Interceptor()],
            options=(*_OPTIONS, grace),
            maximum_concurrent_rpcs=concurrent_rpcs_max,
        )

    def add(self, register: Callable[[Any, Any], None], servicer: Any, full_name: str) -> None:
        """Serve `servicer`; `register` is the generated `add_…_to_server`, `full_name` the service's name."""
        register(servicer, self._server)
        self._names.append(full_name)

    async def start(self) -> int:
        """Bind, serve and say SERVING. Returns the port."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (
            *self._names,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self._server)
        port = self._server.add_insecure_port(self._listen)
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def drain(self, grace_seconds: float) -> None:
        """Say NOT_SERVING, let calls in progress end, stop."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
