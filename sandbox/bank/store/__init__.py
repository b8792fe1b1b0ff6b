"""All SQL of the bank. Nothing is decided here.

Lock order: authorizations, or operations that are to be settled, ascending by id; then keys, ascending, by inserting
them.
"""

from sandbox.bank.store.operations import (
    find_by_key,
    find_operations,
    find_used,
    insert_all,
    insert_operations,
    lock_authorizations,
    lock_holds,
)
from sandbox.bank.store.settlements import (
    find_payouts,
    find_settled,
    find_settlements,
    insert_payouts,
    insert_settlements,
    lock_operations,
)

__all__ = [
    "find_by_key",
    "find_operations",
    "find_payouts",
    "find_settled",
    "find_settlements",
    "find_used",
    "insert_all",
    "insert_operations",
    "insert_payouts",
    "insert_settlements",
    "lock_authorizations",
    "lock_holds",
    "lock_operations",
]
