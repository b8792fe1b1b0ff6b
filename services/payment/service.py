"""The RPCs of payment: proto in, domain, proto out.

Every operation is a bracket around the call to the processor: one transaction records the intent, then the processor
is asked, then another transaction (`outcomes.record`) writes down what it answered. A crash in between leaves the
intent, and the resolver (`runner`) takes it from there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import partial
from typing import Any

from paymesh.payment.v1 import payment_pb2 as pb

from services.kit.checks import Checks, page_size
from services.kit.clock import now_ms
from services.kit.db import Connection, Database
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.idempotency import Identity, bar, begin_set, identity
from services.kit.money import Money
from services.kit.rpc.method import SetMethod
from services.kit.coalescer import Limits
from services.kit.sets import Answer, Command, Failed, Outcome
from services.payment import domain, store
from services.payment.clients import Asked, FraudClient, Processor
from services.payment.config import PaymentConfig
from services.payment.domain import Authorize, ByKey, Event, Payment, Verdict, Void
from services.payment.outcomes import AUTHORIZE, VOID, Operation, Told, record, render

NAME = "paymesh.payment.v1.PaymentService"

SETS_IN_FLIGHT_MAX = 4
"""A set spends most of its time waiting for fraud and processor; four keep the event loop and the database busy."""


class PaymentService:
    """See the contract, paymesh/payment/v1/payment.proto."""

    def __init__(self, database: Database, fraud: FraudClient, processor: Processor, config: PaymentConfig) -> None:
        self._database = database
        self._fraud = fraud
        self._processor = processor
        self._intent_seconds = config.intent_seconds
        self._look_again_seconds = config.resolve_first_ms / 1000
        limits = Limits(sets_in_flight_max=SETS_IN_FLIGHT_MAX)
        authorize = SetMethod(
            f"{NAME}/AuthorizePayment",
            parse=_parse_authorize,
            handle=self._authorize,
            batch_response=pb.BatchAuthorizePaymentsResponse,
            id_prefix="pay",
            limits=limits,
        )
        void = SetMethod(
            f"{NAME}/VoidPayment",
            parse=_parse_void,
            handle=self._void,
            batch_response=pb.BatchVoidPaymentsResponse,
            limits=limits,
        )
        self.AuthorizePayment, self.BatchAuthorizePayments = authorize.single, authorize.batch
        self.VoidPayment, self.BatchVoidPayments = void.single, void.batch

    async def _authorize(
        self, commands: Sequence[Command[Authorize]], deadline: Deadline
    ) -> list[Outcome[pb.AuthorizePaymentResponse]]:
        begun: dict[Identity, Asked] = {}

        async def begin(
            tx: Connection, fresh: list[Command[Authorize]]
        ) -> list[Outcome[pb.AuthorizePaymentResponse] | None]:
            begun.clear()  # the transaction may be tried again
            now = now_ms()
            intents = [domain.initiate(c.request, c.resource_id, c.caller, c.key, now) for c in fresh]
            alone = await store.insert_payments(tx, [payment for payment, _ in intents], self._intent_seconds)
            begun.update(
                (identity(c), Asked(payment, c.request, c.span))
                for c, (payment, _) in zip(fresh, intents, strict=True)
                if payment.payment_id in alone
            )
            await store.insert_events(
                tx, [store.Record(*p.key, p.version, event) for p, event in intents if p.payment_id in alone]
            )
            return [
                None if c.resource_id in alone else Failed(domain.order_already_paid(c.request.order_id)) for c in fresh
            ]

        outcomes = await begin_set(self._database, AUTHORIZE.method, commands, begin, AUTHORIZE.pack, deadline)
        told = await self.ask_for_authorizations(list(begun.values()), list(begun), deadline)
        return await self._conclude(AUTHORIZE, commands, outcomes, told, deadline)

    async def ask_for_authorizations(
        self, asked: Sequence[Asked], askers: Sequence[Identity], deadline: Deadline
    ) -> list[Told]:
        """Fraud first, then the processor for those that pass. Repeating it is harmless: both know the payment's keys."""
        if not asked:
            return []
        verdicts = await self._fraud.assess(asked, deadline)
        passed = [a for a, v in zip(asked, verdicts, strict=True) if isinstance(v, Verdict) and v.approved]
        answers = iter(await self._processor.authorize(passed, deadline) if passed else ())
        told = []
        for one, asker, verdict in zip(asked, askers, verdicts, strict=True):
            if isinstance(verdict, PaymeshError):
                # The processor was not asked; the resolver will ask both again.
                decide = partial(domain.after_authorization, answer=domain.Lost(verdict.reason), score_milli=0)
            elif verdict.approved:
                decide = partial(
                    domain.after_authorization, answer=next(answers), score_milli=verdict.score_milli
                )
            else:
                decide = partial(_rejected, domain.after_fraud(verdict))
            told.append(Told(one.payment.key, decide, asker, one.span, self._look_again_seconds))
        return told

    async def _void(
        self, commands: Sequence[Command[Void]], deadline: Deadline
    ) -> list[Outcome[pb.VoidPaymentResponse]]:
        begun: dict[Identity, tuple[Payment, Command[Void]]] = {}

        async def begin(
            tx: Connection, fresh: list[Command[Void]]
        ) -> list[Outcome[pb.VoidPaymentResponse] | None]:
            begun.clear()  # the transaction may be tried again
            keys = [_do_key(c) for c in fresh if isinstance(c.request.target, ByKey)]
            arrived = await bar(tx, AUTHORIZE.method, keys, AUTHORIZE.pack) if keys else {}
            ids = [
                (c.merchant_id, arrived.get(_do_key(c), "") if isinstance(c.request.target, ByKey) else c.request.target)
                for c in fresh
            ]
            payments = await store.lock_payments(tx, ids)
            outcomes: list[Outcome[pb.VoidPaymentResponse] | None] = []
            records = []
            for command, key in zip(fresh, ids, strict=True):
                payment = payments.get(key)
                decision: Event | Payment | PaymeshError
                if payment is not None:
                    decision = domain.request_void(payment, command.request.note, command.caller, command.key)
                elif isinstance(command.request.target, ByKey):
                    decision = domain.nothing_authorized(command.merchant_id)
                else:
                    decision = domain.no_payment(key[1])
                if isinstance(decision, Event):
                    assert payment is not None
                    payment = payments[key] = domain.apply(payment, decision)
                    begun[identity(command)] = (payment, command)
                    records.append(store.Record(*key, payment.version, decision))
                    outcomes.append(None)
                elif isinstance(decision, PaymeshError):
                    outcomes.append(Failed(decision))
                else:
                    outcomes.append(Answer(pb.VoidPaymentResponse(payment=render(decision))))
            if records:
                await store.save_payments(tx, [payment for payment, _ in begun.values()])
                await store.postpone(tx, [(payment.key, self._intent_seconds) for payment, _ in begun.values()])
                await store.insert_events(tx, records)
            return outcomes

        outcomes = await begin_set(self._database, VOID.method, commands, begin, VOID.pack, deadline)
        asked = list(begun.values())
        answers = (
            await self._processor.void([(payment, c.span) for payment, c in asked], deadline) if asked else []
        )
        told = [
            Told(payment.key, partial(domain.after_void, answer=answer), identity(c), c.span, self._look_again_seconds)
            for (payment, c), answer in zip(asked, answers, strict=True)
        ]
        return await self._conclude(VOID, commands, outcomes, told, deadline)

    async def _conclude(
        self,
        operation: Operation[Any],
        commands: Sequence[Command[Any]],
        outcomes: Sequence[Outcome[Any] | None],
        told: Sequence[Told],
        deadline: Deadline,
    ) -> list[Outcome[Any]]:
        """Write down the answers and put them where the set still waits for an outcome."""
        recorded = await record(self._database, operation, told, deadline) if told else []
        ended = {t.asker: outcome for t, outcome in zip(told, recorded, strict=True)}
        seen: set[Identity] = set()
        results: list[Outcome[Any]] = []
        for command, outcome in zip(commands, outcomes, strict=True):
            if outcome is None:
                outcome = ended[identity(command)]
                if identity(command) in seen and isinstance(outcome, Answer):
                    outcome = Answer(outcome.message, replayed=True)
                seen.add(identity(command))
            results.append(outcome)
        return results

    async def GetPayment(self, request: pb.GetPaymentRequest, context: Any) -> pb.GetPaymentResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("payment_id", request.payment_id)
        checks.done()
        key = (request.merchant_id, request.payment_id)

        async def read(tx: Connection) -> tuple[Payment | None, list[store.Record]]:
            payment = await store.find_payment(tx, key)
            return payment, await store.list_events(tx, [key])

        payment, records = await self._database.transact(read)
        if payment is None:
            raise domain.no_payment(request.payment_id)
        response = pb.GetPaymentResponse(payment=render(payment))
        for one in records[: payment.version]:  # those read later may already tell more
            event = response.events.add(version=one.version, type=one.event.type, data_json=one.data_json())
            event.recorded_at.FromMilliseconds(one.recorded_at_ms)
        return response

    async def ListPayments(self, request: pb.ListPaymentsRequest, context: Any) -> pb.ListPaymentsResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("order_id", request.order_id, optional=True)
        checks.text("page_token", request.page_token, optional=True)
        checks.done()
        size = page_size(request.page_size)
        page = await store.list_payments(
            self._database, request.merchant_id, request.order_id, request.page_token, size + 1
        )
        more = page[size - 1].payment_id if len(page) > size else ""
        return pb.ListPaymentsResponse(payments=[render(p) for p in page[:size]], next_page_token=more)


