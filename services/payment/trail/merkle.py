"""A tree of hashes over a list of entries, as RFC 6962 (certificate transparency) makes it. Pure.

The root is 32 bytes that stand for all entries in their order; a path of a few hashes proves that an entry is at a
place of the list. Leaves and inner nodes are hashed apart, so that neither can pass for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

EMPTY = sha256(b"").digest()
"""The root over nothing."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry."""
    return sha256(b"\0" + entry).digest()


def _parents(level: Sequence[bytes]) -> list[bytes]:
    """The level above. An odd one at the end has no partner and rises as it is: what RFC 6962 comes to when it splits
    at the largest power of two."""
    above = [
        sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)
    ]
    if len(level) % 2:
        above.append(level[-1])
    return above


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    if not leaves:
        return EMPTY
    while len(leaves) > 1:
        leaves = _parents(leaves)
    return leaves[0]


def paths_of(leaves: Sequence[bytes], places: Iterable[int]) -> dict[int, list[bytes]]:
    """For leaves at some places the hashes that lead from each to the root, lowest first."""
    paths: dict[int, list[bytes]] = {place: [] for place in places}
    assert all(0 <= place < len(leaves) for place in paths), "there are leaves at these places"
    height = 0
    while len(leaves) > 1:
        for place, path in paths.items():
            neighbour = (place >> height) ^ 1
            if neighbour < len(leaves):
                path.append(leaves[neighbour])
        leaves, height = _parents(leaves), height + 1
    return paths


def root_by_path(leaf: bytes, place: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a path leads to from the leaf at `place` of `count`; None where a tree has none."""
    if not 0 <= place < count:
        return None
    hashed, rest = leaf, iter(path)
    while count > 1:
        if place ^ 1 < count:
            neighbour = next(rest, None)
            if neighbour is None:
                return None
            pair = neighbour + hashed if place & 1 else hashed + neighbour
            hashed = sha256(b"\1" + pair).digest()
        place, count = place >> 1, (count + 1) >> 1
    return hashed if next(rest, None) is None else None
