"""The participants of sagas: how each step is asked for, and what its answer means."""

from services.orchestrator.clients.placed import Payments, one_way_participants
from services.orchestrator.clients.placing import Inventory, Payment, Shipping
from services.orchestrator.clients.waves import Participant, Wave

__all__ = ["Inventory", "Participant", "Payment", "Payments", "Shipping", "Wave", "one_way_participants"]
