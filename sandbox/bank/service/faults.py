"""The RPCs that arm, list and disarm faults."""

from __future__ import annotations

from paymesh.bank.v1 import bank_pb2 as pb
from paymesh.bank.v1 import bank_pb2_grpc
from sandbox.bank.faults import CERTAIN_PPM, FAULTS_MAX, UNLIMITED, Fault, FaultKind, Faults, Target
from sandbox.bank.mishaps import Context
from services.kit.checks import Checks
from services.kit.errors import Refused
from services.kit.ids import new_id

FAULTS_NAME = "paymesh.bank.v1.FaultService"
DELAY_MS_MAX = 600_000

_KINDS = {
    pb.FAULT_KIND_ANSWER_LOST_AFTER: FaultKind.ANSWER_LOST_AFTER,
    pb.FAULT_KIND_ANSWER_LOST_BEFORE: FaultKind.ANSWER_LOST_BEFORE,
    pb.FAULT_KIND_DELAY: FaultKind.DELAY,
    pb.FAULT_KIND_REFUSE_CONNECTION: FaultKind.REFUSE_CONNECTION,
    pb.FAULT_KIND_ERROR: FaultKind.ERROR,
    pb.FAULT_KIND_REFUSE: FaultKind.REFUSE,
}
_TARGETS = {
    pb.FAULT_TARGET_UNSPECIFIED: None,
    pb.FAULT_TARGET_AUTHORIZE: Target.AUTHORIZE,
    pb.FAULT_TARGET_VOID: Target.VOID,
    pb.FAULT_TARGET_LOOKUP: Target.LOOKUP,
    pb.FAULT_TARGET_CANCEL: Target.CANCEL,
    pb.FAULT_TARGET_CAPTURE: Target.CAPTURE,
    pb.FAULT_TARGET_REFUND: Target.REFUND,
    pb.FAULT_TARGET_INCREMENT: Target.INCREMENT,
    pb.FAULT_TARGET_SETTLE: Target.SETTLE,
    pb.FAULT_TARGET_PAYOUT: Target.PAYOUT,
}
_KIND_VALUES = {kind: value for value, kind in _KINDS.items()}
_TARGET_VALUES = {target: value for value, target in _TARGETS.items()}


class FaultService(bank_pb2_grpc.FaultServiceServicer):
    """See the contract, paymesh/bank/v1/bank.proto."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    async def drain(self) -> None:
        """Nothing is gathered here: every call ends by itself."""

    async def InjectFault(self, request: pb.InjectFaultRequest, context: Context) -> pb.InjectFaultResponse:
        fault = _fault(request.fault)
        if not self._faults.arm(fault):
            raise Refused("TOO_MANY_FAULTS", f"{FAULTS_MAX:,} faults are armed; clear them first")
        return pb.InjectFaultResponse(fault=_message(fault))

    async def ListFaults(self, request: pb.ListFaultsRequest, context: Context) -> pb.ListFaultsResponse:
        return pb.ListFaultsResponse(faults=[_message(fault) for fault in self._faults.list_faults()])

    async def ClearFaults(self, request: pb.ClearFaultsRequest, context: Context) -> pb.ClearFaultsResponse:
        self._faults.clear()
        return pb.ClearFaultsResponse()


def _fault(message: pb.Fault) -> Fault:
    checks = Checks()
    if message.kind not in _KINDS:
        checks.fail("fault.kind", f"{message.kind} is not a FaultKind that can be armed")
    if message.target not in _TARGETS:
        checks.fail("fault.target", f"{message.target} is not a FaultTarget")
    checks.number("fault.probability_ppm", message.probability_ppm, at_least=1, at_most=CERTAIN_PPM)
    checks.number("fault.strikes_left", message.strikes_left, at_least=0, at_most=UNLIMITED)
    delays = message.kind == pb.FAULT_KIND_DELAY
    if delays:
        checks.number("fault.delay_ms", message.delay_ms, at_least=1, at_most=DELAY_MS_MAX)
    elif message.delay_ms:
        checks.fail("fault.delay_ms", "is for FAULT_KIND_DELAY only")
    if message.kind == pb.FAULT_KIND_REFUSE and message.target != pb.FAULT_TARGET_PAYOUT:
        checks.fail("fault.target", "must be FAULT_TARGET_PAYOUT for FAULT_KIND_REFUSE")
    checks.text("fault.merchant_id", message.merchant_id, optional=True)
    checks.done()
    return Fault(
        fault_id=new_id("flt"),
        kind=_KINDS[message.kind],
        target=_TARGETS[message.target],
        probability_ppm=message.probability_ppm,
        strikes_left=message.strikes_left or UNLIMITED,
        delay_ms=message.delay_ms,
        merchant_id=message.merchant_id,
    )


def _message(fault: Fault) -> pb.Fault:
    return pb.Fault(
        fault_id=fault.fault_id,
        kind=_KIND_VALUES[fault.kind],
        target=_TARGET_VALUES[fault.target],
        probability_ppm=fault.probability_ppm,
        strikes_left=fault.strikes_left,
        delay_ms=fault.delay_ms,
        merchant_id=fault.merchant_id,
        strikes=fault.strikes,
    )
