"""`paymesh saga`: what the orchestrator is doing and has done."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from paymesh.channel import with_key
from paymesh.cli.calls import check_key, connected, run, until_settled
from paymesh.cli.options import (
    LIMIT,
    MERCHANT,
    PATIENCE,
    TARGET,
    Actor,
    Json,
    Key,
    Limit,
    Merchant,
    Reason,
    Target,
    acting,
)
from paymesh.cli.program import EXIT_NO, UserError
from paymesh.cli.story import console, print_json, saga_table, saga_tree
from paymesh.errors import failure_error
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1 import orchestrator_pb2_grpc

PAGE_SIZE_MAX = 1_000
POLL_SECONDS = 0.2

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@commands.command(
    "list", epilog="Example: `paymesh saga list --state parked --state compensating --limit 20`"
)
def list_sagas(
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state", help="Only these: running, completed, compensating, compensated, parked. Repeatable."
        ),
    ] = None,
    limit: Limit = LIMIT,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """List a merchant's sagas, newest first."""
    states = [_state(name) for name in state or ()]
    sagas = run(_list(target, merchant, states, limit), as_json)
    if as_json:
        print_json(pb.ListSagasResponse(sagas=sagas))
    elif sagas:
        console().print(saga_table(sagas))
    else:
        console().print(f"no sagas of merchant {merchant}")


@commands.command("show", epilog="Example: `paymesh saga show saga_01jd…`")
def show_saga(
    saga_id: Annotated[str, typer.Argument(metavar="SAGA", help="Identifier, saga_…")],
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Tell the story of one saga: steps, undos, attempts, times and reasons."""

    async def work() -> pb.GetSagaResponse:
        async with connected(target) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            return await stub.GetSaga(pb.GetSagaRequest(merchant_id=merchant, saga_id=saga_id))

    response = run(work(), as_json)
    if as_json:
        print_json(response)
    else:
        console().print(saga_tree(response.saga))


@commands.command(
    "retry",
    epilog="Example: `paymesh saga retry saga_01jd… --reason 'the bank is back' --as ann`",
)
def retry_sagas(
    saga_ids: Annotated[list[str], typer.Argument(metavar="SAGA...", help="Identifiers, saga_…")],
    reason: Reason,
    actor: Actor = "",
    key: Key = None,
    patience: Annotated[
        float,
        typer.Option(
            "--patience", min=0.0, metavar="SECONDS", help="How long to wait for the end; 0 not to wait."
        ),
    ] = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Have PARKED sagas tried again, once the cause is gone.

    What was refused, or ran out of attempts, is asked for anew; what was done is not done again. The exit code is 1
    when one of them could not be retried, is PARKED once more, or has not ended in time."""
    request = [
        pb.RetrySagaRequest(merchant_id=merchant, saga_id=one, actor=acting(actor), reason=reason)
        for one in dict.fromkeys(saga_ids)
    ]
    sagas, failures = run(_retry(target, request, check_key(key), patience), as_json)
    if as_json:
        print_json(pb.ListSagasResponse(sagas=sagas))
    else:
        for saga in sagas:
            console().print(saga_tree(saga))
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    ended = (pb.SAGA_STATE_COMPLETED, pb.SAGA_STATE_COMPENSATED)
    if failures or (patience and any(saga.state not in ended for saga in sagas)):
        raise typer.Exit(EXIT_NO)


@commands.command(
    "close",
    epilog="Examples: `paymesh saga close saga_01jd… --reason 'refunded by hand, see ticket 17' --as ann`, then"
    " `paymesh saga close saga_01jd… --approve --reason 'checked' --as bob`",
)
def close_saga(
    saga_id: Annotated[str, typer.Argument(metavar="SAGA", help="Identifier, saga_…")],
    reason: Reason,
    approve: Annotated[
        bool, typer.Option("--approve", help="Approve what another person has proposed.")
    ] = False,
    proposal: Annotated[
        int,
        typer.Option(
            "--proposal", min=0, help="Number of the proposal you looked at; the one that stands by default."
        ),
    ] = 0,
    actor: Actor = "",
    key: Key = None,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Say that a PARKED saga was settled by hand. Nothing is moved, and it stays PARKED: it waits for nobody any more.

    Where money is concerned this proposes it, and another person has to approve it with --approve."""
    who = acting(actor)

    async def work() -> pb.CloseSagaResponse:
        async with connected(target) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            number = proposal
            if approve and not number:
                found = await stub.GetSaga(pb.GetSagaRequest(merchant_id=merchant, saga_id=saga_id))
                number = max(1, len(found.saga.interventions))
            request = pb.CloseSagaRequest(
                merchant_id=merchant, saga_id=saga_id, actor=who, reason=reason, proposal=number
            )
            metadata = with_key(check_key(key))
            return await until_settled(lambda: stub.CloseSaga(request, metadata=metadata), PATIENCE)

    if proposal and not approve:
        raise UserError("--proposal goes with --approve")
    response = run(work(), as_json)
    if as_json:
        print_json(response)
        return
    console().print(saga_tree(response.saga))
    if not response.closed:
        number = len(response.saga.interventions)
        console().print(
            f"money is concerned: another person has to approve proposal {number}, with"
            f" `paymesh saga close {saga_id} --approve --proposal {number} --reason …`"
        )


async def _retry(
    target: str, requests: Sequence[pb.RetrySagaRequest], key: str, patience_seconds: float
) -> tuple[list[pb.Saga], list[str]]:
    """The sagas as they stand in the end, and why some could not be retried."""
    failures: list[str] = []
    accepted: list[pb.Saga] = []
    async with connected(target) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        batch = pb.BatchRetrySagasRequest(
            items=[
                pb.RetrySagaItem(idempotency_key=f"{key}/{one.saga_id}"[-255:], request=one)
                for one in requests
            ]
        )
        answer = await until_settled(lambda: stub.BatchRetrySagas(batch), PATIENCE)
        for asked, result in zip(requests, answer.results, strict=True):
            if result.HasField("failure"):
                failures.append(f"{asked.saga_id}: {failure_error(result.failure)}")
            else:
                accepted.append(result.response.saga)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + patience_seconds
        while True:
            sagas = [
                (await stub.GetSaga(pb.GetSagaRequest(merchant_id=s.merchant_id, saga_id=s.saga_id))).saga
                for s in accepted
            ]
            if all(saga.HasField("ended_at") for saga in sagas) or loop.time() > give_up_at:
                return sagas, failures
            await asyncio.sleep(POLL_SECONDS)


def _state(name: str) -> pb.SagaState.ValueType:
    try:
        return pb.SagaState.Value(f"SAGA_STATE_{name.upper()}")
    except ValueError:
        known = [full.removeprefix("SAGA_STATE_").lower() for full in pb.SagaState.keys()[1:]]
        raise UserError(f"--state {name}: there is no such state; use one of {', '.join(known)}") from None


async def _list(
    target: str, merchant: str, states: list[pb.SagaState.ValueType], limit: int
) -> list[pb.Saga]:
    """Up to `limit` sagas, page by page."""
    sagas: list[pb.Saga] = []
    token = ""
    async with connected(target) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        while len(sagas) < limit:
            page_size = min(limit - len(sagas), PAGE_SIZE_MAX)
            page = await stub.ListSagas(
                pb.ListSagasRequest(
                    merchant_id=merchant, states=states, page_size=page_size, page_token=token
                )
            )
            sagas += page.sagas
            token = page.next_page_token
            if not token:
                break
    return sagas
