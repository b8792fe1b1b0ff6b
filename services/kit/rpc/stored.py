"""Stored answers: an outcome as the bytes that stand in an idempotency row, and back.

An answer that can be read back from what the call has saved is not stored a second time: its method has a `recall`.
That saves the hot path a write per item, and two copies of one truth can never differ.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeAlias

from paymesh.result.v1 import failure_pb2
from services.kit.db import Transaction
from services.kit.rpc.failures import from_failure, to_failure
from services.kit.sets import Answer, Failed, M, Outcome

_ANSWER = b"\x00"
_FAILED = b"\x01"

ResourceKey: TypeAlias = tuple[str, str]
"""(merchant, identifier of what a call has created)."""
Recall: TypeAlias = Callable[[Transaction, Sequence[ResourceKey]], Awaitable[Mapping[ResourceKey, M]]]
"""Reads answers back as they were first given; what is missing from the result has not ended yet."""


class Pack(Generic[M]):
    """How the outcomes of one method are kept: a first byte that says which kind, then the message."""

    def __init__(self, response_type: type[M], recall: Recall[M] | None = None) -> None:
        self._response_type = response_type
        self.recall = recall

    def stores(self, outcome: Outcome[M]) -> bool:
        """Whether this outcome has to be stored."""
        return self.recall is None or isinstance(outcome, Failed)

    def pack(self, outcome: Outcome[M]) -> bytes:
        """The bytes to store."""
        if isinstance(outcome, Answer):
            message: bytes = outcome.message.SerializeToString()
            return _ANSWER + message
        return _FAILED + to_failure(outcome.error).SerializeToString()

    def unpack(self, stored: bytes) -> Outcome[M]:
        """The stored outcome, marked as a replay."""
        if stored[:1] == _ANSWER:
            return Answer(self._response_type.FromString(stored[1:]), replayed=True)
        return Failed(from_failure(failure_pb2.Failure.FromString(stored[1:])), replayed=True)
