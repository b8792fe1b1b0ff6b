"""Faults on demand: which operation is struck by which fault. Pure; chance comes from outside.

Faults live in the memory of one process: a restarted bank behaves, and several processes each have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

FAULTS_MAX = 1_000
"""Armed and spent ones that are kept for the list."""
UNLIMITED = 2**63 - 1
"""Strikes left of a fault without a limit: the largest int64."""
CERTAIN_PPM = 1_000_000


class FaultKind(StrEnum):
    """What a fault does to an operation."""

    ANSWER_LOST_AFTER = "ANSWER_LOST_AFTER"
    """Carried out, then its answer is lost."""
    ANSWER_LOST_BEFORE = "ANSWER_LOST_BEFORE"
    """Lost on its way in; nothing is carried out."""
    DELAY = "DELAY"
    """Carried out later."""
    REFUSE_CONNECTION = "REFUSE_CONNECTION"
    """The whole call is refused; nothing is carried out."""
    ERROR = "ERROR"
    """Fails with an internal error; nothing is carried out."""
    REFUSE = "REFUSE"
    """Refused for good; only for payouts."""


_CONNECTION = frozenset({FaultKind.REFUSE_CONNECTION})
_FINAL = frozenset({FaultKind.REFUSE})
_ANSWER = frozenset(FaultKind) - _CONNECTION - _FINAL
"""What stands between an operation and its answer."""


class Target(StrEnum):
    """An operation that a fault may strike."""

    AUTHORIZE = "AUTHORIZE"
    VOID = "VOID"
    LOOKUP = "LOOKUP"
    CANCEL = "CANCEL"
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    INCREMENT = "INCREMENT"
    SETTLE = "SETTLE"
    PAYOUT = "PAYOUT"


@dataclass(slots=True, kw_only=True)
class Fault:
    """An armed fault, or a spent one."""

    fault_id: str
    kind: FaultKind
    target: Target | None
    """None for all of them."""
    probability_ppm: int
    """Chance of striking, in millionths."""
    strikes_left: int
    """It is spent at zero; UNLIMITED never counts down."""
    delay_ms: int
    """How long a DELAY holds an operation up; 0 for other kinds."""
    merchant_id: str
    """Whom it strikes; empty for all."""
    strikes: int = 0
    """How often it has struck."""

    def concerns(self, target: Target, merchants: Collection[str]) -> bool:
        """Whether it could strike an operation on `target` of one of the merchants."""
        return (
            self.strikes_left > 0
            and (self.target is None or self.target is target)
            and (not self.merchant_id or self.merchant_id in merchants)
        )


class Faults:
    """The faults of one process. `dice` gives numbers in [0, 1)."""

    def __init__(self, dice: Callable[[], float]) -> None:
        self._dice = dice
        self._faults: list[Fault] = []
        self.armed = False
        """False lets the bank skip every thought about faults."""

    def arm(self, fault: Fault) -> bool:
        """Add a fault, forgetting the oldest spent one where there are too many. False when all are armed
        still."""
        if len(self._faults) >= FAULTS_MAX:
            spent = next((f for f in self._faults if not f.strikes_left), None)
            if spent is None:
                return False
            self._faults.remove(spent)
        self._faults.append(fault)
        self.armed = True
        return True

    def list_faults(self) -> tuple[Fault, ...]:
        """Armed and spent ones, oldest first."""
        return tuple(self._faults)

    def clear(self) -> None:
        """Forget all of them."""
        self._faults.clear()
        self.armed = False

    def refuses(self, target: Target, merchants: Collection[str]) -> bool:
        """Whether a whole call is refused. The dice are thrown once per call, whatever it carries."""
        return self._strike(target, merchants, _CONNECTION) is not None

    def turns_down(self, target: Target, merchant_id: str) -> bool:
        """Whether one operation is refused for good."""
        return self._strike(target, (merchant_id,), _FINAL) is not None

    def strike(self, target: Target, merchant_id: str) -> Fault | None:
        """The fault that strikes one operation: the first, in the order of arming, that does."""
        return self._strike(target, (merchant_id,), _ANSWER)

    def _strike(
        self, target: Target, merchants: Collection[str], kinds: Collection[FaultKind]
    ) -> Fault | None:
        for fault in self._faults:
            if fault.kind not in kinds or not fault.concerns(target, merchants):
                continue
            if fault.probability_ppm < CERTAIN_PPM and self._dice() * CERTAIN_PPM >= fault.probability_ppm:
                continue
            fault.strikes += 1
            if fault.strikes_left != UNLIMITED:
                fault.strikes_left -= 1
                self.armed = any(f.strikes_left for f in self._faults)
            return fault
        return None
