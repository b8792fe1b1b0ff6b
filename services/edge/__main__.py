"""Wires the edge. Run it with `python -m services.edge`."""

from __future__ import annotations

from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from paymesh.payment.v1.payment_pb2_grpc import PaymentServiceStub
from services.edge.clients import Clients
from services.edge.config import EdgeConfig
from services.edge.domain.addresses import networks
from services.edge.domain.webhooks import Policy
from services.edge.limiter import Limiter
from services.edge.runner import Deliveries
from services.edge.sender import Sender
from services.edge.service import build_app
from services.edge.service.listening import taking
from services.edge.service.telling import ORDER_EVENTS, PAYMENT_EVENTS
from services.edge.vault import Vault
from services.edge.webhooks import Webhooks
from services.kit.breaker import Breaker
from services.kit.events import listen, open_bus
from services.kit.http import HttpServer
from services.kit.process import Process, run
from services.kit.rpc.client import open_channel


async def wire(process: Process, config: EdgeConfig) -> None:
    """Three callees, a limiter, a vault, webhooks, and an HTTP server."""
    targets = (config.payment_target, config.orchestrator_target, config.bank_target)
    payment, orchestrator, bank = (open_channel(target, caller="edge") for target in targets)
    for channel in (payment, orchestrator, bank):
        process.closing(channel.close)
    clients = Clients(
        PaymentServiceStub(payment),
        OrchestratorServiceStub(orchestrator),
        BankServiceStub(bank),
        config.payment_seconds,
        config.order_seconds,
        config.read_seconds,
    )
    limiter = Limiter(
        config.valkey_url,
        requests_max=config.rate_max,
        window_seconds=config.rate_window_seconds,
        timeout_ms=config.valkey_timeout_ms,
        breaker=Breaker(failures_max=config.valkey_failures_max, probe_seconds=config.valkey_probe_seconds),
    )
    process.closing(limiter.close)
    old_keys = tuple(key for key in config.vault_keys_old.get_secret_value().split(",") if key)
    vault = Vault(config.vault_key.get_secret_value(), old_keys)
    allowed = networks(config.webhook_networks_allowed)
    webhooks = Webhooks(process.database, vault, allowed, config.webhook_retry_seconds)
    sender = Sender(config.webhook_seconds, allowed)
    process.closing(sender.close)
    deliveries = Deliveries(
        webhooks,
        sender,
        Policy(config.webhook_retry_seconds, config.webhook_retry_first_ms),
        poll_ms=config.webhook_poll_ms,
        each_at_once=config.webhook_each_at_once,
    )
    process.background("webhooks", deliveries.run)
    bus = open_bus(process, config.valkey_url)
    listen(process, "edge", bus, "payment", payment, list(PAYMENT_EVENTS), taking(webhooks, "payment"))
    listen(
        process,
        "edge",
        bus,
        "orchestrator",
        orchestrator,
        list(ORDER_EVENTS),
        taking(webhooks, "orchestrator"),
    )
    app = build_app(process.database, clients, limiter, vault, webhooks, config)
    process.answer(HttpServer(config.listen, app))


if __name__ == "__main__":
    run("edge", EdgeConfig, wire)
