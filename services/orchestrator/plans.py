"""The kinds of sagas, as data.

No two steps share a name, whatever their kind: a step's name is part of its keys and names its lanes.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.backoff import Backoff
from services.orchestrator.positions import Bound, Plan, StepPlan

_DO = Backoff(first_ms=100, factor=2, max_ms=5_000, attempts_max=14)
"""About 40 s of trying: longer than any service's restart and than the payment resolver needs for a lost answer."""
_UNDO = Backoff(first_ms=200, factor=2, max_ms=30_000, attempts_max=20)
"""About six minutes of trying before a person is called: an undo has nothing better to do than to succeed."""
_ONWARD = Backoff(first_ms=200, factor=2, max_ms=10_000, attempts_max=120)
"""About a quarter of an hour of trying before a person is called: there is no way back. Somebody waits for the answer,
so once a participant is back it is asked within ten seconds."""

PLACE = Plan(
    "place",
    (
        StepPlan("reserve", (), _DO, _UNDO, seconds=5.0),
        StepPlan("authorize", ("reserve",), _DO, _UNDO, seconds=9.0),
        StepPlan("ship", ("authorize",), _DO, _UNDO, seconds=5.0),
    ),
)
"""Places an order: stock first, for it is the cheapest to give back; the carrier last, for it is the dearest."""

DISPATCH = Plan(
    "dispatch",
    (
        StepPlan("capture", (), _ONWARD, None, seconds=9.0, bound=Bound.PIVOT),
        StepPlan("dispatch", ("capture",), _ONWARD, None, seconds=5.0, bound=Bound.ONWARD),
        StepPlan("commit", ("dispatch",), _ONWARD, None, seconds=5.0, bound=Bound.ONWARD),
    ),
)
"""Sends an order out of the door. The money moves first, for it alone may still be refused (the authorization has
expired, the bank says no), and then nothing has left the house. Once it is taken the goods are owed: shipment and stock
were set aside for this order when it was placed, and only what decides over this order lets go of them."""

CANCEL = Plan(
    "cancel",
    (
        StepPlan("call_off", (), _ONWARD, None, seconds=5.0, bound=Bound.ONWARD),
        StepPlan("void", ("call_off",), _ONWARD, None, seconds=9.0, bound=Bound.ONWARD),
        StepPlan("release", ("void",), _ONWARD, None, seconds=5.0, bound=Bound.ONWARD),
    ),
)
"""Undoes a placed order, last step first: what is no longer to be paid for must not be able to leave. The decision that
the order is cancelled is the point of no return: it was made when the saga began."""

RETURN = Plan(
    "return",
    (
        StepPlan("refund", (), _ONWARD, None, seconds=9.0, bound=Bound.PIVOT),
        StepPlan("restock", ("refund",), _ONWARD, None, seconds=5.0, bound=Bound.ONWARD),
    ),
)
"""Takes goods back. The money first: the bank may refuse to give it back, and then the goods are not for sale again
either. After it the goods are put on the shelf, however long that takes."""

PLANS: Mapping[str, Plan] = {plan.kind: plan for plan in (PLACE, DISPATCH, CANCEL, RETURN)}
