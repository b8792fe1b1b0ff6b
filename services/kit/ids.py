"""Identifiers: a prefix that says what it names and a UUIDv7, so that they sort by time of birth.

`new_id("pay")` is for example `pay_019ab2c4f3d07c61b6a3f2f1d9a4e5b7`: new rows land at the right-hand edge of an
index instead of all over it.
"""

from __future__ import annotations

from uuid_utils import uuid7


def new_id(prefix: str) -> str:
    """A new identifier; `prefix` is the short name of the thing, without the underscore."""
    return f"{prefix}_{uuid7().hex}"
