"""The RPCs of payment: proto in, domain, proto out."""

from services.payment.service.ledger import LEDGER_NAME, LedgerService
from services.payment.service.rpcs import NAME, PaymentService
from services.payment.service.settlements import SETTLEMENT_NAME, SettlementService

__all__ = [
    "LEDGER_NAME",
    "NAME",
    "SETTLEMENT_NAME",
    "LedgerService",
    "PaymentService",
    "SettlementService",
]
