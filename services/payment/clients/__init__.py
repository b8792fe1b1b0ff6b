"""Calls to others: the fraud service, the processors, and the bank that settles.

All take sets and answer one by one, in order. What goes wrong with one item, or with the whole call, comes back as a
value: a lost answer is a fact to be recorded, not an exception to be handled somewhere else.
"""

from services.payment.clients.bank import open_bank
from services.payment.clients.fraud import Asked, FraudClient
from services.payment.clients.processor import CannotRun, NotSetUp, Opener, Processor
from services.payment.clients.router import Processors, open_processors
from services.payment.clients.settlements import SettlementBank
from services.payment.clients.stripe import open_stripe

__all__ = [
    "PROCESSORS",
    "Asked",
    "CannotRun",
    "FraudClient",
    "NotSetUp",
    "Opener",
    "Processor",
    "Processors",
    "SettlementBank",
    "open_processors",
]

PROCESSORS: dict[str, Opener] = {
    "bank": open_bank,
    "stripe": open_stripe,
}
"""By the name that PAYMESH_PAYMENT_PROCESSOR and every payment calls them by: a name is never given to another one."""
