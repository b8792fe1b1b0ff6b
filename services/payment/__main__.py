"""Wires the payment service. Run it with `python -m services.payment`."""

from __future__ import annotations

from functools import partial

from paymesh.payment.v1 import ledger_pb2_grpc, payment_pb2_grpc
from services.kit.config import cannot_run
from services.kit.events import open_bus, publish
from services.kit.process import Process, run
from services.kit.rpc.client import open_channel
from services.payment.clients import PROCESSORS, CannotRun, FraudClient, open_processors
from services.payment.config import PaymentConfig
from services.payment.runner import Expiry, Resolver, watch_waiting
from services.payment.service import LEDGER_NAME, NAME, LedgerService, PaymentService
from services.payment.trail.months import keep_months
from services.payment.trail.sealer import open_sealer


async def wire(process: Process, config: PaymentConfig) -> None:
    """Two servicers, fraud, the processors, a relay, a resolver, an expiry runner, a keeper of months and a sealer."""
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
    publish(process, "payment", open_bus(process, config.valkey_url), config)
    process.background("resolver", resolver.run)
    process.background("expiry", Expiry(process.database, config).run)
    process.background("waiting", partial(watch_waiting, process.database))
    process.background("months", partial(keep_months, process.database))
    if config.seal_folder:
        process.background("sealer", open_sealer(process.database, config).run)


if __name__ == "__main__":
    run("payment", PaymentConfig, wire)
