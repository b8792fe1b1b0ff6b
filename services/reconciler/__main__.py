"""Wires the reconciler. Run it with `python -m services.reconciler`."""

from __future__ import annotations

from functools import partial

from paymesh.reconciler.v1 import reconciler_pb2_grpc
from services.kit.config import cannot_run
from services.kit.events import open_bus, publish
from services.kit.process import Process, run
from services.kit.rpc.client import open_channel
from services.reconciler.clients import PaymentClient
from services.reconciler.config import ReconcilerConfig
from services.reconciler.copying import ItemCopy
from services.reconciler.map_files import read_maps
from services.reconciler.rule_file import RuleFileMistakes, read_rules
from services.reconciler.runner import Night, Poster, watch
from services.reconciler.runs import Runs
from services.reconciler.service import NAME, ReconcilerService
from services.reconciler.service.cases import announce_resolved
from services.reconciler.service.runs import keep_run
from services.reconciler.statements.columns import BadMap
from services.reconciler.statements.formats import read_statement


async def wire(process: Process, config: ReconcilerConfig) -> None:
    """One servicer, one callee, the night's run, a poster of corrections, a relay for what is announced."""
    try:
        rules = read_rules(config.rules_file)
        maps = read_maps(config.maps_folder)
    except (RuleFileMistakes, BadMap) as mistakes:
        cannot_run("reconciler", str(mistakes))
    channel = open_channel(config.payment_target, caller="reconciler")
    process.closing(channel.close)
    payment = PaymentClient(channel, config.payment_seconds)
    copy = ItemCopy(process.database, payment, config.reach_back_days)
    runs = Runs(config.database_dsn, copy, rules, partial(read_statement, maps=maps), keep_run)
    service = ReconcilerService(process.database, runs, config)
    process.serve(reconciler_pb2_grpc.add_ReconcilerServiceServicer_to_server, service, NAME)
    poster = Poster(process.database, payment.post_correction, announce_resolved, config)
    process.background("poster", poster.run)
    process.background("watch", partial(watch, process.database))
    publish(process, "reconciler", open_bus(process, config.valkey_url), config)
    if config.nightly_folder:
        process.background("night", Night(runs, config).run)


if __name__ == "__main__":
    run("reconciler", ReconcilerConfig, wire)
