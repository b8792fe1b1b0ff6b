"""A stored answer reads back as it was given, marked as a replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paymesh.inventory.v1 import inventory_pb2 as pb
from services.kit.errors import InProgress, Invalid, NotFound, PaymeshError, Refused, Retryable, Unknown
from services.kit.rpc.stored import Pack, ResourceKey
from services.kit.sets import Answer, Failed

PACK = Pack(pb.GetProductResponse)


@given(name=st.text(max_size=50), quantity=st.integers(-(2**31), 2**31 - 1))
def test_an_answer_replays_equal(name: str, quantity: int) -> None:
    message = pb.GetProductResponse(product=pb.Product(name=name, on_hand_quantity=quantity))
    assert PACK.unpack(PACK.pack(Answer(message))) == Answer(message, replayed=True)


def test_an_empty_answer_is_not_taken_for_none() -> None:
    stored = PACK.pack(Answer(pb.GetProductResponse()))
    assert stored
    assert PACK.unpack(stored) == Answer(pb.GetProductResponse(), replayed=True)


@pytest.mark.parametrize(
    "error",
    [
        Refused("OUT_OF_STOCK", "none left", facts={"sku": "a"}),
        NotFound("UNKNOWN_PRODUCT", "there is no such product"),
        Invalid.field("sku", "is required"),
        Retryable("BUSY", "later", retry_after_ms=200),
        InProgress("IN_PROGRESS", "not ended"),
        Unknown("COMMIT_UNKNOWN", "the connection broke"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_replays_equal(error: PaymeshError) -> None:
    replayed = PACK.unpack(PACK.pack(Failed(error)))
    assert isinstance(replayed, Failed)
    assert replayed.replayed
    assert type(replayed.error) is type(error)
    assert vars(replayed.error) == vars(error)


def test_an_answer_that_can_be_read_back_is_not_stored_but_a_refusal_is() -> None:
    async def recall(tx: Any, keys: Sequence[ResourceKey]) -> Mapping[ResourceKey, pb.GetProductResponse]:
        return {}

    answer, refusal = Answer(pb.GetProductResponse()), Failed(Refused("NO", "no"))
    reading_back = Pack(pb.GetProductResponse, recall)
    assert not reading_back.stores(answer)
    assert reading_back.stores(refusal)
    assert PACK.stores(answer)
    assert PACK.stores(refusal)


def test_a_replay_is_stored_as_the_outcome_it_repeats() -> None:
    message = pb.GetProductResponse(product=pb.Product(sku="a"))
    assert PACK.pack(Answer(message, replayed=True)) == PACK.pack(Answer(message))
