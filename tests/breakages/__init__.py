"""What is broken by hand in the books of a mesh, invariant by invariant, and what the audit says of it."""

from tests.breakages.announcements import ANNOUNCEMENTS
from tests.breakages.answers import ANSWERS
from tests.breakages.breakage import Breakage
from tests.breakages.orders import ORDERS
from tests.breakages.payments import PAYMENTS
from tests.breakages.reconciliation import RECONCILIATION
from tests.breakages.settlements import SETTLEMENTS
from tests.breakages.stock import STOCK
from tests.breakages.webhooks import WEBHOOKS

ALL = (*PAYMENTS, *SETTLEMENTS, *ORDERS, *STOCK, *ANSWERS, *ANNOUNCEMENTS, *RECONCILIATION, *WEBHOOKS)
"""Everything."""

__all__ = ["ALL", "Breakage"]
