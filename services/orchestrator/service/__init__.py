"""The contract's side of the orchestrator: RPCs in, messages out, and what the engine has to know of the wire."""

from services.orchestrator.service.choreography import BY_INVENTORY, BY_PAYMENT, BY_SHIPPING, Observer
from services.orchestrator.service.messages import CONTRACTS
from services.orchestrator.service.rpcs import NAME, OrchestratorService

__all__ = [
    "BY_INVENTORY",
    "BY_PAYMENT",
    "BY_SHIPPING",
    "CONTRACTS",
    "NAME",
    "Observer",
    "OrchestratorService",
]
