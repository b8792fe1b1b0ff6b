"""How many random examples a property is tried with: few in `make test`, many in `make test-deep`.

The few find what somebody has just broken; the many look for what nobody has thought of. Both are random anew each
time, so that many runs of the few have tried as much.
"""

from __future__ import annotations

import os

VARIABLE = "PAYMESH_TEST_DEEP"


def examples(few: int, many: int) -> int:
    """For `max_examples`."""
    return many if os.environ.get(VARIABLE) else few
