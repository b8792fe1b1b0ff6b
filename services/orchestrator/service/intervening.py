"""What people do with sagas that are PARKED: tried again, or closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.checks import Checks
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.idempotency import run_set
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, Outcome
from services.orchestrator import interventions, store
from services.orchestrator.domain import SagaKey
from services.orchestrator.interventions import Close, Intervention, Kind, Retry
from services.orchestrator.ownership import Ownership
from services.orchestrator.runner import Engine
from services.orchestrator.service.messages import saga_message
from services.orchestrator.store import StoredSaga

ACTOR_LENGTH_MAX = 64
REASON_LENGTH_MAX = 200

W = TypeVar("W", Retry, Close)
M = TypeVar("M", bound=Message)

_RETRIED = Pack(pb.RetrySagaResponse)
_CLOSED = Pack(pb.CloseSagaResponse)


def retry_wish(request: pb.RetrySagaRequest) -> Retry:
    """The wish in a request. Raises Invalid."""
    _checked(request).done()
    return Retry(request.merchant_id, request.saga_id, request.actor, request.reason)


def close_wish(request: pb.CloseSagaRequest) -> Close:
    """The wish in a request. Raises Invalid."""
    checks = _checked(request)
    if request.proposal < 0:
        checks.fail("proposal", "must be the number of a proposal, or 0")
    checks.done()
    return Close(request.merchant_id, request.saga_id, request.actor, request.reason, request.proposal)


def _checked(request: pb.RetrySagaRequest | pb.CloseSagaRequest) -> Checks:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("saga_id", request.saga_id)
    checks.text("actor", request.actor, max_length=ACTOR_LENGTH_MAX)
    checks.text("reason", request.reason, max_length=REASON_LENGTH_MAX)
    return checks


class Intervening:
    """Carries out what people want, a set at a time."""

    def __init__(self, database: Database, engine: Engine, ownership: Ownership) -> None:
        self._database = database
        self._engine = engine
        self._ownership = ownership

    async def retry(
        self, commands: Sequence[Command[Retry]], deadline: Deadline
    ) -> list[Outcome[pb.RetrySagaResponse]]:
        """Sagas are put under way again, owned by this orchestrator, in the transaction that writes down who wanted it;
        then they are driven. Who dies in between leaves sagas that another one takes over."""
        epoch = self._ownership.epoch
        moved: dict[SagaKey, StoredSaga] = {}

        def decide(stored: StoredSaga, wish: Retry, now_ms: int) -> StoredSaga | PaymeshError | None:
            saga = interventions.retry(stored.saga, stored.interventions, wish, now_ms)
            if saga is None or isinstance(saga, PaymeshError):
                return saga
            done = Intervention(Kind.RETRIED, wish.actor, wish.reason, now_ms)
            return stored._replace(saga=saga, owner_epoch=epoch, interventions=(*stored.interventions, done))

        def answer(stored: StoredSaga, changed: bool) -> pb.RetrySagaResponse:
            return pb.RetrySagaResponse(saga=_message(stored), retried=changed)

        async def work(tx: Transaction, fresh: list[Command[Retry]]) -> list[Outcome[pb.RetrySagaResponse]]:
            outcomes, changed = await _carry_out(tx, fresh, decide, answer)
            moved.update(changed)
            return outcomes

        with self._engine.starting({(c.merchant_id, c.request.saga_id) for c in commands}):
            outcomes = await run_set(self._database, "RetrySaga", commands, work, _RETRIED, deadline)
            # A transaction that was tried again may have moved more than its last attempt: only what was answered now.
            ours = {
                key: moved[key]
                for command, outcome in zip(commands, outcomes, strict=True)
                if isinstance(outcome, Answer) and outcome.message.retried and not outcome.replayed
                if (key := (command.merchant_id, command.request.saga_id)) in moved
            }
            self._engine.dismiss(ours)  # they were PARKED under the lock
            self._ownership.drive(list(ours.values()), epoch)
        return outcomes

    async def close(
        self, commands: Sequence[Command[Close]], deadline: Deadline
    ) -> list[Outcome[pb.CloseSagaResponse]]:
        """Sagas are closed, or that is proposed."""

        def decide(stored: StoredSaga, wish: Close, now_ms: int) -> StoredSaga | PaymeshError | None:
            done = interventions.close(stored.saga, stored.interventions, wish, now_ms)
            if done is None or isinstance(done, PaymeshError):
                return done
            return stored._replace(interventions=(*stored.interventions, done))

        def answer(stored: StoredSaga, changed: bool) -> pb.CloseSagaResponse:
            closed = interventions.is_closed(stored.interventions)
            return pb.CloseSagaResponse(saga=_message(stored), closed=closed)

        async def work(tx: Transaction, fresh: list[Command[Close]]) -> list[Outcome[pb.CloseSagaResponse]]:
            outcomes, _ = await _carry_out(tx, fresh, decide, answer)
            return outcomes

        return await run_set(self._database, "CloseSaga", commands, work, _CLOSED, deadline)


async def _carry_out(
    tx: Transaction,
    fresh: Sequence[Command[W]],
    decide: Callable[[StoredSaga, W, int], StoredSaga | PaymeshError | None],
    answer: Callable[[StoredSaga, bool], M],
) -> tuple[list[Outcome[M]], dict[SagaKey, StoredSaga]]:
    """Lock the sagas, decide on each wish, save. `decide` says what a saga becomes, None for nothing else than it is;
    `answer` is told the saga, and whether it was changed. Returns also the sagas that were."""
    known = await store.lock_sagas(tx, [(c.merchant_id, c.request.saga_id) for c in fresh])
    changed: dict[SagaKey, StoredSaga] = {}
    outcomes: list[Outcome[M]] = []
    now = now_ms()
    for command in fresh:
        wish = command.request
        stored = known.get((wish.merchant_id, wish.saga_id))
        if stored is None:
            outcomes.append(Failed(interventions.no_saga(wish.saga_id)))
            continue
        after = decide(stored, wish, now)
        if isinstance(after, PaymeshError):
            outcomes.append(Failed(after))
            continue
        if after is not None:
            known[stored.saga.key] = changed[stored.saga.key] = after
        outcomes.append(Answer(answer(after or stored, after is not None)))
    store.save_interventions(tx, list(changed.values()))
    return outcomes, changed


def _message(stored: StoredSaga) -> pb.Saga:
    return saga_message(stored.saga, stored.owner_epoch, history=False, interventions=stored.interventions)
