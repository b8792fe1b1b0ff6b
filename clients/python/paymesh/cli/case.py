"""`paymesh case`: differences between the bank and our books, and how people resolve them."""

import json
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from paymesh.channel import with_key
from paymesh.cli.calls import check_key, connected, run, until_settled
from paymesh.cli.money import money_of
from paymesh.cli.options import (
    LIMIT,
    MERCHANT,
    PATIENCE,
    RECONCILER_TARGET,
    Actor,
    Json,
    Key,
    Limit,
    Merchant,
    Reason,
    ReconcilerTarget,
    acting,
)
from paymesh.cli.program import UserError
from paymesh.cli.reconcile import difference_table
from paymesh.cli.story import console, print_json, show_amount, show_time
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from paymesh.reconciler.v1 import reconciler_pb2_grpc
from paymesh.reconciliation.words import KIND_SENTENCES, KIND_WORDS, STATE_WORDS, row_of

PAGE_SIZE_MAX = 1_000

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

CaseId = Annotated[str, typer.Argument(metavar="CASE", help="Identifier, case_…")]
Proposal = Annotated[
    int,
    typer.Option(
        "--proposal", min=0, help="Number of the proposal you looked at; the one that stands by default."
    ),
]


@commands.callback()
def case() -> None:
    """Look at differences with the bank, and resolve them.

    A case is resolved by two people: one proposes how, another one approves. `reconcile` finds the cases, and closes
    those by itself whose missing half has arrived.
    """


@commands.command("list", epilog="Example: `paymesh case list --kind amount --min-age 7`")
def list_cases(
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state", help="Only these: open, proposed, resolving, closed. Repeatable; all but closed."
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            help="Only these: missing-in-bank, missing-in-ledger, amount, currency, duplicate, late. Repeatable.",
        ),
    ] = None,
    owner: Annotated[str, typer.Option("--owner", help="Only those of this person.")] = "",
    min_age: Annotated[int, typer.Option("--min-age", min=0, metavar="DAYS", help="Only older ones.")] = 0,
    limit: Limit = LIMIT,
    merchant: Merchant = MERCHANT,
    target: ReconcilerTarget = RECONCILER_TARGET,
    as_json: Json = False,
) -> None:
    """List a merchant's cases, the oldest difference first."""
    request = pb.ListCasesRequest(
        merchant_id=merchant,
        states=[_named("--state", name, STATE_WORDS) for name in state or ()],
        kinds=[_named("--kind", name, KIND_WORDS) for name in kind or ()],
        owner=owner,
        age_days_min=min_age,
    )
    cases = run(_list(target, request, limit), as_json)
    if as_json:
        print_json(pb.ListCasesResponse(cases=cases))
    elif cases:
        console().print(difference_table(cases))
    else:
        console().print(f"no such cases of merchant {merchant}")


@commands.command("show", epilog="Example: `paymesh case show case_17`")
def show_case(
    case_id: CaseId,
    merchant: Merchant = MERCHANT,
    target: ReconcilerTarget = RECONCILER_TARGET,
    as_json: Json = False,
) -> None:
    """Show a case with its lines, its items and what became of it."""
    response = run(_get(target, merchant, case_id), as_json)
    if as_json:
        print_json(response)
    else:
        console().print(case_tree(response))


@commands.command("assign", epilog="Example: `paymesh case assign case_17 ann`; nobody with an empty name")
def assign_case(
    case_id: CaseId,
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="Who looks after it from now on.")],
    actor: Actor = "",
    key: Key = None,
    merchant: Merchant = MERCHANT,
    target: ReconcilerTarget = RECONCILER_TARGET,
    as_json: Json = False,
) -> None:
    """Give a case to a person."""
    request = pb.AssignCaseRequest(merchant_id=merchant, case_id=case_id, owner=owner, actor=acting(actor))
    _change("AssignCase", request, key, target, as_json)


@commands.command(
    "propose",
    epilog="Example: `paymesh case propose case_17 --reason 'bank fee' --debit processor_fees --credit cash"
    " --amount 0.30 --currency GBP`; without --amount nothing is booked",
)
def propose_resolution(
    case_id: CaseId,
    reason: Reason,
    debit: Annotated[str, typer.Option("--debit", help="Account that is debited.")] = "",
    credit: Annotated[str, typer.Option("--credit", help="Account that is credited.")] = "",
    amount: Annotated[str, typer.Option("--amount", help="How much, in decimals.")] = "",
    currency: Annotated[str, typer.Option("--currency", help="ISO 4217 code.")] = "",
    actor: Actor = "",
    key: Key = None,
    merchant: Merchant = MERCHANT,
    target: ReconcilerTarget = RECONCILER_TARGET,
    as_json: Json = False,
) -> None:
    """Propose how a case is to be resolved. Another person has to approve it.

    Without --debit, --credit, --amount and --currency the difference is explained and nothing is booked. With them
    payment posts a journal of two entries when it is approved, on suspense, processor_receivable, processor_fees, cash
    or payouts.
    """
    given = [bool(value) for value in (debit, credit, amount, currency)]
    if any(given) and not all(given):
        raise UserError(
            "a correction needs --debit, --credit, --amount and --currency; an explanation none of them"
        )
    request = pb.ProposeResolutionRequest(
        merchant_id=merchant, case_id=case_id, reason=reason, actor=acting(actor)
    )
    if all(given):
        request.correction.debit_account = debit
        request.correction.credit_account = credit
        request.correction.amount.CopyFrom(money_of(amount, currency))
    _change("ProposeResolution", request, key, target, as_json)


