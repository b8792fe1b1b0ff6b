"""The RPCs that look at cases, and those by which people resolve them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from paymesh.reconciler.v1 import events_pb2
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from services.kit.checks import Checks, page_size
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Invalid, PaymeshError
from services.kit.idempotency import run_set
from services.kit.outbox import Announcement, announce
from services.kit.rpc.method import SetMethod
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, Outcome
from services.kit.telemetry import traceparent_of
from services.reconciler.domain import cases as domain
from services.reconciler.domain.cases import (
    Approve,
    Assign,
    Case,
    Correction,
    Happened,
    Propose,
    Reject,
    State,
    Wish,
)
from services.reconciler.service.messages import (
    KINDS,
    STATES,
    case_message,
    event_message,
    item_message,
    line_message,
    money_of,
)
from services.reconciler.store import cases as store

REASON_LENGTH_MAX = 1_000
PAGE_TOKEN_LENGTH_MAX = 64
AGE_DAYS_MAX = 36_500

Asked = tuple[str, int, Wish]
"""(merchant, number of the case, what is wished)."""


class CaseMethods:
    """The methods that change cases; none has a batch form, for people look at one case at a time."""

    def __init__(self, database: Database, service_name: str) -> None:
        self._database = database
        self.assign = self._method(f"{service_name}/AssignCase", _assign, pb.AssignCaseResponse)
        self.propose = self._method(
            f"{service_name}/ProposeResolution", _propose, pb.ProposeResolutionResponse
        )
        self.approve = self._method(
            f"{service_name}/ApproveResolution", _approve, pb.ApproveResolutionResponse
        )
        self.reject = self._method(f"{service_name}/RejectResolution", _reject, pb.RejectResolutionResponse)

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        for method in (self.assign, self.propose, self.approve, self.reject):
            await method.drain()

    def _method(self, name: str, parse: Callable[[Any], Asked], response: type[Any]) -> SetMethod[Asked, Any]:
        pack: Pack[Any] = Pack(response)

        async def handle(commands: Sequence[Command[Asked]], deadline: Deadline) -> list[Outcome[Any]]:
            async def work(tx: Transaction, fresh: list[Command[Asked]]) -> list[Outcome[Any]]:
                return await _carry_out(tx, fresh, response)

            return await run_set(self._database, name.rpartition("/")[2], commands, work, pack, deadline)

        return SetMethod(name, parse=parse, handle=handle, batch_response=response)


async def _carry_out(
    tx: Transaction, commands: Sequence[Command[Asked]], response: Any
) -> list[Outcome[Any]]:
    """Lock, decide in order, save, announce."""
    current = await store.lock_cases(tx, [c.request[:2] for c in commands])
    changes: list[tuple[Case, Happened]] = []
    outcomes: list[Outcome[Any]] = []
    announcements = []
    for command in commands:
        merchant_id, case_no, wish = command.request
        case = current.get((merchant_id, case_no))
        if case is None:
            outcomes.append(Failed(domain.no_case(domain.case_id(case_no))))
            continue
        decision = domain.decide(case, wish, now_ms())
        if isinstance(decision, PaymeshError):
            outcomes.append(Failed(decision))
            continue
        after, happened = decision
        current[merchant_id, case_no] = after
        message = case_message(after)
        outcomes.append(Answer(response(case=message)))
        if happened is not None:
            changes.append((after, happened))
            if after.state is State.CLOSED:
                announcements.append(resolved(after, traceparent_of(command.span)))
    store.save_cases(tx, changes)
    announce(tx, announcements)
    return outcomes


def resolved(case: Case, traceparent: str = "") -> Announcement:
    """What is announced when two people have closed a case."""
    event = events_pb2.CaseResolved(case=case_message(case))
    return Announcement(case.merchant_id, case.case_id, event, traceparent)


def announce_resolved(tx: Transaction, case: Case) -> None:
    """Announce that a case was resolved, in the transaction that closes it."""
    announce(tx, [resolved(case)])


async def get_case(database: Database, request: pb.GetCaseRequest) -> pb.GetCaseResponse:
    """A case with everything that belongs to it."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("case_id", request.case_id)
    checks.done()
    case_no = domain.case_no(request.case_id)
    case = await store.find_case(database, request.merchant_id, case_no) if case_no else None
    if case is None:
        raise domain.no_case(request.case_id)
    return pb.GetCaseResponse(
        case=case_message(case),
        lines=[line_message(row) for row in await store.list_lines(database, case)],
        items=[item_message(row) for row in await store.list_items(database, case)],
        events=[event_message(row) for row in await store.list_events(database, case.merchant_id, case_no)],
    )


