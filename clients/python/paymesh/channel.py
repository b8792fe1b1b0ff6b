"""Opens a channel to a paymesh service with the defaults that every caller should have.

A bare gRPC call waits for ever, gives up at the first refused connection, says nothing about who is
calling and loses the trace. `open_channel` settles that once: a deadline for calls that have none, retries
for UNAVAILABLE only, keepalive, round robin over the addresses of the target, and metadata that names the
caller and carries the current OpenTelemetry context.

Retrying is safe for mutating calls too: each carries an idempotency key, so the repeat of a call that did
arrive returns the first result.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from opentelemetry import propagate, trace

DEADLINE_SECONDS = 10.0
"""For calls that name none. An order takes well under a second; ten leave room for a bank that is slow."""

ATTEMPTS_MAX = 4
"""The first try and three more."""

ATTEMPTS_LIMIT = 5
"""gRPC cuts off any larger number of attempts."""

BACKOFF_SECONDS = 0.1
BACKOFF_SECONDS_MAX = 1.0
"""Waits of up to 0.1, 0.2 and 0.4 s (gRPC draws each at random below that): a restart of one replica among
several passes unnoticed, and a service that is gone is reported within a second."""

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""A batch of 1,000 orders with a few hundred lines each fits; the gRPC default of 4 MiB does not hold it."""

KEEPALIVE_SECONDS = 30
"""How often a quiet connection is probed, so that the next call does not meet a dead one. Servers of paymesh
allow a ping every 10 s; a server with gRPC's defaults allows one in 300 s and would end the connection."""

KEEPALIVE_TIMEOUT_SECONDS = 10
RECONNECT_MS = 100
RECONNECT_MS_MAX = 2_000
"""gRPC would wait up to 120 s before it tries a lost server again; ours are back within seconds."""

KEY_LENGTH_MAX = 255

CALLER_KEY = "paymesh-caller"
IDEMPOTENCY_KEY = "idempotency-key"
REPLAYED_KEY = "idempotent-replayed"

Metadata = tuple[tuple[str, str], ...]


def with_key(key: str) -> Metadata:
    """Metadata that sends `key` as the idempotency key of a single call.

    Raises ValueError for a key that a server would refuse: it must have 1 to 255 printable ASCII
    characters, with no space at either end (HTTP/2 may strip it on the way).
    """
    if not 1 <= len(key) <= KEY_LENGTH_MAX:
        raise ValueError(f"an idempotency key has 1 to {KEY_LENGTH_MAX} characters, this one has {len(key)}")
    if not all(" " <= character <= "~" for character in key) or key != key.strip():
        raise ValueError("an idempotency key is printable ASCII with no space at either end")
    return ((IDEMPOTENCY_KEY, key),)


async def was_replayed(call: grpc.aio.Call) -> bool:
    """True when the result of a finished call is that of an earlier call with the same key."""
    trailing = await call.trailing_metadata()
    return trailing is not None and trailing.get(REPLAYED_KEY) == "true"


def current_traceparent() -> str:
    """W3C traceparent of the current span, for the `traceparent` of a batch item; empty if not sampled."""
    span = trace.get_current_span().get_span_context()
    if not (span.is_valid and span.trace_flags.sampled):
        return ""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


@dataclass(frozen=True, kw_only=True)
class CallDefaults:
    """What every call of a channel gets unless it says otherwise itself."""

    caller: str
    """Sent as `paymesh-caller`. Part of the scope of idempotency keys: two callers may use the same key."""
    deadline_seconds: float
    wait_for_ready: bool
    """Wait, up to the deadline, for a server that is not there yet; otherwise such a call fails at once."""

    def apply(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        """The same call with the defaults filled in where it says nothing itself."""
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        present = set(metadata.keys())
        if CALLER_KEY not in present:
            metadata.add(CALLER_KEY, self.caller)
        if "traceparent" not in present and trace.get_current_span().get_span_context().is_valid:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            for key, value in carrier.items():
                metadata.add(key, value)
        return grpc.aio.ClientCallDetails(
            details.method,
            self.deadline_seconds if details.timeout is None else details.timeout,
            metadata,
            details.credentials,
            self.wait_for_ready if details.wait_for_ready is None else details.wait_for_ready,
        )


class UnaryDefaults(grpc.aio.UnaryUnaryClientInterceptor):
    """`CallDefaults` for calls with one answer."""

    def __init__(self, defaults: CallDefaults) -> None:
        self._defaults = defaults

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._defaults.apply(client_call_details), request)


class StreamDefaults(grpc.aio.UnaryStreamClientInterceptor):
    """`CallDefaults` for calls with a stream of answers.

    A class of its own, because a channel takes an interceptor that is both kinds for the unary one only.
    """

    def __init__(self, defaults: CallDefaults) -> None:
        self._defaults = defaults

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._defaults.apply(client_call_details), request)


def service_config(attempts_max: int = ATTEMPTS_MAX) -> str:
    """gRPC service config, as JSON: round robin, and retries of UNAVAILABLE and of nothing else."""
    method: dict[str, Any] = {"name": [{}]}
    if attempts_max > 1:
        method["retryPolicy"] = {
            "maxAttempts": attempts_max,
            "initialBackoff": f"{BACKOFF_SECONDS}s",
            "maxBackoff": f"{BACKOFF_SECONDS_MAX}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    return json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [method]})


def channel_options(attempts_max: int = ATTEMPTS_MAX) -> list[tuple[str, str | int]]:
    """gRPC channel arguments behind `open_channel`."""
    return [
        ("grpc.service_config", service_config(attempts_max)),
        ("grpc.enable_retries", 1 if attempts_max > 1 else 0),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1_000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # By itself gRPC stops after two pings without data in between.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", RECONNECT_MS_MAX),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
    ]


def open_channel(
    target: str,
    *,
    caller: str = "anonymous",
    deadline_seconds: float = DEADLINE_SECONDS,
    tls: grpc.ChannelCredentials | None = None,
    wait_for_ready: bool = False,
    attempts_max: int = ATTEMPTS_MAX,
    interceptors: Sequence[Any] = (),
) -> grpc.aio.Channel:
    """Open a channel to `target`, for example "127.0.0.1:7100" or "dns:///payment:7101".

    `deadline_seconds` holds for calls made without `timeout`. `attempts_max` counts the first try; 1 turns
    retries off, 5 is the most. `interceptors` run outside the ones of this module, so what they set (a
    shorter deadline, a traceparent) stands. Without `tls` the connection is plaintext.

    Must be called with an event loop running. Nothing is connected until the first call; close the channel
    or use it as an async context manager.
    """
    if deadline_seconds <= 0:
        raise ValueError(f"deadline_seconds must be above 0, not {deadline_seconds}")
    if not 1 <= attempts_max <= ATTEMPTS_LIMIT:
        raise ValueError(f"attempts_max must be 1 to {ATTEMPTS_LIMIT}, not {attempts_max}")
    defaults = CallDefaults(caller=caller, deadline_seconds=deadline_seconds, wait_for_ready=wait_for_ready)
    chain: list[Any] = [*interceptors, UnaryDefaults(defaults), StreamDefaults(defaults)]
    options = channel_options(attempts_max)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=chain)
    return grpc.aio.secure_channel(target, tls, options=options, interceptors=chain)
