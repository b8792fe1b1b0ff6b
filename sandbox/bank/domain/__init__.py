"""What the bank decides. Pure: requests and books in, operations out.

An authorization's states: (not arrived) → APPROVED | DECLINED | CANCELLED, APPROVED → VOIDED | CAPTURED.
"""

from sandbox.bank.domain.books import (
    Authorization,
    AuthorizeWish,
    Hold,
    Identity,
    Kind,
    MoveWish,
    Operation,
    Result,
    State,
    VoidWish,
    holds_of,
)
from sandbox.bank.domain.holds import (
    KeyedVoid,
    authorization,
    authorize,
    cancelled,
    nothing_held,
    repeat_refusal,
    unknown_authorization,
    void,
    void_in_order,
)
from sandbox.bank.domain.movements import KeyedMove, move_in_order, refusal

__all__ = [
    "Authorization",
    "AuthorizeWish",
    "Hold",
    "Identity",
    "KeyedMove",
    "KeyedVoid",
    "Kind",
    "MoveWish",
    "Operation",
    "Result",
    "State",
    "VoidWish",
    "authorization",
    "authorize",
    "cancelled",
    "holds_of",
    "move_in_order",
    "nothing_held",
    "refusal",
    "repeat_refusal",
    "unknown_authorization",
    "void",
    "void_in_order",
]
