"""The RPCs of payment: proto in, domain, proto out.

Every operation is a bracket around the call to the processor: one transaction records the intent, then the processor
is asked, then another transaction (`outcomes.record`) writes down what it answered. A crash in between leaves the
intent, and the resolver (`runner`) takes it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.checks import Checks, page_size
from services.kit.clock import now_ms
from services.kit.coalescer import Limits
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.idempotency import Identity, bar, begin_set, identity
from services.kit.rpc.method import SetMethod
from services.kit.sets import Answer, Command, Failed, Outcome
from services.payment import domain, store
from services.payment.clients import Asked, FraudClient, Processors
from services.payment.config import PaymentConfig
from services.payment.domain import Authorize, ByKey, Event, Move, Payment, Verdict, Void
from services.payment.service import messages
from services.payment.service.belonging import find_untouchable
from services.payment.service.messages import message_of
from services.payment.service.movements import CAPTURES, INCREMENTS, REFUNDS, Movements
from services.payment.service.outcomes import AUTHORIZE, VOID, Told, conclude, still_open

NAME = "paymesh.payment.v1.PaymentService"

SETS_IN_FLIGHT_MAX = 4
"""A set spends most of its time waiting for fraud and processor; four keep the event loop and the database busy."""


class PaymentService:
    """See the contract, paymesh/payment/v1/payment.proto."""

    def __init__(
        self, database: Database, fraud: FraudClient, processor: Processors, config: PaymentConfig
    ) -> None:
        self._database = database
        self._fraud = fraud
        self._processor = processor
        self._intent_seconds = config.intent_seconds
        self._look_again_seconds = config.resolve_first_ms / 1000
        self._lifetime_ms = int(config.authorization_seconds * 1000)
        limits = Limits(sets_in_flight_max=SETS_IN_FLIGHT_MAX)
        self.authorizing: SetMethod[Authorize, pb.AuthorizePaymentResponse] = SetMethod(
            f"{NAME}/AuthorizePayment",
            parse=messages.authorize_wish,
            handle=self._authorize,
            batch_response=pb.BatchAuthorizePaymentsResponse,
            id_prefix="pay",
            limits=limits,
        )
        self.voiding: SetMethod[Void, pb.VoidPaymentResponse] = SetMethod(
            f"{NAME}/VoidPayment",
            parse=messages.void_wish,
            handle=self._void,
            batch_response=pb.BatchVoidPaymentsResponse,
            limits=limits,
        )
        movements = Movements(database, processor, config)
        self._capturing: SetMethod[Move, pb.CapturePaymentResponse] = SetMethod(
            f"{NAME}/CapturePayment",
            parse=messages.capture_wish,
            handle=partial(movements.carry_out, CAPTURES),
            batch_response=pb.BatchCapturePaymentsResponse,
            limits=limits,
        )
        self._refunding: SetMethod[Move, pb.RefundPaymentResponse] = SetMethod(
            f"{NAME}/RefundPayment",
            parse=messages.refund_wish,
            handle=partial(movements.carry_out, REFUNDS),
            batch_response=pb.BatchRefundPaymentsResponse,
            limits=limits,
        )
        self._incrementing: SetMethod[Move, pb.IncrementAuthorizationResponse] = SetMethod(
            f"{NAME}/IncrementAuthorization",
            parse=messages.increment_wish,
            handle=partial(movements.carry_out, INCREMENTS),
            batch_response=pb.BatchIncrementAuthorizationsResponse,
            limits=limits,
        )
        self.AuthorizePayment = self.authorizing.single
        self.BatchAuthorizePayments = self.authorizing.batch
        self.VoidPayment = self.voiding.single
        self.BatchVoidPayments = self.voiding.batch
        self.CapturePayment = self._capturing.single
        self.BatchCapturePayments = self._capturing.batch
        self.RefundPayment = self._refunding.single
        self.BatchRefundPayments = self._refunding.batch
        self.IncrementAuthorization = self._incrementing.single
        self.BatchIncrementAuthorizations = self._incrementing.batch

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        for method in (
            self.authorizing,
            self.voiding,
            self._capturing,
            self._refunding,
            self._incrementing,
        ):
            await method.drain()

    async def _authorize(
        self, commands: Sequence[Command[Authorize]], deadline: Deadline
    ) -> list[Outcome[pb.AuthorizePaymentResponse]]:
        begun: dict[Identity, Asked] = {}

        async def begin(
            tx: Transaction, fresh: list[Command[Authorize]]
        ) -> list[Outcome[pb.AuthorizePaymentResponse] | None]:
            now = now_ms()
            chosen = self._processor.chosen
            intents = [domain.initiate(c.request, c.resource_id, c.caller, c.key, now, chosen) for c in fresh]
            records = [store.record_of(payment, event) for payment, event in intents]
            alone = await store.insert_payments(
                tx, [payment for payment, _ in intents], records, self._intent_seconds
            )
            begun.update(
                (identity(c), Asked(payment, c.request, c.span))
                for c, (payment, _) in zip(fresh, intents, strict=True)
                if payment.payment_id in alone
            )
            store.insert_events(tx, [record for record in records if record.payment_id in alone])
            return [
                None if c.resource_id in alone else Failed(domain.order_already_paid(c.request.order_id))
                for c in fresh
            ]

        outcomes = await begin_set(
            self._database, AUTHORIZE.method, commands, begin, AUTHORIZE.pack, deadline
        )
        ours = still_open(commands, outcomes, begun)
        waits = [self._look_again_seconds] * len(ours)
        told = await self.ask_for_authorizations(list(ours.values()), list(ours), waits, deadline)
        return await conclude(self._database, AUTHORIZE, commands, outcomes, told)

    async def ask_for_authorizations(
        self,
        asked: Sequence[Asked],
        askers: Sequence[Identity | None],
        look_again_seconds: Sequence[float],
        deadline: Deadline,
    ) -> list[Told]:
        """Fraud first, then the processor for those that pass. A repeat is harmless: both know the payment's keys."""
        if not asked:
            return []
        verdicts = await self._fraud.assess(asked, deadline)
        passed = [a for a, v in zip(asked, verdicts, strict=True) if isinstance(v, Verdict) and v.approved]
        answers = iter(await self._processor.authorize(passed, deadline) if passed else ())
        told = []
        for one, asker, wait, verdict in zip(asked, askers, look_again_seconds, verdicts, strict=True):
            if isinstance(verdict, PaymeshError):
                # The processor was not asked; the resolver will ask both again.
                decide = self.authorized(domain.Lost(verdict.reason), 0)
            elif verdict.approved:
                decide = self.authorized(next(answers), verdict.score_milli)
            else:
                decide = partial(domain.after_fraud, verdict=verdict)
            told.append(Told(one.payment, decide, asker, one.span, wait))
        return told

    def authorized(self, answer: domain.Authorization, score_milli: int) -> Callable[[Payment], Event | None]:
        """What the processor's answer to an authorization causes."""
        return partial(
            domain.after_authorization,
            answer=answer,
            score_milli=score_milli,
            lifetime_ms=self._lifetime_ms,
        )

    async def scores(self, asked: Sequence[Asked], deadline: Deadline) -> list[int]:
        """The fraud scores that payments were given, in thousandths; 0 where fraud does not tell."""
        verdicts = await self._fraud.assess(asked, deadline) if asked else []
        return [v.score_milli if isinstance(v, Verdict) else 0 for v in verdicts]

    async def _void(
        self, commands: Sequence[Command[Void]], deadline: Deadline
    ) -> list[Outcome[pb.VoidPaymentResponse]]:
        begun: dict[Identity, tuple[Payment, Command[Void]]] = {}

        async def begin(
            tx: Transaction, fresh: list[Command[Void]]
        ) -> list[Outcome[pb.VoidPaymentResponse] | None]:
            undone = [do_key for c in fresh if (do_key := _do_key(c)) is not None]
            arrived = await bar(tx, AUTHORIZE.method, undone, AUTHORIZE.pack) if undone else {}
            ids = [(c.merchant_id, _payment_id(c, arrived)) for c in fresh]
            payments = await store.lock_payments(tx, ids)
            untouchable = await find_untouchable(tx, fresh, ids, payments)
            outcomes: list[Outcome[pb.VoidPaymentResponse] | None] = []
            requested: list[Payment] = []
            records: list[store.Record] = []
            for command, key, of_an_order in zip(fresh, ids, untouchable, strict=True):
                payment = payments.get(key)
                decision: Event | Payment | PaymeshError
                if payment is not None and of_an_order:
                    decision = domain.payment_of_an_order(payment)
                elif payment is not None:
                    decision = domain.request_void(payment, command.request.note, command.caller, command.key)
                elif isinstance(command.request.target, ByKey):
                    decision = domain.nothing_authorized(command.merchant_id)
                else:
                    decision = domain.no_payment(key[1])
                if isinstance(decision, Event):
                    assert payment is not None
                    payment = payments[key] = domain.apply(payment, decision)
                    begun[identity(command)] = (payment, command)
                    requested.append(payment)
                    records.append(store.record_of(payment, decision))
                    outcomes.append(None)
                elif isinstance(decision, PaymeshError):
                    outcomes.append(Failed(decision))
                else:
                    outcomes.append(Answer(pb.VoidPaymentResponse(payment=message_of(decision))))
            if records:
                store.save_payments(tx, requested, records, self._intent_seconds)
                store.insert_events(tx, records)
            return outcomes

        outcomes = await begin_set(self._database, VOID.method, commands, begin, VOID.pack, deadline)
        ours = still_open(commands, outcomes, begun)
        asked = [(payment, command.span) for payment, command in ours.values()]
        answers = await self._processor.void(asked, deadline) if asked else []
        told = [
            Told(
                payment,
                partial(domain.after_void, asked=payment, answer=answer),
                key,
                span,
                self._look_again_seconds,
            )
            for key, (payment, span), answer in zip(ours, asked, answers, strict=True)
        ]
        return await conclude(self._database, VOID, commands, outcomes, told)

    async def GetPayment(self, request: pb.GetPaymentRequest, context: Any) -> pb.GetPaymentResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("payment_id", request.payment_id)
        checks.done()
        key = (request.merchant_id, request.payment_id)

        async def read(tx: Transaction) -> tuple[Payment | None, list[store.Record]]:
            payment = await store.find_payment(tx, key)
            return payment, await store.list_events(tx, [key])

        payment, records = await self._database.transact(read)
        if payment is None:
            raise domain.no_payment(request.payment_id)
        told = records[: payment.version]  # those read later may already tell more
        return pb.GetPaymentResponse(payment=message_of(payment), events=[messages.event_of(r) for r in told])

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
        return pb.ListPaymentsResponse(payments=[message_of(p) for p in page[:size]], next_page_token=more)


def _do_key(command: Command[Void]) -> Identity | None:
    """Identity of the AuthorizePayment that the command undoes, if it names it by key."""
    target = command.request.target
    return (command.merchant_id, command.caller, target.authorize_key) if isinstance(target, ByKey) else None


def _payment_id(command: Command[Void], arrived: Mapping[Identity, str]) -> str:
    """The payment to void; empty when it was named by the key of a call that has not arrived."""
    key = _do_key(command)
    return str(command.request.target) if key is None else arrived.get(key, "")
