"""Wires the payment service. Run it with `python -m services.payment`."""

from __future__ import annotations

from functools import partial

from paymesh.payment.v1 import ledger_pb2_grpc, payment_pb2_grpc, settlement_pb2_grpc
from services.kit.config import cannot_run
from services.kit.events import open_bus, publish, take_part
from services.kit.process import Process, run
from services.kit.rpc.client import open_channel
from services.payment.bench_only import forgo_history
from services.payment.clients import PROCESSORS, CannotRun, FraudClient, SettlementBank, open_processors
from services.payment.config import PaymentConfig
from services.payment.runner import Expiry, Resolver, watch_waiting
from services.payment.service import (
    LEDGER_NAME,
    NAME,
    SETTLEMENT_NAME,
    LedgerService,
    PaymentService,
    SettlementService,
    choreography,
)
from services.payment.service.settling import Settling, clock_of
from services.payment.settler import Settler
from services.payment.trail.months import keep_months
from services.payment.trail.sealer import open_sealer


async def wire(process: Process, config: PaymentConfig) -> None:
    """Three servicers, fraud, the processors, a relay, and runners: a resolver, one for expiry, a settler, a keeper of
    months and a sealer."""
    fraud_channel = open_channel(config.fraud_target, caller="payment")
    process.closing(fraud_channel.close)
    try:
        processors = await open_processors(config, PROCESSORS)
    except CannotRun as why:
        cannot_run("payment", str(why))
    process.closing(processors.close)
    service = PaymentService(
        process.database, FraudClient(fraud_channel, config.fraud_seconds), processors, config
    )
    resolver = Resolver(process.database, service, processors, config)
    process.serve(payment_pb2_grpc.add_PaymentServiceServicer_to_server, service, NAME)
    process.serve(
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server, LedgerService(process.database), LEDGER_NAME
    )
    bus = open_bus(process, config.valkey_url)
    publish(process, "payment", bus, config)
    part = choreography.part_of(service)
    take_part(
        process,
        "payment",
        bus,
        "orchestrator",
        config.orchestrator_target,
        part,
        choreography.BY_ORCHESTRATOR,
    )
    take_part(process, "payment", bus, "inventory", config.inventory_target, part, choreography.BY_INVENTORY)
    take_part(process, "payment", bus, "shipping", config.shipping_target, part, choreography.BY_SHIPPING)
    if config.bank_target:
        _wire_settlement(process, config)
    process.background("resolver", resolver.run)
    process.background("expiry", Expiry(process.database, config).run)
    process.background("waiting", partial(watch_waiting, process.database))
    if config.bench_without_history:
        await forgo_history(process.database, config.bench_without_history)
    process.background("months", partial(keep_months, process.database))
    if config.seal_folder:
        process.background("sealer", open_sealer(process.database, config).run)


def _wire_settlement(process: Process, config: PaymentConfig) -> None:
    """One more way to the bank, whose long calls hold up nobody else's."""
    # No retries below us, as for the processors.
    channel = open_channel(config.bank_target, caller="payment", attempts_max=1)
    process.closing(channel.close)
    settling = Settling(process.database, SettlementBank(channel, config.settle_seconds), config)
    clock = clock_of(config)
    settler = Settler(process.database, settling, clock, config)
    service = SettlementService(process.database, settling, clock, settler.wake)
    process.serve(settlement_pb2_grpc.add_SettlementServiceServicer_to_server, service, SETTLEMENT_NAME)
    process.background("settler", settler.run)


if __name__ == "__main__":
    run("payment", PaymentConfig, wire)
