"""The audit trail's pure parts: the chain, the tree, the checkpoint.

The tree is held against an oracle of its own: RFC 6962's definition, written down recursively as it stands there. Ours
works level by level.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payment.trail import checkpoint, merkle
from services.payment.trail.chain import GENESIS, event_hash
from services.payment.trail.checkpoint import Entry, NoCheckpoint

KEY = checkpoint.read_private_key(checkpoint.new_private_key())
KEYS = {checkpoint.key_id_of(KEY.public_key()): KEY.public_key()}

entries_strategy = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


def oracle_root(entries: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return hashlib.sha256(b"\x01" + oracle_root(entries[:k]) + oracle_root(entries[k:])).digest()


def oracle_path(place: int, entries: Sequence[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(entries) == 1:
        return []
    k = 1
    while 2 * k < len(entries):
        k *= 2
    if place < k:
        return [*oracle_path(place, entries[:k]), oracle_root(entries[k:])]
    return [*oracle_path(place - k, entries[k:]), oracle_root(entries[:k])]


def leaves_of(entries: Sequence[bytes]) -> list[bytes]:
    return [merkle.leaf_hash(entry) for entry in entries]


def test_the_tree_over_nothing_has_the_root_of_the_rfc() -> None:
    assert merkle.root_of([]) == oracle_root([])


@given(entries_strategy)
def test_root_and_paths_are_those_of_the_rfc(entries: list[bytes]) -> None:
    leaves = leaves_of(entries)
    assert merkle.root_of(leaves) == oracle_root(entries)
    paths = merkle.paths_of(leaves, range(len(entries)))
    for place in range(len(entries)):
        assert paths[place] == oracle_path(place, entries)
        found = merkle.root_by_path(leaves[place], place, len(entries), paths[place])
        assert found == oracle_root(entries)


@given(entries_strategy, st.data())
def test_a_path_proves_nothing_else(entries: list[bytes], data: st.DataObject) -> None:
    """Neither another entry, nor another place, nor a longer, a shorter or a changed path leads to the root."""
    leaves = leaves_of(entries)
    root, count = merkle.root_of(leaves), len(leaves)
    place = data.draw(st.integers(0, count - 1))
    path = merkle.paths_of(leaves, [place])[place]
    other = data.draw(st.binary(max_size=40).filter(lambda entry: entry != entries[place]))
    assert merkle.root_by_path(merkle.leaf_hash(other), place, count, path) != root
    assert merkle.root_by_path(leaves[place], place, count, [*path, root]) is None
    assert merkle.root_by_path(leaves[place], count, count, path) is None
    assert merkle.root_by_path(leaves[place], -1, count, path) is None
    if path:
        assert merkle.root_by_path(leaves[place], place, count, path[:-1]) is None
        broken = [*path[:-1], bytes(32)]
        assert merkle.root_by_path(leaves[place], place, count, broken) != root


@given(entries_strategy, st.data())
def test_any_change_of_the_list_changes_the_root(entries: list[bytes], data: st.DataObject) -> None:
    root = merkle.root_of(leaves_of(entries))
    place = data.draw(st.integers(0, len(entries) - 1))
    assert merkle.root_of(leaves_of(entries[:place] + entries[place + 1 :])) != root
    assert merkle.root_of(leaves_of([*entries, entries[place]])) != root
    swapped = [entries[place], *entries[:place], *entries[place + 1 :]]
    assert (merkle.root_of(leaves_of(swapped)) == root) == (swapped == entries)


def test_a_hash_is_over_everything_that_an_event_says() -> None:
    said = (GENESIS, "mer", "pay_1", 1, "PaymentInitiated", '{"a":1}')
    others = (bytes(32), "mer2", "pay_2", 2, "PaymentVoided", '{"a":2}')
    plain = b"\0".join(str(part).encode() for part in said[1:])
    assert event_hash(*said) == hashlib.sha256(GENESIS + plain).digest()
    for place, other in enumerate(others):
        changed = [*said[:place], other, *said[place + 1 :]]
        assert event_hash(*changed) != event_hash(*said)  # type: ignore[arg-type]
    assert event_hash(GENESIS, "a", "bc", 1, "t", "") != event_hash(GENESIS, "ab", "c", 1, "t", "")


def _entries(first: int, count: int) -> list[Entry]:
    return [Entry(1_000 + n, 'mer "ä"\n', f"pay_{n}", 1, f"{n:064x}") for n in range(first, first + count)]


def test_checkpoints_are_chained_and_signed() -> None:
    one, lines = checkpoint.make(_entries(0, 3), None, 5, KEY)
    two, _ = checkpoint.make(_entries(3, 2), one, 6, KEY)
    assert [json.loads(line) for line in lines] == [list(entry) for entry in _entries(0, 3)]
    assert checkpoint.read_header(two.line()) == two
    assert (two.number, two.previous) == (2, hashlib.sha256(one.line()).hexdigest())
    assert two.through == (1_004, 'mer "ä"\n', "pay_4", 1)
    assert not [*checkpoint.faults_of(one, None, KEYS), *checkpoint.faults_of(two, one, KEYS)]


def test_events_that_came_late_do_not_set_the_clock_back() -> None:
    one, _ = checkpoint.make(_entries(10, 2), None, 5, KEY)
    two, _ = checkpoint.make(_entries(0, 1), one, 6, KEY)
    assert (two.since_us, two.through) == (1_000, one.through)


@pytest.mark.parametrize("field", checkpoint.Header._fields)
def test_whatever_is_changed_in_a_header_shows(field: str) -> None:
    one, _ = checkpoint.make(_entries(0, 3), None, 5, KEY)
    two, _ = checkpoint.make(_entries(3, 2), one, 6, KEY)
    other: dict[str, Any] = {
        "root": "00" * 32,
        "previous": "00" * 32,
        "key_id": "0" * 16,
        "signature": bytes(64),
    }
    changed = two._replace(**{field: other.get(field, (1, "", "", 1) if field == "through" else 7)})
    assert checkpoint.read_header(changed.line()) == changed
    assert [*checkpoint.faults_of(changed, one, KEYS)]


def test_another_chain_or_another_key_shows() -> None:
    one, _ = checkpoint.make(_entries(0, 3), None, 5, KEY)
    other, _ = checkpoint.make(_entries(0, 3), None, 6, KEY)
    two, _ = checkpoint.make(_entries(3, 2), one, 6, KEY)
    (fault,) = checkpoint.faults_of(two, other, KEYS)
    assert fault == "is not chained to checkpoint 1 as it stands"
    stranger = checkpoint.read_private_key(checkpoint.new_private_key())
    forged, _ = checkpoint.make(_entries(3, 2), one, 6, stranger)
    (fault,) = checkpoint.faults_of(forged, one, KEYS)
    assert "is none of those that were given" in fault


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"no", b'{"format":"paymesh checkpoint 1"}'])
def test_what_is_no_header_is_told(line: bytes) -> None:
    with pytest.raises(NoCheckpoint):
        checkpoint.read_header(line)


def test_keys_are_read_from_either_half() -> None:
    private = checkpoint.new_private_key()
    public = checkpoint.public_pem(checkpoint.read_private_key(private).public_key())
    assert checkpoint.key_id_of(checkpoint.read_public_key(private)) == checkpoint.key_id_of(
        checkpoint.read_public_key(public)
    )
