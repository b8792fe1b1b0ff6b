"""A failed call becomes a typed error by its status details, and by its code alone where there are none."""

import enum
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from paymesh.errors import (
    STATUS_DETAILS_KEY,
    Kind,
    PaymeshCallError,
    Violation,
    call_error,
    failure_error,
    typed_errors,
)
from paymesh.result.v1 import failure_pb2


def rpc_error(code: grpc.StatusCode, *details: Any, raw: bytes | None = None) -> grpc.aio.AioRpcError:
    """What a stub raises: a status with packed details, or with `raw` in their place."""
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    if raw is None and packed:
        raw = status_pb2.Status(code=code.value[0], message="m", details=packed).SerializeToString()
    trailing = grpc.aio.Metadata() if raw is None else grpc.aio.Metadata((STATUS_DETAILS_KEY, raw))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "the text", None)


def failure(**fields: Any) -> failure_pb2.Failure:
    return failure_pb2.Failure(**fields)


def test_kinds_are_those_of_the_contract() -> None:
    contract = {name: number for name, number in failure_pb2.Kind.items() if number}
    assert issubclass(Kind, enum.Enum)
    assert {f"KIND_{kind.name}": kind.value for kind in Kind} == contract


def test_failure_in_the_details_is_read_whole() -> None:
    sent = failure(
        kind=failure_pb2.KIND_REFUSED, reason="OUT_OF_STOCK", message="none left", facts={"sku": "85123A"}
    )
    error = call_error(rpc_error(grpc.StatusCode.FAILED_PRECONDITION, sent))
    assert (error.kind, error.reason, error.message) == (Kind.REFUSED, "OUT_OF_STOCK", "none left")
    assert error.facts == {"sku": "85123A"}
    assert error.retry_after is None
    assert not error.kind.worth_repeating
    assert str(error) == "OUT_OF_STOCK: none left"


def test_kind_in_the_details_wins_over_the_code() -> None:
    sent = failure(kind=failure_pb2.KIND_RETRYABLE, reason="BUSY")
    error = call_error(rpc_error(grpc.StatusCode.INTERNAL, sent))
    assert error.kind is Kind.RETRYABLE


def test_retry_after_of_the_failure_is_read() -> None:
    sent = failure(
        kind=failure_pb2.KIND_IN_PROGRESS,
        reason="IN_PROGRESS",
        retry_after=duration_pb2.Duration(nanos=250_000_000),
    )
    error = call_error(rpc_error(grpc.StatusCode.ABORTED, sent))
    assert error.retry_after == timedelta(milliseconds=250)
    assert error.kind.worth_repeating


def test_standard_details_are_enough_without_a_failure() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="lines[2].quantity", description="must be 1 or more")
    error = call_error(
        rpc_error(
            grpc.StatusCode.INVALID_ARGUMENT,
            error_details_pb2.ErrorInfo(domain="paymesh", reason="BAD", metadata={"a": "b"}),
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2)),
            bad,
        )
    )
    assert (error.kind, error.reason) == (Kind.INVALID, "BAD")
    assert error.facts == {"a": "b"}
    assert error.violations == (Violation("lines[2].quantity", "must be 1 or more"),)
    assert error.retry_after == timedelta(seconds=2)
    assert str(error) == "BAD: lines[2].quantity: must be 1 or more"


def test_error_info_of_another_domain_does_not_name_the_reason() -> None:
    info = error_details_pb2.ErrorInfo(domain="elsewhere.example", reason="QUOTA")
    error = call_error(rpc_error(grpc.StatusCode.NOT_FOUND, info))
    assert (error.kind, error.reason) == (Kind.NOT_FOUND, "NOT_FOUND")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code != grpc.StatusCode.OK])
def test_status_without_details_has_a_kind_and_keeps_its_name(code: grpc.StatusCode) -> None:
    error = call_error(rpc_error(code))
    assert error.reason == code.name
    assert error.message == "the text"
    assert error.kind is not Kind.RETRYABLE, "only a service may say that nothing happened"


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_bare_status_that_may_follow_a_success_is_unknown(code: grpc.StatusCode) -> None:
    assert call_error(rpc_error(code)).kind is Kind.UNKNOWN


def test_only_a_bare_unavailable_means_that_nobody_answered() -> None:
    shed = failure(kind=failure_pb2.KIND_RETRYABLE, reason="DRAINING")
    assert call_error(rpc_error(grpc.StatusCode.UNAVAILABLE)).unreachable
    assert not call_error(rpc_error(grpc.StatusCode.UNAVAILABLE, shed)).unreachable
    assert not call_error(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)).unreachable


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b""])
def test_details_that_cannot_be_read_count_as_none(raw: bytes) -> None:
    assert call_error(rpc_error(grpc.StatusCode.ABORTED, raw=raw)).kind is Kind.IN_PROGRESS


def test_detail_with_a_broken_body_is_passed_over() -> None:
    broken = any_pb2.Any(type_url="type.googleapis.com/paymesh.result.v1.Failure", value=b"\xff\xff\xff")
    raw = status_pb2.Status(details=[broken]).SerializeToString()
    assert call_error(rpc_error(grpc.StatusCode.NOT_FOUND, raw=raw)).kind is Kind.NOT_FOUND


def test_failure_of_a_batch_item_with_a_kind_of_tomorrow_is_unknown() -> None:
    sent = failure_pb2.Failure.FromString(b"\x08\x63")  # kind = 99
    error = failure_error(sent)
    assert (error.kind, error.reason) == (Kind.UNKNOWN, "UNKNOWN")


def test_violations_of_a_batch_item_are_read() -> None:
    sent = failure(
        kind=failure_pb2.KIND_INVALID,
        reason="INVALID_REQUEST",
        violations=[failure_pb2.FieldViolation(field="sku", description="is empty")],
    )
    assert failure_error(sent).violations == (Violation("sku", "is empty"),)


def test_typed_errors_translates_and_keeps_the_cause() -> None:
    original = rpc_error(grpc.StatusCode.NOT_FOUND)
    with pytest.raises(PaymeshCallError) as caught, typed_errors():
        raise original
    assert caught.value.__cause__ is original


def test_other_exceptions_pass_through_typed_errors() -> None:
    with pytest.raises(ZeroDivisionError), typed_errors():
        raise ZeroDivisionError


def test_errors_with_equal_fields_are_still_two_errors() -> None:
    one, two = (PaymeshCallError(Kind.BUG, "X", "y") for _ in range(2))
    assert len({one, two}) == 2
