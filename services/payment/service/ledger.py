"""The RPCs that read the ledger, the one that says what a merchant is charged, and the one that corrects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import ledger_pb2 as pb
from paymesh.payment.v1 import ledger_pb2_grpc
from services.kit.checks import Checks, page_size
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Invalid
from services.kit.idempotency import run_set
from services.kit.money import AMOUNT_MINOR_MAX, is_currency
from services.kit.rpc.method import SetMethod
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Outcome
from services.payment import store
from services.payment.domain import BASIS_POINTS_MAX, NO_FEE, FeePlan
from services.payment.ledger import ACCOUNTS
from services.payment.service.corrections import correction_method

LEDGER_NAME = "paymesh.payment.v1.LedgerService"
_SET_PLAN = "SetFeePlan"
PAGE_TOKEN_LENGTH_MAX = 128

SetPlan = tuple[str, str, FeePlan]
"""(merchant, currency, plan)."""


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """See the contract, paymesh/payment/v1/ledger.proto."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pack = Pack(pb.SetFeePlanResponse)
        # No batch form on the wire: its sets are gathered from single calls.
        self._set_plan: SetMethod[SetPlan, pb.SetFeePlanResponse] = SetMethod(
            f"{LEDGER_NAME}/{_SET_PLAN}",
            parse=_plan_wish,
            handle=self._set_plans,
            batch_response=pb.SetFeePlanResponse,
        )
        self._correct = correction_method(database, LEDGER_NAME)

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        await self._set_plan.drain()
        await self._correct.drain()

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.GetAccountResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        _check_account(checks, request.account)
        _check_currency(checks, request.currency)
        checks.done()
        row = await store.find_account(self._database, request.merchant_id, request.account, request.currency)
        return pb.GetAccountResponse(account=_account(request.merchant_id, row))

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Any) -> pb.ListEntriesResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        if request.account:
            _check_account(checks, request.account)
        checks.text("payment_id", request.payment_id, optional=True)
        checks.done()
        size = page_size(request.page_size)
        page = await store.list_entries(
            self._database,
            request.merchant_id,
            request.account,
            request.payment_id,
            _place(request.page_token),
            size + 1,
        )
        last = page[size - 1].entry if len(page) > size else None
        return pb.ListEntriesResponse(
            entries=[_entry(row) for row in page[:size]],
            next_page_token=f"{last.journal_id}/{last.line}" if last else "",
        )

    async def GetTrialBalance(
        self, request: pb.GetTrialBalanceRequest, context: Any
    ) -> pb.GetTrialBalanceResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.done()
        rows = await store.list_accounts(self._database, request.merchant_id)
        sums: dict[str, int] = {}
        for row in rows:
            sums[row.currency] = sums.get(row.currency, 0) + row.balance_minor
        return pb.GetTrialBalanceResponse(
            accounts=[_account(request.merchant_id, row) for row in rows],
            sums=[_money(amount_minor, currency) for currency, amount_minor in sums.items()],
        )

    async def SetFeePlan(self, request: pb.SetFeePlanRequest, context: Any) -> pb.SetFeePlanResponse:
        return await self._set_plan.single(request, context)

    async def PostCorrection(
        self, request: pb.PostCorrectionRequest, context: Any
    ) -> pb.PostCorrectionResponse:
        return await self._correct.single(request, context)

    async def GetFeePlan(self, request: pb.GetFeePlanRequest, context: Any) -> pb.GetFeePlanResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        _check_currency(checks, request.currency)
        checks.done()
        plan = await store.find_fee_plan(self._database, request.merchant_id, request.currency)
        return pb.GetFeePlanResponse(plan=_plan(plan or NO_FEE))

    async def _set_plans(
        self, commands: Sequence[Command[SetPlan]], deadline: Deadline
    ) -> list[Outcome[pb.SetFeePlanResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[SetPlan]]
        ) -> list[Outcome[pb.SetFeePlanResponse]]:
            # In the order of the set: of two plans for one merchant and currency the last one stands.
            plans = {(merchant, currency): plan for merchant, currency, plan in (c.request for c in fresh)}
            store.save_fee_plans(tx, plans)
            return [Answer(pb.SetFeePlanResponse(plan=_plan(c.request[2]))) for c in fresh]

        return await run_set(self._database, _SET_PLAN, commands, work, self._pack, deadline)


def _plan_wish(request: pb.SetFeePlanRequest) -> SetPlan:
    """The command in a request. Raises Invalid."""
    plan = request.plan
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    _check_currency(checks, request.currency)
    checks.number("plan.basis_points", plan.basis_points, at_least=0, at_most=BASIS_POINTS_MAX)
    checks.number("plan.fixed_minor", plan.fixed_minor, at_least=0, at_most=AMOUNT_MINOR_MAX)
    checks.done()
    return request.merchant_id, request.currency, FeePlan(plan.basis_points, plan.fixed_minor)


def _check_account(checks: Checks, account: str) -> None:
    if account not in ACCOUNTS:
        checks.fail("account", f"{account[:20]!r} is none of {', '.join(ACCOUNTS)}")


def _check_currency(checks: Checks, currency: str) -> None:
    if not is_currency(currency):
        checks.fail("currency", f"{currency[:20]!r} is not an ISO 4217 currency code such as 'USD'")


def _place(page_token: str) -> tuple[str, int]:
    """(journal, line) behind which a page begins. Raises Invalid."""
    if not page_token:
        return "", 0
    journal_id, _, line = page_token.rpartition("/")
    if (
        not journal_id
        or len(page_token) > PAGE_TOKEN_LENGTH_MAX
        or "\x00" in page_token
        or not (line.isascii() and line.isdigit() and len(line) <= 4)
    ):
        raise Invalid.field("page_token", "is not a token of this method")
    return journal_id, int(line)


def _account(merchant_id: str, row: store.AccountRow) -> pb.Account:
    return pb.Account(
        merchant_id=merchant_id,
        account=row.account,
        balance=_money(row.balance_minor, row.currency),
        debits=_money(row.debits_minor, row.currency),
        credits=_money(row.debits_minor - row.balance_minor, row.currency),
        entries=row.entries,
    )


def _entry(row: store.EntryRow) -> pb.Entry:
    entry = row.entry
    message = pb.Entry(
        journal_id=entry.journal_id,
        line=entry.line,
        account=entry.account,
        amount=_money(entry.amount.amount_minor, entry.amount.currency),
    )
    message.posted_at.FromMilliseconds(row.posted_at_ms)
    return message


def _plan(plan: FeePlan) -> pb.FeePlan:
    return pb.FeePlan(basis_points=plan.basis_points, fixed_minor=plan.fixed_minor)


def _money(amount_minor: int, currency: str) -> money_pb2.Money:
    return money_pb2.Money(amount_minor=amount_minor, currency=currency)
