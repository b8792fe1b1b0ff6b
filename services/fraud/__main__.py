"""Runs the fraud service: `python -m services.fraud`."""

from __future__ import annotations

from paymesh.fraud.v1 import fraud_pb2_grpc
from services.fraud.config import FraudConfig
from services.fraud.domain import Lists
from services.fraud.rule_file import read_rules
from services.fraud.runner import ListReader
from services.fraud.service import NAME, FraudService
from services.fraud.windows import Windows
from services.kit.breaker import Breaker
from services.kit.process import Process, run


async def wire(process: Process, config: FraudConfig) -> None:
    """Put the parts together."""
    rules = read_rules(config.rules_file, config.window_members_max)
    windows = Windows(
        config.valkey_url,
        rules,
        members_max=config.window_members_max,
        timeout_ms=config.valkey_timeout_ms,
        breaker=Breaker(failures_max=config.valkey_failures_max, probe_seconds=config.valkey_probe_seconds),
    )
    process.closing(windows.close)
    lists = Lists()
    reader = ListReader(process.database, lists, config.lists_refresh_seconds)
    await reader.refresh()
    process.background("lists", reader.run)
    service = FraudService(process.database, windows, rules, lists, reader)
    process.serve(fraud_pb2_grpc.add_FraudServiceServicer_to_server, service, NAME)


if __name__ == "__main__":
    run("fraud", FraudConfig, wire)
