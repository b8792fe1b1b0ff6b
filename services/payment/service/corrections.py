"""The RPC that posts what two people have agreed on."""

from __future__ import annotations

from collections.abc import Sequence

from paymesh.payment.v1 import ledger_pb2 as pb
from services.kit.checks import Checks
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.idempotency import run_set
from services.kit.money import Money
from services.kit.rpc.method import SetMethod
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, Outcome
from services.payment.domain.correction import CORRECTABLE, Correction, post
from services.payment.ledger import ACCOUNTS, Entry
from services.payment.store.corrections import insert_corrections
from services.payment.store.journals import insert_entries

_METHOD = "PostCorrection"
REASON_LENGTH_MAX = 1_000


def correction_method(
    database: Database, service_name: str
) -> SetMethod[Correction, pb.PostCorrectionResponse]:
    """PostCorrection. It has no batch form on the wire: people agree on one at a time."""
    pack = Pack(pb.PostCorrectionResponse)

    async def handle(
        commands: Sequence[Command[Correction]], deadline: Deadline
    ) -> list[Outcome[pb.PostCorrectionResponse]]:
        return await run_set(database, _METHOD, commands, _work, pack, deadline)

    return SetMethod(
        f"{service_name}/{_METHOD}",
        parse=_wish,
        handle=handle,
        batch_response=pb.PostCorrectionResponse,
        id_prefix="cor",
    )


async def _work(
    tx: Transaction, fresh: list[Command[Correction]]
) -> list[Outcome[pb.PostCorrectionResponse]]:
    refusals = [post(command.request) for command in fresh]
    granted = {
        c.resource_id: c.request for c, refusal in zip(fresh, refusals, strict=True) if refusal is None
    }
    insert_corrections(tx, granted)
    insert_entries(tx, [entry for journal_id, c in granted.items() for entry in _journal(journal_id, c)])
    return [
        Answer(pb.PostCorrectionResponse(journal_id=command.resource_id))
        if refusal is None
        else Failed(refusal)
        for command, refusal in zip(fresh, refusals, strict=True)
    ]


def _journal(journal_id: str, correction: Correction) -> list[Entry]:
    amount = correction.amount
    return [
        Entry(correction.merchant_id, journal_id, 1, correction.debit_account, amount),
        Entry(correction.merchant_id, journal_id, 2, correction.credit_account, -amount),
    ]


def _wish(request: pb.PostCorrectionRequest) -> Correction:
    """The command in a request. Raises Invalid."""
    allowed = [account for account in CORRECTABLE if account in ACCOUNTS]
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    for field, account in (
        ("debit_account", request.debit_account),
        ("credit_account", request.credit_account),
    ):
        if account not in allowed:
            checks.fail(field, f"{account[:20]!r} is none of {', '.join(allowed)}")
    if request.debit_account == request.credit_account:
        checks.fail("credit_account", "must be another one than the debit account")
    checks.money("amount", request.amount.amount_minor, request.amount.currency)
    checks.text("reference", request.reference)
    checks.text("reason", request.reason, max_length=REASON_LENGTH_MAX)
    checks.text("proposed_by", request.proposed_by)
    checks.text("approved_by", request.approved_by)
    checks.done()
    return Correction(
        request.merchant_id,
        request.debit_account,
        request.credit_account,
        Money(request.amount.amount_minor, request.amount.currency),
        request.reference,
        request.reason,
        request.proposed_by,
        request.approved_by,
    )
