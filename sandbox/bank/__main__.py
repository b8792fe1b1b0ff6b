"""Wires the sandbox bank. Run it with `python -m sandbox.bank`."""

from __future__ import annotations

import random

from paymesh.bank.v1 import bank_pb2_grpc, settlement_pb2_grpc, statement_pb2_grpc
from sandbox.bank.config import BankConfig
from sandbox.bank.domain import Fees
from sandbox.bank.faults import Faults
from sandbox.bank.mishaps import Mishaps
from sandbox.bank.runner import Latecomers
from sandbox.bank.service.bank import NAME, BankService
from sandbox.bank.service.faults import FAULTS_NAME, FaultService
from sandbox.bank.service.settlements import SETTLEMENT_NAME, SettlementService
from sandbox.bank.service.statements import STATEMENT_NAME, StatementService
from services.kit.process import Process, run


async def wire(process: Process, config: BankConfig) -> None:
    """Servicers over the same faults and books; slow operations go on in the background until the process ends."""
    faults = Faults(random.random)
    latecomers = Latecomers(config.soft_deadline_ms)
    mishaps = Mishaps(process.database, faults, latecomers, config.latency_ms)
    bank = BankService(
        process.database, mishaps, token_secret=config.token_secret.get_secret_value().encode()
    )
    fees = Fees(config.fee_basis_points, config.fee_fixed_minor)
    settlements = SettlementService(process.database, mishaps, fees)
    process.serve(bank_pb2_grpc.add_BankServiceServicer_to_server, bank, NAME)
    process.serve(settlement_pb2_grpc.add_SettlementServiceServicer_to_server, settlements, SETTLEMENT_NAME)
    statements = StatementService(process.database)
    process.serve(statement_pb2_grpc.add_StatementServiceServicer_to_server, statements, STATEMENT_NAME)
    process.serve(bank_pb2_grpc.add_FaultServiceServicer_to_server, FaultService(faults), FAULTS_NAME)
    process.closing(latecomers.close)


if __name__ == "__main__":
    run("bank", BankConfig, wire, package="sandbox.bank")
