"""Wires the edge. Run it with `python -m services.edge`."""

from __future__ import annotations

from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from paymesh.payment.v1.payment_pb2_grpc import PaymentServiceStub
from services.edge.clients import Clients
from services.edge.config import EdgeConfig
from services.edge.limiter import Limiter
from services.edge.service import build_app
from services.edge.vault import Vault
from services.kit.breaker import Breaker
from services.kit.http import HttpServer
from services.kit.process import Process, run
from services.kit.rpc.client import open_channel


async def wire(process: Process, config: EdgeConfig) -> None:
    """Three callees, a limiter, a vault, and an HTTP server."""
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
    process.answer(HttpServer(config.listen, build_app(process.database, clients, limiter, vault, config)))


if __name__ == "__main__":
    run("edge", EdgeConfig, wire)
