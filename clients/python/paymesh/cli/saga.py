"""`paymesh saga`: what the orchestrator is doing and has done."""

from typing import Annotated

import typer

from paymesh.cli.calls import connected, run
from paymesh.cli.options import LIMIT, MERCHANT, TARGET, Json, Limit, Merchant, Target
from paymesh.cli.program import UserError
from paymesh.cli.story import console, print_json, saga_table, saga_tree
from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc

PAGE_SIZE_MAX = 1_000

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
        print_json(orchestrator_pb2.ListSagasResponse(sagas=sagas))
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

    async def work() -> orchestrator_pb2.GetSagaResponse:
        async with connected(target) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            return await stub.GetSaga(orchestrator_pb2.GetSagaRequest(merchant_id=merchant, saga_id=saga_id))

    response = run(work(), as_json)
    if as_json:
        print_json(response)
    else:
        console().print(saga_tree(response.saga))


def _state(name: str) -> orchestrator_pb2.SagaState.ValueType:
    try:
        return orchestrator_pb2.SagaState.Value(f"SAGA_STATE_{name.upper()}")
    except ValueError:
        known = [full.removeprefix("SAGA_STATE_").lower() for full in orchestrator_pb2.SagaState.keys()[1:]]
        raise UserError(f"--state {name}: there is no such state; use one of {', '.join(known)}") from None


async def _list(
    target: str, merchant: str, states: list[orchestrator_pb2.SagaState.ValueType], limit: int
) -> list[orchestrator_pb2.Saga]:
    """Up to `limit` sagas, page by page."""
    sagas: list[orchestrator_pb2.Saga] = []
    token = ""
    async with connected(target) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        while len(sagas) < limit:
            page_size = min(limit - len(sagas), PAGE_SIZE_MAX)
            page = await stub.ListSagas(
                orchestrator_pb2.ListSagasRequest(
                    merchant_id=merchant, states=states, page_size=page_size, page_token=token
                )
            )
            sagas += page.sagas
            token = page.next_page_token
            if not token:
                break
    return sagas
