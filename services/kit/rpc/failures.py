"""The one table between our errors and the wire, both ways.

On a single call a `PaymeshError` becomes a status code with typed details (`Failure`, `ErrorInfo`, `RetryInfo`,
`BadRequest`); in a batch it becomes a `Failure` message in the item's result. Reading goes the other way. A status that
carries no `Failure` comes from gRPC itself or from a stranger and is judged by its code alone.
"""

from __future__ import annotations

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from paymesh.result.v1 import failure_pb2
from services.kit import errors
from services.kit.errors import Kind, PaymeshError

_DOMAIN = "paymesh"
_DETAILS_KEY = "grpc-status-details-bin"

# Clients take 8 KiB of trailing metadata; a status with more reaches them as RESOURCE_EXHAUSTED. A violation travels
# twice (Failure and BadRequest), a message three times, once at three times its length where it is not ASCII.
_VIOLATIONS_BYTES_MAX = 2_000
_MESSAGE_BYTES_MAX = 500

_CODES: dict[type[PaymeshError], int] = {
    errors.Invalid: code_pb2.INVALID_ARGUMENT,
    errors.Refused: code_pb2.FAILED_PRECONDITION,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.Retryable: code_pb2.UNAVAILABLE,
    errors.InProgress: code_pb2.ABORTED,
    errors.Unknown: code_pb2.UNKNOWN,
    errors.Bug: code_pb2.INTERNAL,
}

_KINDS: dict[Kind, failure_pb2.Kind.ValueType] = {
    Kind.INVALID: failure_pb2.KIND_INVALID,
    Kind.REFUSED: failure_pb2.KIND_REFUSED,
    Kind.NOT_FOUND: failure_pb2.KIND_NOT_FOUND,
    Kind.RETRYABLE: failure_pb2.KIND_RETRYABLE,
    Kind.IN_PROGRESS: failure_pb2.KIND_IN_PROGRESS,
    Kind.UNKNOWN: failure_pb2.KIND_UNKNOWN,
    Kind.BUG: failure_pb2.KIND_BUG,
}

_CLASSES: dict[failure_pb2.Kind.ValueType, type[PaymeshError]] = {
    failure_pb2.KIND_REFUSED: errors.Refused,
    failure_pb2.KIND_NOT_FOUND: errors.NotFound,
    failure_pb2.KIND_RETRYABLE: errors.Retryable,
    failure_pb2.KIND_IN_PROGRESS: errors.InProgress,
    failure_pb2.KIND_UNKNOWN: errors.Unknown,
    failure_pb2.KIND_BUG: errors.Bug,
}

# Without a Failure nothing is known of what the callee did, except where the code proves that it did nothing. Neither
# UNAVAILABLE nor RESOURCE_EXHAUSTED does: the one may be a connection lost under the answer, the other an answer that
# is too large for the caller.
_STRANGERS: dict[grpc.StatusCode, type[PaymeshError]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.UNIMPLEMENTED: errors.Bug,
}


def as_error(error: BaseException) -> PaymeshError:
    """Any exception as a member of the family. What we did not foresee is a Bug; its details stay in the log."""
    if isinstance(error, PaymeshError):
        return error
    return errors.Bug("INTERNAL", "an internal error; the details are in the service's log")


def to_failure(error: PaymeshError) -> failure_pb2.Failure:
    """The error as a message."""
    failure = failure_pb2.Failure(
        kind=_KINDS[error.kind],
        reason=error.reason,
        message=error.message,
        violations=[
            failure_pb2.FieldViolation(field=v.field, description=v.description) for v in error.violations
        ],
        facts=error.facts,
    )
    if error.retry_after_ms is not None:
        failure.retry_after.FromMilliseconds(error.retry_after_ms)
    return failure


def from_failure(failure: failure_pb2.Failure) -> PaymeshError:
    """The message as an error."""
    if failure.kind == failure_pb2.KIND_INVALID:
        violations = [errors.Violation(v.field, v.description) for v in failure.violations]
        return errors.Invalid(violations, failure.message)
    return _CLASSES.get(failure.kind, errors.Unknown)(
        failure.reason,
        failure.message,
        facts=dict(failure.facts),
        retry_after_ms=failure.retry_after.ToMilliseconds() if failure.HasField("retry_after") else None,
    )


def to_status(error: PaymeshError) -> grpc.Status:
    """The error as the status of a single call; long texts are cut to what a status can carry."""
    code = next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)
    failure = to_failure(error)
    failure.message = _cut(error.message, _MESSAGE_BYTES_MAX)
    _fit(failure)
    details = [
        failure,
        error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=error.facts),
    ]
    if error.retry_after_ms is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=failure.retry_after))
    if failure.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in failure.violations
                ]
            )
        )
    status = status_pb2.Status(code=code, message=f"{error.reason}: {failure.message}")
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def _fit(failure: failure_pb2.Failure) -> None:
    """Cut the violations down to what a status can carry."""
    left = _VIOLATIONS_BYTES_MAX
    for count, violation in enumerate(failure.violations):
        violation.description = _cut(violation.description, _MESSAGE_BYTES_MAX)
        left -= violation.ByteSize()
        if left < 0:
            del failure.violations[count:]
            return


def _cut(text: str, bytes_max: int) -> str:
    data = text.encode()
    return text if len(data) <= bytes_max else data[:bytes_max].decode(errors="ignore") + " …"


def from_call(error: grpc.aio.AioRpcError) -> PaymeshError:
    """What a failed call tells the caller. A Failure in the details is the callee's word, whatever became of the code
    on the way; details that cannot be read are as good as none."""
    packed = dict(error.trailing_metadata() or ()).get(_DETAILS_KEY, b"")
    try:
        for detail in status_pb2.Status.FromString(packed).details if isinstance(packed, bytes) else ():
            failure = failure_pb2.Failure()
            if detail.Unpack(failure):
                return from_failure(failure)
    except DecodeError:
        pass
    cls = _STRANGERS.get(error.code(), errors.Unknown)
    return cls(error.code().name, error.details() or "no details")
