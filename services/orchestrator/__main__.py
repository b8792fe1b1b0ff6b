"""Wires the orchestrator. Run it with `python -m services.orchestrator`."""

from __future__ import annotations

from paymesh.orchestrator.v1 import orchestrator_pb2_grpc
from services.kit.events import listen, open_bus, publish
from services.kit.process import Process, run
from services.kit.rpc.client import open_channel
from services.orchestrator.clients import (
    Inventory,
    Participant,
    Payment,
    Payments,
    Shipping,
    one_way_participants,
)
from services.orchestrator.config import OrchestratorConfig
from services.orchestrator.ownership import Ownership
from services.orchestrator.runner import Engine
from services.orchestrator.service import (
    BY_INVENTORY,
    BY_PAYMENT,
    BY_SHIPPING,
    CONTRACTS,
    NAME,
    Observer,
    OrchestratorService,
)


async def wire(process: Process, config: OrchestratorConfig) -> None:
    """One servicer, three participants, an engine with its lanes, a lease, a relay, an observer of what it does not
    conduct."""
    targets = (config.inventory_target, config.payment_target, config.shipping_target)
    # No retries below us: whether and when a step is tried again is the saga's decision.
    channels = [open_channel(target, caller="orchestrator", attempts_max=1) for target in targets]
    for channel in channels:
        process.closing(channel.close)
    participants: dict[str, Participant] = {
        "reserve": Inventory(channels[0]),
        "authorize": Payment(channels[1]),
        "ship": Shipping(channels[2]),
        **one_way_participants(*channels),
    }
    engine = Engine(process.database, CONTRACTS, participants, config.sagas_active_max)
    ownership = Ownership(process.database, engine, config)
    await ownership.join()
    process.closing(ownership.leave)
    observer = Observer(process.database, config)
    process.serve(
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server,
        OrchestratorService(process.database, engine, ownership, observer, Payments(channels[1])),
        NAME,
    )
    bus = open_bus(process, config.valkey_url)
    publish(process, "orchestrator", bus, config)
    sources = {"inventory": BY_INVENTORY, "payment": BY_PAYMENT, "shipping": BY_SHIPPING}
    for (source, types), channel in zip(sources.items(), channels, strict=True):
        listen(process, "orchestrator", bus, source, channel, types, observer.apply, applied=observer.applied)
    process.background("clock", observer.watch_the_clock)
    process.background("awaited", observer.look)
    process.background("lease", ownership.keep)
    process.background("takeover", ownership.take_over)


if __name__ == "__main__":
    run("orchestrator", OrchestratorConfig, wire)
