"""What people do with sagas that are PARKED: tried again, or closed."""

from __future__ import annotations

from collections.abc import Sequence

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

        async def work(tx: Transaction, fresh: list[Command[Retry]]) -> list[Outcome[pb.RetrySagaResponse]]:
            known = await store.lock_sagas(tx, [(c.merchant_id, c.request.saga_id) for c in fresh])
            now_moved: dict[SagaKey, StoredSaga] = {}
            outcomes: list[Outcome[pb.RetrySagaResponse]] = []
            now = now_ms()
            for command in fresh:
                wish = command.request
                stored = known.get((wish.merchant_id, wish.saga_id))
                if stored is None:
                    outcomes.append(Failed(interventions.no_saga(wish.saga_id)))
                    continue
                decision = interventions.retry(stored.saga, stored.interventions, wish, now)
                if isinstance(decision, PaymeshError):
                    outcomes.append(Failed(decision))
                    continue
                if decision is not None:
                    done = Intervention(Kind.RETRIED, wish.actor, wish.reason, now)
                    stored = stored._replace(
                        saga=decision, owner_epoch=epoch, interventions=(*stored.interventions, done)
                    )
                    known[stored.saga.key] = now_moved[stored.saga.key] = stored
                message = pb.RetrySagaResponse(saga=_message(stored), retried=decision is not None)
                outcomes.append(Answer(message))
            store.save_interventions(tx, list(now_moved.values()))
            moved.update(now_moved)
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

        async def work(tx: Transaction, fresh: list[Command[Close]]) -> list[Outcome[pb.CloseSagaResponse]]:
            known = await store.lock_sagas(tx, [(c.merchant_id, c.request.saga_id) for c in fresh])
            moved: dict[SagaKey, StoredSaga] = {}
            outcomes: list[Outcome[pb.CloseSagaResponse]] = []
            now = now_ms()
            for command in fresh:
                wish = command.request
                stored = known.get((wish.merchant_id, wish.saga_id))
                if stored is None:
                    outcomes.append(Failed(interventions.no_saga(wish.saga_id)))
                    continue
                decision = interventions.close(stored.saga, stored.interventions, wish, now)
                if isinstance(decision, PaymeshError):
                    outcomes.append(Failed(decision))
                    continue
                if decision is not None:
                    stored = stored._replace(interventions=(*stored.interventions, decision))
                    known[stored.saga.key] = moved[stored.saga.key] = stored
                closed = interventions.is_closed(stored.interventions)
                outcomes.append(Answer(pb.CloseSagaResponse(saga=_message(stored), closed=closed)))
            store.save_interventions(tx, list(moved.values()))
            return outcomes

        return await run_set(self._database, "CloseSaga", commands, work, _CLOSED, deadline)


def _message(stored: StoredSaga) -> pb.Saga:
    return saga_message(stored.saga, stored.owner_epoch, history=False, interventions=stored.interventions)
