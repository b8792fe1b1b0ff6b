"""Identifiers say what they name, never repeat, and sort by time of birth."""

from __future__ import annotations

import re
import time
from uuid import UUID

from services.kit.ids import new_id


def test_an_id_is_its_prefix_and_a_version_7_uuid() -> None:
    identifier = new_id("pay")
    assert re.fullmatch(r"pay_[0-9a-f]{32}", identifier)
    uuid = UUID(identifier.removeprefix("pay_"))
    assert uuid.version == 7
    assert uuid.variant == "specified in RFC 4122"


def test_an_id_carries_the_millisecond_of_its_birth() -> None:
    before_ms = time.time_ns() // 1_000_000
    born_ms = UUID(new_id("pay").removeprefix("pay_")).int >> 80
    assert before_ms - 1 <= born_ms <= time.time_ns() // 1_000_000 + 1


def test_ids_made_one_after_another_differ_and_sort_in_that_order() -> None:
    made = [new_id("pay") for _ in range(20_000)]
    assert len(set(made)) == len(made)
    assert made == sorted(made)