async def list_cases(database: Database, request: pb.ListCasesRequest) -> pb.ListCasesResponse:
    """A page of cases."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("owner", request.owner, optional=True)
    checks.number("age_days_min", request.age_days_min, at_least=0, at_most=AGE_DAYS_MAX)
    known_states = {value: str(state) for state, value in STATES.items()}
    known_kinds = {value: str(kind) for kind, value in KINDS.items()}
    if any(state not in known_states for state in request.states):
        checks.fail("states", "has one that no case can be in")
    if any(kind not in known_kinds for kind in request.kinds):
        checks.fail("kinds", "has one that no case can be of")
    checks.done()
    size = page_size(request.page_size)
    wanted = store.Wanted(
        states=[known_states[state] for state in request.states]
        or [str(state) for state in State if state is not State.CLOSED],
        kinds=[known_kinds[kind] for kind in request.kinds],
        owner=request.owner,
        since_until=datetime.now(UTC).date() - timedelta(days=request.age_days_min)
        if request.age_days_min
        else date.max,
    )
    page = await store.list_cases(database, request.merchant_id, wanted, _place(request.page_token), size + 1)
    last = page[size - 1] if len(page) > size else None
    return pb.ListCasesResponse(
        cases=[case_message(case) for case in page[:size]],
        next_page_token=f"{last.since}/{last.case_no}" if last is not None else "",
    )


def _place(page_token: str) -> tuple[date, int]:
    """(day, number) behind which a page begins. Raises Invalid."""
    if not page_token:
        return date.min, 0
    day, _, number = page_token.partition("/")
    try:
        if len(page_token) > PAGE_TOKEN_LENGTH_MAX or not (number.isascii() and number.isdigit()):
            raise ValueError(page_token)
        return date.fromisoformat(day), int(number)
    except ValueError:
        raise Invalid.field("page_token", "is not a token of this method") from None


def _asked(request: Any, checks: Checks) -> tuple[str, int]:
    checks.text("merchant_id", request.merchant_id)
    checks.text("case_id", request.case_id)
    checks.text("actor", request.actor)
    if request.actor and not request.actor.strip():
        checks.fail("actor", "is required: a name")
    return request.merchant_id, domain.case_no(request.case_id)


def _assign(request: pb.AssignCaseRequest) -> Asked:
    checks = Checks()
    merchant_id, number = _asked(request, checks)
    checks.text("owner", request.owner, optional=True)
    checks.done()
    return merchant_id, number, Assign(request.owner, request.actor.strip())


def _propose(request: pb.ProposeResolutionRequest) -> Asked:
    checks = Checks()
    merchant_id, number = _asked(request, checks)
    checks.text("reason", request.reason, max_length=REASON_LENGTH_MAX)
    correction = None
    if request.HasField("correction"):
        wished = request.correction
        checks.text("correction.debit_account", wished.debit_account)
        checks.text("correction.credit_account", wished.credit_account)
        checks.money("correction.amount", wished.amount.amount_minor, wished.amount.currency)
        correction = Correction(wished.debit_account, wished.credit_account, money_of(wished.amount))
    checks.done()
    return merchant_id, number, Propose(request.reason, request.actor.strip(), correction)


def _approve(request: pb.ApproveResolutionRequest) -> Asked:
    checks = Checks()
    merchant_id, number = _asked(request, checks)
    checks.done()
    return merchant_id, number, Approve(request.proposal, request.actor.strip())


def _reject(request: pb.RejectResolutionRequest) -> Asked:
    checks = Checks()
    merchant_id, number = _asked(request, checks)
    checks.text("reason", request.reason, max_length=REASON_LENGTH_MAX)
    checks.done()
    return merchant_id, number, Reject(request.proposal, request.reason, request.actor.strip())
