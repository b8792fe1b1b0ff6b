"""The RPCs of fraud: proto in, domain, proto out."""

from services.fraud.service.rpcs import NAME, FraudService

__all__ = ["NAME", "FraudService"]