@commands.command("approve", epilog="Example: `paymesh case approve case_17 --as bob`")
def approve_resolution(
    case_id: CaseId,
    proposal: Proposal = 0,
    actor: Actor = "",
    key: Key = None,
    merchant: Merchant = MERCHANT,
    target: ReconcilerTarget = RECONCILER_TARGET,
    as_json: Json = False,
) -> None:
    """Approve what another person has proposed."""
    number = proposal or run(_proposal(target, merchant, case_id), as_json)
    request = pb.ApproveResolutionRequest(
        merchant_id=merchant, case_id=case_id, proposal=number, actor=acting(actor)
    )
    _change("ApproveResolution", request, key, target, as_json)


@commands.command("reject", epilog="Example: `paymesh case reject case_17 --reason 'wrong account'`")
def reject_resolution(
    case_id: CaseId,
    reason: Reason,
    proposal: Proposal = 0,
    actor: Actor = "",
    key: Key = None,
    merchant: Merchant = MERCHANT,
    target: ReconcilerTarget = RECONCILER_TARGET,
    as_json: Json = False,
) -> None:
    """Turn a proposal down, or take your own back."""
    number = proposal or run(_proposal(target, merchant, case_id), as_json)
    request = pb.RejectResolutionRequest(
        merchant_id=merchant, case_id=case_id, proposal=number, reason=reason, actor=acting(actor)
    )
    _change("RejectResolution", request, key, target, as_json)


def _named(option: str, name: str, words: dict[int, str]) -> Any:
    for value, word in words.items():
        if word.replace(" ", "-") == name.strip().lower().replace("_", "-").replace(" ", "-"):
            return value
    known = ", ".join(word.replace(" ", "-") for word in words.values())
    raise UserError(f"{option} {name}: expected one of {known}")


async def _list(target: str, request: pb.ListCasesRequest, limit: int) -> list[pb.Case]:
    found: list[pb.Case] = []
    async with connected(target) as channel:
        stub = reconciler_pb2_grpc.ReconcilerServiceStub(channel)
        while len(found) < limit:
            request.page_size = min(limit - len(found), PAGE_SIZE_MAX)
            response = await stub.ListCases(request)
            found.extend(response.cases)
            request.page_token = response.next_page_token
            if not request.page_token:
                break
    return found


async def _get(target: str, merchant: str, case_id: str) -> pb.GetCaseResponse:
    async with connected(target) as channel:
        stub = reconciler_pb2_grpc.ReconcilerServiceStub(channel)
        return await stub.GetCase(pb.GetCaseRequest(merchant_id=merchant, case_id=case_id))


async def _proposal(target: str, merchant: str, case_id: str) -> int:
    return (await _get(target, merchant, case_id)).case.resolution.proposal


def _change(method: str, request: Any, key: str | None, target: str, as_json: bool) -> None:
    """Change a case with a key until the answer is final, and show it."""
    metadata = with_key(check_key(key))

    async def work() -> pb.Case:
        async with connected(target) as channel:
            call = getattr(reconciler_pb2_grpc.ReconcilerServiceStub(channel), method)
            answer = await until_settled(lambda: call(request, metadata=metadata), PATIENCE)
            changed: pb.Case = answer.case
            return changed

    changed = run(work(), as_json)
    if as_json:
        print_json(changed)
    else:
        console().print(case_tree(pb.GetCaseResponse(case=changed)))


def case_tree(response: pb.GetCaseResponse) -> Tree:
    """A case and all that belongs to it."""
    shown = response.case
    row = row_of(shown)
    heading = Text(f"{row.case_id} ").append(row.kind, style="bold").append(f"  {row.state}")
    tree = Tree(heading)
    tree.add(Text(KIND_SENTENCES.get(shown.kind, ""), style="dim"))
    for name, value in (
        ("reference", row.reference),
        ("at bank", row.at_bank),
        ("in ledger", row.in_ledger),
        ("since", f"{row.since} ({row.age_days} days)"),
        ("owner", row.owner),
    ):
        if value:
            tree.add(Text(f"{name:<10}{value}"))
    if shown.HasField("resolution"):
        tree.add(_resolution(shown.resolution))
    _members(tree, response)
    if response.events:
        branch = tree.add(Text("what happened", style="bold"))
        for event in response.events:
            text = Text(f"{show_time(event.recorded_at)}  {event.type} by {event.actor}")
            branch.add(text.append(f"  {_facts(event.data_json)}", style="dim"))
    return tree


def _resolution(resolution: pb.Resolution) -> Text:
    text = Text(f"proposal {resolution.proposal} of {resolution.proposed_by}: {resolution.reason}")
    if resolution.HasField("correction"):
        c = resolution.correction
        text.append(f"  (debit {c.debit_account}, credit {c.credit_account}, {show_amount(c.amount)})")
    if resolution.approved_by:
        text.append(f"  approved by {resolution.approved_by}")
    if resolution.journal_id:
        text.append(f"  posted as {resolution.journal_id}")
    return text


def _members(tree: Tree, response: pb.GetCaseResponse) -> None:
    if response.lines:
        branch = tree.add(Text("on statements", style="bold"))
        for line in response.lines:
            where = f"{line.account} {line.statement_id} line {line.number}"
            text = Text(f"{line.booking_date}  {show_amount(line.amount)}  {line.reference}  {line.text}")
            branch.add(text.append(f"  ({where})", style="dim"))
    if response.items:
        branch = tree.add(Text("in our books", style="bold"))
        for item in response.items:
            text = Text(f"{item.value_on}  {show_amount(item.amount)}  {item.kind.lower()}  {item.item_id}")
            branch.add(text.append(f"  ({item.bank_reference} {item.batch_reference})", style="dim"))


def _facts(data_json: str) -> str:
    facts = json.loads(data_json)
    return "  ".join(f"{name}={value}" for name, value in facts.items())
