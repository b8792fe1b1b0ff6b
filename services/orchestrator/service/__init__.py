"""The contract's side of the orchestrator: RPCs in, messages out, and what the engine has to know of the wire."""

from services.orchestrator.service.messages import CONTRACTS
from services.orchestrator.service.rpcs import NAME, OrchestratorService

__all__ = ["CONTRACTS", "NAME", "OrchestratorService"]
