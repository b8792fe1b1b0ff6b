"""Sagas that wait for a person: parked by a participant that really refuses, in a mesh with two orchestrators, and
tried again or closed by people, at once and while processes are killed.

The bank refuses to let go of a hold that payment names wrongly: the reference is taken away while nobody looks, and put
back when the cause is to be gone.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from audit.run import run_audit
from deploy.local import mesh as layout
from paymesh.channel import open_channel, with_key
from paymesh.errors import call_error
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from tests.orders import (
    AUDITED,
    CALLER,
    CANCELLED,
    UNDONE_AT_SHIP,
    Shop,
    new_key,
    order,
    running_shop,
    until,
)
from tests.processes import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Shop]:
    """A mesh with two orchestrators."""
    lease = {
        "PAYMESH_ORCHESTRATOR_LEASE_SECONDS": "2",
        "PAYMESH_ORCHESTRATOR_HEARTBEAT_SECONDS": "0.4",
    }
    async with running_shop(environment=lease, replicas={"orchestrator": 2}) as shop:
        yield shop


@pytest_asyncio.fixture(loop_scope="module")
async def each(pair: Shop) -> AsyncIterator[list[OrchestratorServiceStub]]:
    """A client for each of the two."""
    addresses = [one.address for one in pair.mesh.plan.of(layout.ORCHESTRATOR)]
    channels = [open_channel(address, caller=CALLER, attempts_max=1) for address in addresses]
    yield [OrchestratorServiceStub(channel) for channel in channels]
    for channel in channels:
        await channel.close()


async def _misname(shop: Shop, payment_id: str, reference: str) -> str:
    """Have payment know the hold by another reference; returns the one it had."""
    query = """
        UPDATE payments AS p SET processor_reference = %(reference)s
        FROM (SELECT payment_id, processor_reference AS had FROM payments WHERE payment_id = %(id)s) AS before
        WHERE p.payment_id = before.payment_id RETURNING had
    """
    ((had,),) = await shop.rows("payment", query, reference=reference, id=payment_id)
    return str(had)


async def _cancelled_in_name(shop: Shop, merchant: str) -> tuple[pb.Order, str, str]:
    """(order, its saga that cancels it and is parked, the hold's true reference)."""
    placed = await shop.placed(merchant)
    reference = await _misname(shop, placed.payment_id, "auth_nobody")
    answer = await shop.cancel(placed)
    assert answer.saga.state == pb.SAGA_STATE_PARKED
    assert (answer.saga.reason.step, answer.saga.reason.code) == ("void", "VOID_REFUSED")
    return placed, answer.saga.saga_id, reference


def _retry(merchant: str, saga_id: str, actor: str = "ann") -> pb.RetrySagaRequest:
    return pb.RetrySagaRequest(merchant_id=merchant, saga_id=saga_id, actor=actor, reason="the bank is back")


async def _ends(shop: Shop, merchant: str, saga_id: str, state: pb.SagaState.ValueType) -> pb.Saga:
    found: list[pb.Saga] = []

    async def ended() -> bool:
        request = pb.GetSagaRequest(merchant_id=merchant, saga_id=saga_id)
        with suppress(grpc.aio.AioRpcError):  # one of the two may be dead just now
            saga = (await shop.orders.GetSaga(request)).saga
            if saga.HasField("ended_at"):
                found.append(saga)
        return bool(found)

    await until(ended, 60, f"{saga_id} has ended")
    assert found[0].state == state, (_story(found[0]), found[0].reason)
    return found[0]


def _story(saga: pb.Saga) -> list[str]:
    return [
        f"{pb.Direction.Name(a.direction)[10:]} {a.step} {pb.AttemptOutcome.Name(a.outcome)[16:]}"
        for a in saga.history
    ]


async def test_a_refused_cancellation_is_completed_once_when_its_cause_is_gone(
    pair: Shop, each: list[OrchestratorServiceStub]
) -> None:
    """Retried too early it is parked once more; then two people retry it at both orchestrators at once, twice each."""
    merchant = await pair.merchant()
    placed, saga_id, reference = await _cancelled_in_name(pair, merchant)
    key = new_key()
    first = await each[0].RetrySaga(_retry(merchant, saga_id), metadata=with_key(key))
    assert (first.retried, first.saga.state) == (True, pb.SAGA_STATE_RUNNING)
    await _ends(pair, merchant, saga_id, pb.SAGA_STATE_PARKED)
    repeat = await each[1].RetrySaga(_retry(merchant, saga_id), metadata=with_key(key))
    assert repeat == first  # the answer of that call, and not another try
    await _ends(pair, merchant, saga_id, pb.SAGA_STATE_PARKED)

    await _misname(pair, placed.payment_id, reference)
    calls = [
        stub.RetrySaga(_retry(merchant, saga_id, actor), metadata=with_key(key))
        for stub, actor, key in zip(
            each * 2, ("bob", "eve", "bob", "eve"), [new_key(), new_key()] * 2, strict=True
        )
    ]
    answers = await asyncio.gather(*calls)
    assert sum(answer.retried for answer in {a.SerializeToString(): a for a in answers}.values()) == 1
    saga = await _ends(pair, merchant, saga_id, pb.SAGA_STATE_COMPLETED)
    assert _story(saga) == [
        "DO call_off DONE",
        "DO void REFUSED",
        "DO void REFUSED",
        "DO void DONE",
        "DO release DONE",
    ]
    assert [one.kind for one in saga.interventions] == [pb.INTERVENTION_KIND_RETRIED] * 2
    assert saga.interventions[0].actor == "ann"
    assert await pair.holdings(merchant, placed.order_id) == CANCELLED
    assert await pair.stock(merchant) == (1_000, 0)
    late = await each[0].RetrySaga(_retry(merchant, saga_id), metadata=with_key(new_key()))
    assert (late.retried, late.saga.state) == (False, pb.SAGA_STATE_COMPLETED)
    told = await pair.rows(
        "orchestrator",
        "SELECT type FROM outbox WHERE merchant_id = %(m)s AND aggregate_id = %(o)s ORDER BY outbox_id",
        m=merchant,
        o=placed.order_id,
    )
    assert [type_.rpartition(".")[2] for (type_,) in told] == [
        "OrderPlaced",
        "OrderParked",
        "OrderParked",
        "OrderCancelled",
    ]


async def test_an_undo_that_was_refused_is_undone_and_the_caller_is_told_the_end(pair: Shop) -> None:
    """The hold loses its name while the carrier is frozen, which then refuses the parcel."""
    merchant = await pair.merchant()
    key = new_key()
    request = order(merchant, country="AQ")
    pair.mesh.kill("shipping", signal.SIGSTOP)
    try:
        placing = asyncio.create_task(pair.place(request, key))
        payments: list[tuple[Any, ...]] = []

        async def held() -> bool:
            payments[:] = await pair.rows(
                "payment",
                "SELECT payment_id FROM payments WHERE merchant_id = %(m)s AND state = 'AUTHORIZED'",
                m=merchant,
            )
            return bool(payments)

        await until(held, 30, "the money is held")
        reference = await _misname(pair, payments[0][0], "auth_nobody")
    finally:
        pair.mesh.kill("shipping", signal.SIGCONT)
    parked = await placing
    assert (parked.state, parked.reason.code) == (pb.SAGA_STATE_PARKED, "VOID_REFUSED")
    await _misname(pair, payments[0][0], reference)
    batch = pb.BatchRetrySagasRequest(
        items=[
            pb.RetrySagaItem(idempotency_key=new_key(), request=_retry(merchant, saga_id))
            for saga_id in (parked.saga_id, parked.saga_id, "saga_nobody")
        ]
    )
    first, second, nobody = (await pair.orders.BatchRetrySagas(batch)).results
    assert (first.response.retried, second.response.retried) == (True, False)
    assert nobody.failure.reason == "UNKNOWN_SAGA"
    saga = await _ends(pair, merchant, parked.saga_id, pb.SAGA_STATE_COMPENSATED)
    assert saga.reason.step == "ship"
    assert await pair.holdings(merchant, parked.order_id) == UNDONE_AT_SHIP
    again = await pair.place(request, key)
    assert (again.order_id, again.state) == (parked.order_id, pb.SAGA_STATE_COMPENSATED)


async def test_a_retry_survives_the_death_of_the_orchestrator_that_took_it(
    pair: Shop, each: list[OrchestratorServiceStub]
) -> None:
    merchant = await pair.merchant()
    cases = [await _cancelled_in_name(pair, merchant) for _ in range(6)]
    for placed, _, reference in cases:
        await _misname(pair, placed.payment_id, reference)
    batch = pb.BatchRetrySagasRequest(
        items=[
            pb.RetrySagaItem(idempotency_key=new_key(), request=_retry(merchant, saga_id))
            for _, saga_id, _ in cases
        ]
    )
    call = each[0].BatchRetrySagas(batch)

    async def under_way() -> bool:
        query = "SELECT 1 FROM sagas WHERE merchant_id = %(m)s AND kind = 'cancel' AND state <> 'PARKED'"
        return len(await pair.rows("orchestrator", query, m=merchant)) == len(cases)

    await until(under_way, 20, "they are tried again")
    name = pair.mesh.plan.of(layout.ORCHESTRATOR)[0].name
    pair.mesh.kill(name, signal.SIGKILL)
    with suppress(grpc.aio.AioRpcError):
        await call
    again = await each[1].BatchRetrySagas(batch)  # the same keys: what was answered, or that it is under way
    assert all(result.HasField("response") for result in again.results), again
    for placed, saga_id, _ in cases:
        saga = await _ends(pair, merchant, saga_id, pb.SAGA_STATE_COMPLETED)
        assert len(saga.interventions) == 1
        assert await pair.holdings(merchant, placed.order_id) == CANCELLED
    assert await pair.stock(merchant) == (1_000, 0)
    await pair.mesh.wait_ready(name)


async def test_two_people_close_what_is_about_money_and_it_is_kept(
    pair: Shop, each: list[OrchestratorServiceStub]
) -> None:
    merchant = await pair.merchant()
    placed, saga_id, reference = await _cancelled_in_name(pair, merchant)

    def close(actor: str, proposal: int = 0, stub: int = 0) -> Any:
        request = pb.CloseSagaRequest(
            merchant_id=merchant, saga_id=saga_id, actor=actor, reason="let go by the bank", proposal=proposal
        )
        return each[stub].CloseSaga(request, metadata=with_key(new_key()))

    proposed = await close("ann")
    assert (proposed.closed, [i.number for i in proposed.saga.interventions]) == (False, [1])
    for actor, number, reason in (("Ann", 1, "SAME_PERSON"), ("bob", 2, "PROPOSAL_CHANGED")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await close(actor, number)
        assert call_error(refused.value).reason == reason
    answers = await asyncio.gather(close("bob", 1, 0), close("eve", 1, 1))
    assert all(answer.closed for answer in answers)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await each[0].RetrySaga(_retry(merchant, saga_id), metadata=with_key(new_key()))
    assert call_error(refused.value).reason == "SAGA_CLOSED"
    saga = await _ends(pair, merchant, saga_id, pb.SAGA_STATE_PARKED)
    kinds = [pb.InterventionKind.Name(i.kind)[18:] for i in saga.interventions]
    assert kinds == ["CLOSE_PROPOSED", "CLOSED"]
    assert (await pair.holdings(merchant, placed.order_id))["payment"] == "AUTHORIZED"
    await _misname(pair, placed.payment_id, reference)


async def _paymesh(shop: Shop, *words: str) -> tuple[int, str, str]:
    """The command as a person runs it: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "paymesh.cli",
        *words,
        env={
            "PYTHONPATH": str(ROOT / "clients/python"),
            "COLUMNS": "200",
            "PAYMESH_TARGET": shop.mesh.targets["orchestrator"],
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_two_people_do_it_by_command(pair: Shop) -> None:
    """As the runbook says."""
    merchant = await pair.merchant()
    (one, to_retry, its), (other, to_close, reference) = [
        await _cancelled_in_name(pair, merchant) for _ in range(2)
    ]
    of = ("--merchant", merchant)
    code, out, _ = await _paymesh(pair, "saga", "list", "--state", "parked", *of)
    assert (code, to_retry in out, to_close in out) == (0, True, True)

    retry = ("saga", "retry", to_retry, *of, "--reason", "the bank is back", "--as", "ann")
    code, out, _ = await _paymesh(pair, *retry)
    assert (code, "PARKED" in out, "retried by ann: the bank is back" in out) == (1, True, True)
    await _misname(pair, one.payment_id, its)
    code, out, err = await _paymesh(pair, *retry)
    assert (code, "COMPLETED" in out, err) == (0, True, "")
    code, out, err = await _paymesh(pair, "saga", "retry", "saga_nobody", *of, "--reason", "why not")
    assert (code, "saga_nobody: UNKNOWN_SAGA" in err or "there is no saga" in err) == (1, True), err

    close = ("saga", "close", to_close, *of, "--reason", "let go by the bank")
    code, out, _ = await _paymesh(pair, *close, "--as", "ann")
    assert (code, f"paymesh saga close {to_close} --approve --proposal 1" in out) == (0, True), out
    code, _, err = await _paymesh(pair, *close, "--approve", "--as", "ann")
    assert (code, "another person has to approve it" in err) == (1, True)
    code, out, err = await _paymesh(pair, *close, "--approve", "--as", "bob")
    assert (code, "closed by bob: let go by the bank" in out, err) == (0, True, "")
    code, _, err = await _paymesh(pair, "saga", "retry", to_close, *of, "--reason", "late", "--as", "eve")
    assert (code, "was closed by bob" in err) == (1, True)
    code, _, err = await _paymesh(pair, *close, "--proposal", "1")
    assert (code, "--proposal goes with --approve" in err) == (2, True)
    await _misname(pair, other.payment_id, reference)


async def test_afterwards_the_books_agree(pair: Shop) -> None:
    """And the audit knows what was parked, tried again and closed."""
    report = await run_audit({name: pair.mesh.dsn(name) for name in AUDITED}, wait_seconds=20)
    assert report.ok, [f"{offence}" for line in report.lines for offence in line.first]
