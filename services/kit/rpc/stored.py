"""Stored answers: an outcome as the bytes that stand in an idempotency row, and back."""

from __future__ import annotations

from typing import Generic

from paymesh.result.v1 import failure_pb2
from services.kit.rpc.failures import from_failure, to_failure
from services.kit.sets import Answer, Failed, M, Outcome

_ANSWER = b"\x00"
_FAILED = b"\x01"


class Pack(Generic[M]):
    """Packs the outcomes of one method: a first byte that says which kind, then the message."""

    def __init__(self, response_type: type[M]) -> None:
        self._response_type = response_type

    def pack(self, outcome: Outcome[M]) -> bytes:
        """The bytes to store."""
        if isinstance(outcome, Answer):
            return _ANSWER + outcome.message.SerializeToString()
        return _FAILED + to_failure(outcome.error).SerializeToString()

    def unpack(self, stored: bytes) -> Outcome[M]:
        """The stored outcome, marked as a replay."""
        if stored[:1] == _ANSWER:
            return Answer(self._response_type.FromString(stored[1:]), replayed=True)
        return Failed(from_failure(failure_pb2.Failure.FromString(stored[1:])), replayed=True)
