"""The RPCs of the reconciler: proto in, domain, proto out."""

from services.reconciler.service.rpcs import NAME, ReconcilerService

__all__ = ["NAME", "ReconcilerService"]
