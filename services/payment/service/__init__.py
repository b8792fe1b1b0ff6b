"""The RPCs of payment: proto in, domain, proto out."""

from services.payment.service.rpcs import NAME, PaymentService

__all__ = ["NAME", "PaymentService"]
