"""The RPCs of payment: proto in, domain, proto out."""

from services.payment.service.ledger import LEDGER_NAME, LedgerService
from services.payment.service.rpcs import NAME, PaymentService

__all__ = ["LEDGER_NAME", "NAME", "LedgerService", "PaymentService"]
