"""HTTP in, the domain, HTTP out."""

from services.edge.service.app import build_app

__all__ = ["build_app"]