def _rejected(event: Event | None, payment: Payment) -> Event | None:
    return event if payment.state is domain.State.AUTHORIZING else None


def _parse_authorize(request: pb.AuthorizePaymentRequest) -> Authorize:
    card, customer, amount = request.card, request.customer, request.amount
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_id", request.order_id)
    checks.money("amount", amount.amount_minor, amount.currency)
    checks.text("card.token", card.token, max_length=128)
    if card.bin and not (6 <= len(card.bin) <= 8 and card.bin.isascii() and card.bin.isdigit()):
        checks.fail("card.bin", "must be the first six to eight digits of the card, or empty")
    checks.text("customer.customer_id", customer.customer_id, optional=True)
    checks.text("customer.email", customer.email, max_length=200, optional=True)
    checks.country("customer.billing_country", customer.billing_country, optional=True)
    if customer.ip_address:
        try:
            ipaddress.ip_address(customer.ip_address)
        except ValueError:
            checks.fail("customer.ip_address", "is not an IPv4 or IPv6 address")
    checks.done()
    return Authorize(
        request.merchant_id,
        request.order_id,
        Money(amount.amount_minor, amount.currency),
        card.token,
        card.bin,
        customer.customer_id,
        customer.email,
        customer.ip_address,
        customer.billing_country,
    )


def _parse_void(request: pb.VoidPaymentRequest) -> Void:
    by_key = request.WhichOneof("target") == "authorize_key"
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    if by_key:
        checks.text("authorize_key", request.authorize_key, max_length=255)
    else:
        checks.text("payment_id", request.payment_id)
    checks.text("note", request.note, max_length=200, optional=True)
    checks.done()
    return Void(request.merchant_id, ByKey(request.authorize_key) if by_key else request.payment_id, request.note)


def _do_key(command: Command[Void]) -> Identity:
    """Identity of the AuthorizePayment that the command undoes."""
    target = command.request.target
    return (command.merchant_id, command.caller, target.authorize_key if isinstance(target, ByKey) else "")
