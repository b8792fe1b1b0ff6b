"""What a merchant is charged for captures."""

from __future__ import annotations

from typing import NamedTuple

BASIS_POINTS_MAX = 10_000
"""All of it."""


class FeePlan(NamedTuple):
    """A merchant's plan for one currency."""

    basis_points: int
    """Ten-thousandths of what is captured, 0 to 10,000."""
    fixed_minor: int
    """Charged once per payment, in minor units."""


NO_FEE = FeePlan(0, 0)
"""For a merchant without a plan."""


def fee_for(plan: FeePlan, captured_minor: int, charged_minor: int, amount_minor: int) -> int:
    """What capturing `amount_minor` costs, when `captured_minor` were captured of the payment before, for
    `charged_minor`.

    The rule: the fee on all that was captured so far is the fixed part and the share, rounded half up to whole minor
    units, but never more than was captured; a capture is charged what that grows by. So a payment that is captured in
    ten parts costs what it costs in one. Should the plan have become cheaper meanwhile, nothing is paid back.
    """
    captured = captured_minor + amount_minor
    share = (captured * plan.basis_points + BASIS_POINTS_MAX // 2) // BASIS_POINTS_MAX
    return max(0, min(captured, plan.fixed_minor + share) - charged_minor)
