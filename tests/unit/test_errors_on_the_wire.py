"""Our errors survive the wire, both as the status of a single call and as the failure of one item of a batch: what a
caller may conclude (refused, unknown, in flight, ...) is the same on either side. What gRPC or a stranger says without
our details is judged so that nothing is believed undone that may have been done."""

from __future__ import annotations

import string
from typing import TypeVar

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from paymesh.result.v1 import failure_pb2
from services.kit import errors
from services.kit.errors import (
    Bug,
    InProgress,
    Invalid,
    Kind,
    NotFound,
    Overloaded,
    PaymeshError,
    Refused,
    Retryable,
    Unknown,
    Violation,
)
from services.kit.rpc.failures import as_error, from_call, from_failure, to_failure, to_status

D = TypeVar("D", bound=Message)
DETAILS_KEY = "grpc-status-details-bin"
CLIENT_METADATA_BYTES_MAX = 8192

EXAMPLES: list[tuple[PaymeshError, grpc.StatusCode]] = [
    (
        Invalid([Violation("amount", "is 0"), Violation("card", "is missing")]),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (Refused("OUT_OF_STOCK", "none left", facts={"sku": "a"}), grpc.StatusCode.FAILED_PRECONDITION),
    (NotFound("UNKNOWN_ORDER", "there is no such order"), grpc.StatusCode.NOT_FOUND),
    (Retryable("DATABASE_UNAVAILABLE", "away", retry_after_ms=500), grpc.StatusCode.UNAVAILABLE),
    (Overloaded("OVERLOADED", "full", retry_after_ms=200), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (
        InProgress("IN_PROGRESS", "not ended", facts={"order_id": "o"}, retry_after_ms=1),
        grpc.StatusCode.ABORTED,
    ),
    (Unknown("COMMIT_UNKNOWN", "the connection broke"), grpc.StatusCode.UNKNOWN),
    (Bug("INTERNAL", "see the log"), grpc.StatusCode.INTERNAL),
]
NAMES = [type(error).__name__ for error, _ in EXAMPLES]


def over_the_wire(error: PaymeshError) -> grpc.aio.AioRpcError:
    """What the caller's stub raises when the callee raised `error`."""
    status = to_status(error)
    trailing = grpc.aio.Metadata(*(status.trailing_metadata or ()))
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.details)


def from_a_stranger(code: grpc.StatusCode, packed: bytes | None = None) -> grpc.aio.AioRpcError:
    """What a stub raises when gRPC itself or somebody else answers."""
    trailing = grpc.aio.Metadata() if packed is None else grpc.aio.Metadata((DETAILS_KEY, packed))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "somebody's words")


def details(error: PaymeshError, kind: type[D]) -> list[D]:
    """The details of one kind in the status that `error` becomes."""
    packed = dict(to_status(error).trailing_metadata or ())[DETAILS_KEY]
    assert isinstance(packed, bytes)
    found = []
    for detail in status_pb2.Status.FromString(packed).details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def facts_of(error: PaymeshError) -> tuple[object, ...]:
    """All that a caller can see."""
    return (error.kind, error.reason, error.message, error.facts, error.violations, error.retry_after_ms)


def test_every_class_and_every_kind_has_an_example() -> None:
    assert {type(error) for error, _ in EXAMPLES} == {
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PaymeshError)
    } - {PaymeshError}
    assert {error.kind for error, _ in EXAMPLES} == set(Kind)


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=NAMES)
def test_every_class_round_trips_through_a_status(error: PaymeshError, code: grpc.StatusCode) -> None:
    call = over_the_wire(error)
    assert call.code() is code
    assert call.details() == str(error)
    assert facts_of(from_call(call)) == facts_of(error)


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=NAMES)
def test_every_class_round_trips_through_a_batch_item(error: PaymeshError, code: grpc.StatusCode) -> None:
    sent = to_failure(error).SerializeToString()
    assert facts_of(from_failure(failure_pb2.Failure.FromString(sent))) == facts_of(error)


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=NAMES)
def test_an_error_arrives_as_the_class_it_was_raised_as(error: PaymeshError, code: grpc.StatusCode) -> None:
    # That a queue was full is no fact of its own to a caller: nothing happened, try again.
    expected = Retryable if isinstance(error, Overloaded) else type(error)
    assert type(from_call(over_the_wire(error))) is expected
    assert type(from_failure(to_failure(error))) is expected


def test_refused_unknown_and_in_flight_are_three_things_on_the_wire() -> None:
    said = [Refused("A", "a"), Unknown("B", "b"), InProgress("C", "c"), Retryable("D", "d")]
    assert len({over_the_wire(error).code() for error in said}) == 4
    assert [from_call(over_the_wire(error)).kind for error in said] == [
        Kind.REFUSED, Kind.UNKNOWN, Kind.IN_PROGRESS, Kind.RETRYABLE,
    ]  # fmt: skip


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=NAMES)
def test_a_status_has_exactly_one_error_info(error: PaymeshError, code: grpc.StatusCode) -> None:
    (info,) = details(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (error.reason, "paymesh", error.facts)


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=NAMES)
def test_a_status_has_retry_info_when_there_is_a_time_to_wait(
    error: PaymeshError, code: grpc.StatusCode
) -> None:
    waits = [retry.retry_delay.ToMilliseconds() for retry in details(error, error_details_pb2.RetryInfo)]
    assert waits == ([] if error.retry_after_ms is None else [error.retry_after_ms])


