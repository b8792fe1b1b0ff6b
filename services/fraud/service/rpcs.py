"""The RPCs of fraud."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from itertools import repeat
from typing import Any

from prometheus_client import Counter

from paymesh.fraud.v1 import fraud_pb2 as pb
from paymesh.fraud.v1 import fraud_pb2_grpc
from services.fraud import domain, store
from services.fraud.domain import Assessment, Decision, Lists
from services.fraud.families import Counted, Sighting
from services.fraud.rules import Rules
from services.fraud.runner import ListReader
from services.fraud.service import messages
from services.fraud.store import EntryKey
from services.fraud.windows import Windows
from services.kit.checks import Checks, page_size
from services.kit.clock import now
from services.kit.db import Database, Sent, Transaction, committed
from services.kit.deadline import Deadline
from services.kit.errors import NotFound, key_reused
from services.kit.idempotency import Identity, identity, run_set
from services.kit.rpc.method import SetMethod
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, Outcome

log = logging.getLogger(__name__)

NAME = "paymesh.fraud.v1.FraudService"
_ADD = "AddListEntry"
_REMOVE = "RemoveListEntry"

ASSESSED = Counter("paymesh_fraud_assessments_total", "Payments judged.", ("decision", "degraded"))


class FraudService(fraud_pb2_grpc.FraudServiceServicer):
    """See the contract, paymesh/fraud/v1/fraud.proto."""

    def __init__(
        self, database: Database, windows: Windows, rules: Rules, lists: Lists, reader: ListReader
    ) -> None:
        self._database = database
        self._windows = windows
        self._rules = rules
        self._lists = lists
        self._reader = reader
        self._added = Pack(pb.AddListEntryResponse)
        self._removed = Pack(pb.RemoveListEntryResponse)
        self._assess_payment = SetMethod(
            f"{NAME}/AssessPayment",
            parse=messages.assess_payment,
            handle=self._assess,
            batch_response=pb.BatchAssessPaymentsResponse,
            id_prefix="fra",
        )
        # These two have no batch form on the wire; their sets are gathered from single calls.
        self._add_entry = SetMethod(
            f"{NAME}/{_ADD}",
            parse=messages.new_entry,
            handle=self._add,
            batch_response=pb.AddListEntryResponse,
        )
        self._remove_entry = SetMethod(
            f"{NAME}/{_REMOVE}",
            parse=messages.entry_key,
            handle=self._remove,
            batch_response=pb.RemoveListEntryResponse,
        )

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        for method in (self._assess_payment, self._add_entry, self._remove_entry):
            await method.drain()

    async def AssessPayment(self, request: pb.AssessPaymentRequest, context: Any) -> pb.AssessPaymentResponse:
        """See the contract."""
        return await self._assess_payment.single(request, context)

    async def BatchAssessPayments(
        self, request: pb.BatchAssessPaymentsRequest, context: Any
    ) -> pb.BatchAssessPaymentsResponse:
        """See the contract."""
        response: pb.BatchAssessPaymentsResponse = await self._assess_payment.batch(request, context)
        return response

    async def AddListEntry(self, request: pb.AddListEntryRequest, context: Any) -> pb.AddListEntryResponse:
        """See the contract."""
        return await self._add_entry.single(request, context)

    async def RemoveListEntry(
        self, request: pb.RemoveListEntryRequest, context: Any
    ) -> pb.RemoveListEntryResponse:
        """See the contract."""
        return await self._remove_entry.single(request, context)

    async def _assess(
        self, commands: Sequence[Command[domain.AssessPayment]], deadline: Deadline
    ) -> list[Outcome[pb.AssessPaymentResponse]]:
        """Count, judge, record.

        There is no claim of keys before the work: the windows themselves count a call once, the verdict is
        pure, and the assessment's row has the key. Whoever inserts it first has judged; everybody else
        replays that row.
        """
        owners: dict[Identity, Command[domain.AssessPayment]] = {}
        for command in commands:
            owners.setdefault(identity(command), command)
        # Sorted, so that two sets that share keys wait for each other in one direction only.
        identities = sorted(owners)
        distinct = [owners[i] for i in identities]
        at = now()
        sightings = [Sighting(c.merchant_id, c.caller, c.key, c.request.subject) for c in distinct]
        counted = await self._windows.count(sightings, at)
        assessments = self._judge(distinct, counted, at)

        async def write(tx: Transaction) -> Sent:
            return store.insert_assessments(tx, distinct, assessments)

        # One flight, with BEGIN and COMMIT. Assessments are never changed, so those of other calls may be read later.
        written = await self._database.transact(write, deadline)
        standing: dict[Identity, tuple[bytes, Assessment]] = {}
        if await written.count() < len(distinct):
            with committed():
                standing = await store.find_assessments_by_key(self._database, owners)
        if standing and counted is not None:
            again = [
                (sighting, found)
                for c, i, sighting, found in zip(distinct, identities, sightings, counted, strict=True)
                if (found.new or found.card_new) and standing[i][1].assessment_id != c.resource_id
            ]
            await self._windows.forget(again, at)
        if not standing:
            standing = {
                i: (c.fingerprint, a) for i, c, a in zip(identities, distinct, assessments, strict=True)
            }
        return _outcomes(commands, standing)

    def _judge(
        self,
        commands: Sequence[Command[domain.AssessPayment]],
        counted: Sequence[Counted] | None,
        at: datetime,
    ) -> list[Assessment]:
        """Commands with what the windows counted for them; None when those did not answer."""
        rules, find = self._rules, self._lists.find
        return [
            Assessment(
                c.merchant_id,
                c.resource_id,
                c.request.payment_id,
                domain.assess(rules, c.request.subject, counters, find(c.merchant_id, c.request.subject)),
                at,
            )
            for c, counters in zip(
                commands,
                repeat(None) if counted is None else (found.counters for found in counted),
                strict=False,
            )
        ]

    async def GetAssessment(self, request: pb.GetAssessmentRequest, context: Any) -> pb.GetAssessmentResponse:
        """See the contract."""
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("assessment_id", request.assessment_id)
        checks.done()
        assessment = await store.find_assessment(self._database, request.merchant_id, request.assessment_id)
        if assessment is None:
            raise NotFound("ASSESSMENT_NOT_FOUND", f"there is no assessment {request.assessment_id!r}")
        return pb.GetAssessmentResponse(assessment=messages.assess_response(assessment).assessment)

    async def _add(
        self, commands: Sequence[Command[tuple[EntryKey, str]]], deadline: Deadline
    ) -> list[Outcome[pb.AddListEntryResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[tuple[EntryKey, str]]]
        ) -> list[Outcome[pb.AddListEntryResponse]]:
            store.raise_list_versions(tx, [c.merchant_id for c in fresh])
            stands = await store.insert_list_entries(tx, [c.request for c in fresh])
            return [
                Answer(pb.AddListEntryResponse(entry=messages.entry_message(stands[c.request[0]])))
                for c in fresh
            ]

        outcomes = await run_set(self._database, _ADD, commands, work, self._added, deadline)
        await self._lists_changed()
        return outcomes

    async def _remove(
        self, commands: Sequence[Command[EntryKey]], deadline: Deadline
    ) -> list[Outcome[pb.RemoveListEntryResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[EntryKey]]
        ) -> list[Outcome[pb.RemoveListEntryResponse]]:
            store.raise_list_versions(tx, [c.merchant_id for c in fresh])
            store.delete_list_entries(tx, [c.request for c in fresh])
            return [Answer(pb.RemoveListEntryResponse()) for _ in fresh]

        outcomes = await run_set(self._database, _REMOVE, commands, work, self._removed, deadline)
        await self._lists_changed()
        return outcomes

    async def _lists_changed(self) -> None:
        """The change is committed whatever happens here; should reading it fail, the background loop does
        it."""
        try:
            await self._reader.refresh()
        except Exception:
            log.exception("the lists could not be read after a change")

    async def ListListEntries(
        self, request: pb.ListListEntriesRequest, context: Any
    ) -> pb.ListListEntriesResponse:
        """See the contract."""
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.done()
        size = page_size(request.page_size)
        after = messages.read_page_token(request.page_token)
        entries = await store.list_entries(self._database, request.merchant_id, after, size + 1)
        more = messages.page_token(entries[size - 1]) if len(entries) > size else ""
        return pb.ListListEntriesResponse(
            entries=[messages.entry_message(entry) for entry in entries[:size]], next_page_token=more
        )


def _outcomes(
    commands: Sequence[Command[domain.AssessPayment]], standing: dict[Identity, tuple[bytes, Assessment]]
) -> list[Outcome[pb.AssessPaymentResponse]]:
    """What each command of a set is told, given what stands under its key."""
    outcomes: list[Outcome[pb.AssessPaymentResponse]] = []
    judged: dict[tuple[Decision, bool], int] = {}
    for command in commands:
        fingerprint, assessment = standing[identity(command)]
        if fingerprint != command.fingerprint:
            outcomes.append(Failed(key_reused(command.key)))
            continue
        fresh = assessment.assessment_id == command.resource_id
        verdict = assessment.verdict
        if fresh:
            labels = (verdict.decision, verdict.degraded)
            judged[labels] = judged.get(labels, 0) + 1
        if command.span is not None:
            command.span.set_attribute("fraud.decision", verdict.decision.value)
            command.span.set_attribute("fraud.score_milli", verdict.score_milli)
        outcomes.append(Answer(messages.assess_response(assessment), not fresh))
    for (decision, degraded), number in judged.items():
        ASSESSED.labels(decision.value, "true" if degraded else "false").inc(number)
    return outcomes
