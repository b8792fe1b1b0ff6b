"""Typed errors for calls that fail, so that a caller decides by kind and reason and never by text.

A paymesh service puts a `paymesh.result.v1.Failure`, a `google.rpc.ErrorInfo`, and where they apply a
`RetryInfo` and a `BadRequest` into the status details. This module reads them back:

    try:
        response = await stub.PlaceOrder(request, metadata=with_key(key))
    except grpc.aio.AioRpcError as error:
        raise call_error(error) from error

or, shorter, `with typed_errors(): ...`. The failures inside a batch's results become the same type by
`failure_error(result.failure)`.
"""

import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message as protobuf_message
from google.rpc import error_details_pb2, status_pb2

from paymesh.result.v1 import failure_pb2

STATUS_DETAILS_KEY = "grpc-status-details-bin"
ERROR_DOMAIN = "paymesh"


class Kind(enum.Enum):
    """What a caller may conclude from a failure; the values are those of `paymesh.result.v1.Kind`."""

    INVALID = failure_pb2.KIND_INVALID
    """Malformed; nothing happened. The same request can never succeed."""
    REFUSED = failure_pb2.KIND_REFUSED
    """A final business "no"; nothing was done, and the answer replays under its key."""
    NOT_FOUND = failure_pb2.KIND_NOT_FOUND
    """The thing that was named does not exist."""
    RETRYABLE = failure_pb2.KIND_RETRYABLE
    """Nothing happened; send it again, with the same key, after `retry_after`."""
    IN_PROGRESS = failure_pb2.KIND_IN_PROGRESS
    """An earlier call with this key has not ended; ask again with the same key after `retry_after`."""
    UNKNOWN = failure_pb2.KIND_UNKNOWN
    """It may have happened. Repeat it with the same key, or ask for the state."""
    BUG = failure_pb2.KIND_BUG
    """A defect in the callee. It may have happened."""

    @property
    def worth_repeating(self) -> bool:
        """True when the same request with the same key may still succeed."""
        return self in (Kind.RETRYABLE, Kind.IN_PROGRESS, Kind.UNKNOWN)


@dataclass(frozen=True)
class Violation:
    """One field that makes a request invalid."""

    field: str
    """Path in the request, for example "lines[2].quantity"."""
    description: str


@dataclass(eq=False)  # errors are compared by identity: equal fields must not make them unhashable
class PaymeshCallError(Exception):
    """A call, or one item of a batch, was not carried out."""

    kind: Kind
    reason: str
    """Stable UPPER_SNAKE identifier, for example "OUT_OF_STOCK"; the gRPC status name when the callee gave
    none."""
    message: str
    """For a person; may change without notice."""
    violations: tuple[Violation, ...] = ()
    """The fields at fault; only with INVALID."""
    retry_after: timedelta | None = None
    """How long to wait before the next attempt; None when the callee did not say."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further facts by name, for example {"sku": "85123A"}."""
    unreachable: bool = False
    """True when no paymesh service answered: the connection failed or was lost."""

    def __post_init__(self) -> None:
        super().__init__(self.kind, self.reason, self.message)

    def __str__(self) -> str:
        if not self.violations:
            return f"{self.reason}: {self.message}"
        fields = "; ".join(f"{violation.field}: {violation.description}" for violation in self.violations)
        return f"{self.reason}: {fields}"


_KIND_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: Kind.INVALID,
    grpc.StatusCode.OUT_OF_RANGE: Kind.INVALID,
    grpc.StatusCode.UNIMPLEMENTED: Kind.INVALID,
    grpc.StatusCode.FAILED_PRECONDITION: Kind.REFUSED,
    grpc.StatusCode.ALREADY_EXISTS: Kind.REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: Kind.REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: Kind.REFUSED,
    grpc.StatusCode.NOT_FOUND: Kind.NOT_FOUND,
    grpc.StatusCode.ABORTED: Kind.IN_PROGRESS,
    grpc.StatusCode.INTERNAL: Kind.BUG,
    grpc.StatusCode.DATA_LOSS: Kind.BUG,
}
"""Kinds of statuses that carry no details. What is not here is UNKNOWN: above all UNAVAILABLE and
RESOURCE_EXHAUSTED, which gRPC also raises by itself when a connection breaks, or an answer is too large,
after the request was carried out. Only a service that says so in the details makes them RETRYABLE."""


def call_error(error: grpc.aio.AioRpcError) -> PaymeshCallError:
    """The typed form of a failed call, from its status details; without any, from its status code alone."""
    code = error.code()
    message = error.details() or ""
    details = _status_details(error)
    failure, info = failure_pb2.Failure(), error_details_pb2.ErrorInfo()
    retry, bad = error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    found = {
        packed.DESCRIPTOR.full_name
        for packed in (failure, info, retry, bad)
        for detail in details
        if _unpack(detail, packed)
    }
    if failure.DESCRIPTOR.full_name in found:
        typed = failure_error(failure)
    else:
        typed = PaymeshCallError(
            _KIND_BY_CODE.get(code, Kind.UNKNOWN),
            code.name,
            message,
            unreachable=code == grpc.StatusCode.UNAVAILABLE and not details,
        )
        if info.domain == ERROR_DOMAIN and info.reason:
            typed.reason, typed.facts = info.reason, dict(info.metadata)
    if typed.retry_after is None and retry.DESCRIPTOR.full_name in found:
        typed.retry_after = retry.retry_delay.ToTimedelta()
    if not typed.violations:
        typed.violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
    return typed


def failure_error(failure: failure_pb2.Failure) -> PaymeshCallError:
    """The typed form of one failed item of a batch. A kind of a newer version reads as UNKNOWN."""
    try:
        kind = Kind(failure.kind)
    except ValueError:
        kind = Kind.UNKNOWN
    return PaymeshCallError(
        kind,
        failure.reason or kind.name,
        failure.message,
        violations=tuple(Violation(v.field, v.description) for v in failure.violations),
        retry_after=failure.retry_after.ToTimedelta() if failure.HasField("retry_after") else None,
        facts=dict(failure.facts),
    )


@contextmanager
def typed_errors() -> Iterator[None]:
    """Calls inside raise PaymeshCallError where they would raise grpc.aio.AioRpcError."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise call_error(error) from error


def _status_details(error: grpc.aio.AioRpcError) -> list[protobuf_message.Message]:
    """The packed details of the status; none when there are none or they cannot be read."""
    trailing: Any = error.trailing_metadata()
    packed = dict(trailing or ()).get(STATUS_DETAILS_KEY)
    if not isinstance(packed, bytes):
        return []
    try:
        return list(status_pb2.Status.FromString(packed).details)
    except protobuf_message.DecodeError:
        return []


def _unpack(detail: protobuf_message.Message, into: protobuf_message.Message) -> bool:
    """Unpack an Any; False when it holds something else or cannot be read."""
    try:
        return bool(detail.Unpack(into))  # type: ignore[attr-defined]
    except protobuf_message.DecodeError:
        return False
