"""Calls to others: the fraud service, and the processor behind its gateway.

Both take sets and answer one by one, in order. What goes wrong with one item, or with the whole call, comes back as a
value: a lost answer is a fact to be recorded, not an exception to be handled somewhere else.
"""

from services.payment.clients.fraud import Asked, FraudClient
from services.payment.clients.processor import Processor

__all__ = ["Asked", "FraudClient", "Processor"]