def test_a_wait_of_nothing_is_a_wait_that_was_named() -> None:
    error = Retryable("BUSY", "come at once", retry_after_ms=0)
    assert from_call(over_the_wire(error)).retry_after_ms == 0
    assert from_failure(to_failure(error)).retry_after_ms == 0


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=NAMES)
def test_a_status_has_a_bad_request_when_fields_are_at_fault(
    error: PaymeshError, code: grpc.StatusCode
) -> None:
    found = details(error, error_details_pb2.BadRequest)
    assert len(found) == bool(error.violations)
    assert [Violation(v.field, v.description) for bad in found for v in bad.field_violations] == [
        *error.violations
    ]


@given(
    cls=st.sampled_from([Refused, NotFound, Retryable, InProgress, Unknown, Bug]),
    reason=st.text(string.ascii_uppercase + "_", min_size=1, max_size=40),
    message=st.text(max_size=100),
    facts=st.dictionaries(
        st.text(string.ascii_lowercase, min_size=1, max_size=10), st.text(max_size=20), max_size=3
    ),
    retry_after_ms=st.none() | st.integers(0, 10**9),
)
def test_any_text_survives(
    cls: type[PaymeshError], reason: str, message: str, facts: dict[str, str], retry_after_ms: int | None
) -> None:
    error = cls(reason, message, facts=facts, retry_after_ms=retry_after_ms)
    assert facts_of(from_call(over_the_wire(error))) == facts_of(error)
    assert facts_of(from_failure(to_failure(error))) == facts_of(error)


@given(
    count=st.integers(1, 300),
    description=st.sampled_from(["x", "ü", "鍵"]).flatmap(lambda c: st.integers(1, 5_000).map(c.__mul__)),
)
def test_a_status_fits_into_what_a_client_takes(count: int, description: str) -> None:
    error = Invalid([Violation(f"lines[{place}].quantity", description) for place in range(count)])
    status = to_status(error)
    size = 3 * len((status.details or "").encode())  # at worst, percent-encoded
    size += sum(len(key) + len(value) for key, value in status.trailing_metadata or ())
    assert size < CLIENT_METADATA_BYTES_MAX - 1_000
    arrived = from_call(over_the_wire(error))
    assert arrived.kind is Kind.INVALID
    assert arrived.violations[0].field == "lines[0].quantity"
    assert arrived.violations[0].description[:100] == description[:100]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        # The connection may have been lost under the answer; the answer may have been too large for us.
        (grpc.StatusCode.UNAVAILABLE, Kind.UNKNOWN),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Kind.UNKNOWN),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Kind.UNKNOWN),
        (grpc.StatusCode.CANCELLED, Kind.UNKNOWN),
        (grpc.StatusCode.INTERNAL, Kind.UNKNOWN),
        (grpc.StatusCode.UNKNOWN, Kind.UNKNOWN),
        (grpc.StatusCode.ABORTED, Kind.UNKNOWN),
        (grpc.StatusCode.FAILED_PRECONDITION, Kind.UNKNOWN),
        (grpc.StatusCode.NOT_FOUND, Kind.NOT_FOUND),
        (grpc.StatusCode.UNIMPLEMENTED, Kind.BUG),
    ],
)
def test_a_status_without_our_details_proves_little(code: grpc.StatusCode, kind: Kind) -> None:
    error = from_call(from_a_stranger(code))
    assert error.kind is kind
    assert error.reason == code.name
    assert error.message == "somebody's words"


def test_details_that_cannot_be_read_are_as_good_as_none() -> None:
    assert from_call(from_a_stranger(grpc.StatusCode.ABORTED, b"\xff\xff\xff")).kind is Kind.UNKNOWN
    broken = any_pb2.Any(type_url="type.googleapis.com/paymesh.result.v1.Failure", value=b"\xff")
    status = status_pb2.Status(code=10, details=[broken]).SerializeToString()
    assert from_call(from_a_stranger(grpc.StatusCode.ABORTED, status)).kind is Kind.UNKNOWN


def test_the_callees_word_stands_whatever_became_of_the_code() -> None:
    trailing = over_the_wire(Refused("OUT_OF_STOCK", "none left")).trailing_metadata()
    rewritten = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing, "too large"
    )
    assert isinstance(from_call(rewritten), Refused)


def test_a_kind_of_a_newer_version_reads_as_unknown() -> None:
    assert from_failure(failure_pb2.Failure(reason="NEW", message="?")).kind is Kind.UNKNOWN
    newer = failure_pb2.Failure.FromString(b"\x08\x63")  # kind = 99
    assert from_failure(newer).kind is Kind.UNKNOWN


def test_what_was_not_foreseen_is_a_bug_that_tells_nothing() -> None:
    bug = as_error(ValueError("password=secret"))
    assert bug.kind is Kind.BUG
    assert "secret" not in str(bug)
    refusal = Refused("OUT_OF_STOCK", "none left")
    assert as_error(refusal) is refusal
