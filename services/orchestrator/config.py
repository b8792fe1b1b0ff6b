"""Every knob of the orchestrator."""

from __future__ import annotations

from pydantic import Field

from services.kit.config import EventsConfig


class OrchestratorConfig(EventsConfig):
    """Configuration of the orchestrator; environment variables PAYMESH_ORCHESTRATOR_…"""

    inventory_target: str = Field(min_length=1)
    """gRPC target of the inventory service."""
    payment_target: str = Field(min_length=1)
    """gRPC target of the payment service."""
    shipping_target: str = Field(min_length=1)
    """gRPC target of the shipping service."""
    lease_seconds: float = Field(default=5.0, ge=0.5, le=60)
    """How long an orchestrator that has fallen silent keeps its sagas. Shorter wakes orphans sooner, longer forgives
    longer pauses."""
    heartbeat_seconds: float = Field(default=1.0, ge=0.1, le=20)
    """How often the lease is renewed; a fifth of the lease, so that a few lost heartbeats do no harm."""
    takeover_batch_size: int = Field(default=200, ge=1, le=5_000)
    """Sagas of a dead owner that are taken per round."""
    takeover_pause_ms: int = Field(default=100, ge=0, le=60_000)
    """Pause between two rounds of a takeover: with the size above at most 2,000 sagas a second come on top of the
    ordinary work."""
    choreography_seconds: float = Field(default=60.0, gt=0, le=3_600)
    """How long a choreographed order may take. Then everything is undone that was done, or still comes: longer than any
    service's restart and than the payment resolver needs for a lost answer."""
    choreography_undo_seconds: float = Field(default=420.0, gt=0, le=86_400)
    """How long it may take altogether, undos included, before a person is called: about as long as for an orchestrated
    one."""
    sagas_active_max: int = Field(default=20_000, ge=1)
    """Sagas under way at most; past that new orders are shed. About five seconds of work, 100 MB."""
