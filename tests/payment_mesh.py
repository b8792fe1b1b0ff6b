"""Payment with its two neighbours, fraud and the sandbox bank, as real processes; one merchant's view of them; and the
comparison of payment's books with the bank's, which every test ends with.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import psycopg

from paymesh.bank.v1 import bank_pb2
from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub, FaultServiceStub
from paymesh.channel import open_channel, with_key
from paymesh.errors import PaymeshCallError, typed_errors
from paymesh.fraud.v1.fraud_pb2_grpc import FraudServiceStub
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import payment_pb2 as pb
from paymesh.payment.v1.ledger_pb2_grpc import LedgerServiceStub
from paymesh.payment.v1.payment_pb2_grpc import PaymentServiceStub
from services.kit.money import Money
from services.payment import domain
from services.payment.domain import Event, EventType, Payment, State, UnknownOutcome
from services.payment.service.messages import ANNOUNCED
from tests.conftest import Services
from tests.processes import ServiceProcess

T = TypeVar("T")

_numbers = itertools.count(1)

PATIENCE_SECONDS = 15.0
POLL_SECONDS = 0.02
CERTAIN_PPM = 1_000_000

AUTHORIZING = pb.PAYMENT_STATE_AUTHORIZING
AUTHORIZED = pb.PAYMENT_STATE_AUTHORIZED
DECLINED = pb.PAYMENT_STATE_DECLINED
REJECTED = pb.PAYMENT_STATE_REJECTED
FAILED = pb.PAYMENT_STATE_FAILED
VOIDING = pb.PAYMENT_STATE_VOIDING
VOIDED = pb.PAYMENT_STATE_VOIDED
INCREMENTING = pb.PAYMENT_STATE_INCREMENTING
CAPTURING = pb.PAYMENT_STATE_CAPTURING
PARTIALLY_CAPTURED = pb.PAYMENT_STATE_PARTIALLY_CAPTURED
CAPTURED = pb.PAYMENT_STATE_CAPTURED
SETTLED = pb.PAYMENT_STATE_SETTLED
REFUNDING = pb.PAYMENT_STATE_REFUNDING
PARTIALLY_REFUNDED = pb.PAYMENT_STATE_PARTIALLY_REFUNDED
REFUNDED = pb.PAYMENT_STATE_REFUNDED
EXPIRED = pb.PAYMENT_STATE_EXPIRED

MOVES: dict[str, tuple[str, str, Any, Any, Any]] = {
    "capture": (
        "CapturePayment",
        "BatchCapturePayments",
        pb.CapturePaymentRequest,
        pb.CapturePaymentItem,
        pb.BatchCapturePaymentsRequest,
    ),
    "refund": (
        "RefundPayment",
        "BatchRefundPayments",
        pb.RefundPaymentRequest,
        pb.RefundPaymentItem,
        pb.BatchRefundPaymentsRequest,
    ),
    "increment": (
        "IncrementAuthorization",
        "BatchIncrementAuthorizations",
        pb.IncrementAuthorizationRequest,
        pb.IncrementAuthorizationItem,
        pb.BatchIncrementAuthorizationsRequest,
    ),
}
"""What moves money on a payment: the RPC, its batch form, and their messages."""


async def until(probe: Callable[[], Awaitable[T | None]], seconds: float = PATIENCE_SECONDS) -> T:
    """What `probe` finds, as soon as it finds something. Fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := await probe()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {inspect.getsource(probe).strip()}"
        await asyncio.sleep(POLL_SECONDS)
    return found


async def failure_of(call: Awaitable[object]) -> PaymeshCallError:
    """The typed error of a call that must fail."""
    try:
        with typed_errors():
            answer = await call
    except PaymeshCallError as error:
        return error
    raise AssertionError(f"it did not fail: {answer}")


@dataclass
class PaymentMesh:
    """The processes, and where their books are."""

    services: Services
    payment: ServiceProcess
    fraud: ServiceProcess
    bank: ServiceProcess
    payment_dsn: str
    bank_dsn: str
    metrics_url: str = ""
    _connections: dict[str, psycopg.Connection] = field(default_factory=dict)

    @classmethod
    def start(cls, services: Services, valkey_url: str, bank: dict[str, str], **settings: str) -> PaymentMesh:
        """Start the three; `bank` and `settings` (of payment) become environment variables."""
        bank_process = services.start("bank", "sandbox.bank", latency_ms="0", **bank)
        fraud = services.start("fraud", valkey_url=valkey_url, valkey_timeout_ms="1000")
        targets = {"fraud_target": fraud.target, "bank_target": bank_process.target}
        payment = services.start("payment", **targets, **settings)
        return cls(services, payment, fraud, bank_process, services.dsn("payment"), services.dsn("bank"))

    def another_payment(self, **settings: str) -> ServiceProcess:
        """One more payment process with the same neighbours; on the same database unless `database_dsn` is given."""
        targets = {"fraud_target": self.fraud.target, "bank_target": self.bank.target}
        return self.services.start("payment", **targets, **settings)

    def apart(self, dsn: str, **settings: str) -> PaymentMesh:
        """The same neighbours with another payment on a database of its own."""
        process = self.another_payment(database_dsn=dsn, **settings)
        return replace(self, payment=process, payment_dsn=dsn, _connections={})

    def on_payment(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows of payment's database."""
        return self._query(self.payment_dsn, query, params)

    def on_bank(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows of the bank's database."""
        return self._query(self.bank_dsn, query, params)

    def _query(self, dsn: str, query: str, params: tuple[object, ...]) -> list[tuple[Any, ...]]:
        if dsn not in self._connections:
            self._connections[dsn] = psycopg.connect(dsn, autocommit=True)
        cursor = self._connections[dsn].execute(query.encode(), params)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Close what looks into the databases."""
        for connection in self._connections.values():
            connection.close()

    def footprint(self) -> list[int]:
        """How many rows each table has: what a refused request must not change."""
        tables = ("payments", "payment_events", "journal_entries", "idempotency", "outbox")
        counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
        return [*self.on_payment(f"SELECT {counts}")[0], *self.on_bank("SELECT count(*) FROM operations")[0]]

    async def assert_books_agree(self, merchant: str = "") -> None:
        """Wait until everything is settled; then payment's events, rows, ledger, announcements and answers agree with
        each other and, operation by operation, with the bank's books. For one merchant, or for all."""
        waiting = "SELECT 1 FROM payments WHERE %s::text IN ('', merchant_id) AND state = ANY (%s)"

        async def settled() -> bool:
            return not self.on_payment(waiting, merchant, [state.value for state in domain.WAITING])

        await until(settled)
        payments = self._payments(merchant)
        self._assert_events_add_up(payments, merchant)
        self._assert_bank_agrees(payments, merchant)
        self._assert_ledger_agrees(payments, merchant)
        self._assert_announced(merchant)
        unanswered = self.on_payment(
            "SELECT i.method, i.key FROM idempotency AS i WHERE %s::text IN ('', merchant_id) AND result IS NULL"
            " AND NOT (method = 'AuthorizePayment' AND EXISTS ("
            "  SELECT 1 FROM payments AS p WHERE p.merchant_id = i.merchant_id AND p.payment_id = i.resource_id))",
            merchant,
        )
        assert not unanswered, "every key has its answer: stored, or read back from the payment"

    def _payments(self, merchant: str) -> list[Payment]:
        rows = self.on_payment(
            "SELECT merchant_id, payment_id, order_id, amount_minor, currency, state, version, unknown_outcome,"
            " auth_code, processor_reference, decline_reason, fraud_score_milli, incremented_minor, captured_minor,"
            " refunded_minor, settled_minor, fee_minor, rest_released, pending_minor, pending_fee_minor, pending_final,"
            " expiring, coalesce(extract(epoch FROM expires_at) * 1000, 0)::bigint, processor FROM payments"
            " WHERE %s::text IN ('', merchant_id)",
            merchant,
        )
        return [
            Payment(
                merchant_id,
                payment_id,
                order_id,
                Money(amount_minor, currency),
                State(state),
                version,
                0,
                UnknownOutcome(unknown),
                *rest,
            )
            for merchant_id, payment_id, order_id, amount_minor, currency, state, version, unknown, *rest in rows
        ]

    def _assert_events_add_up(self, payments: Iterable[Payment], merchant: str) -> None:
        events: dict[tuple[str, str], list[Event]] = defaultdict(list)
        rows = self.on_payment(
            "SELECT merchant_id, payment_id, version, type, data FROM payment_events"
            " WHERE %s::text IN ('', merchant_id) ORDER BY merchant_id, payment_id, version",
            merchant,
        )
        for merchant_id, payment_id, version, type_, data in rows:
            told = events[(merchant_id, payment_id)]
            told.append(Event(EventType(type_), data))
            assert version == len(told), "no gaps"
        assert {p.key for p in payments} == set(events)
        for payment in payments:
            assert domain.fold(*payment.key, 0, events[payment.key]) == payment

    def _assert_bank_agrees(self, payments: Iterable[Payment], merchant: str) -> None:
        at_bank = {
            (merchant_id, key): (standing, sums)
            for merchant_id, key, *standing, incremented, captured, refunded in self.on_bank(
                "SELECT merchant_id, key, state, authorization_id, amount_minor, currency, auth_code, decline_reason,"
                " incremented_minor, captured_minor, refunded_minor"
                " FROM authorizations WHERE %s::text IN ('', merchant_id)",
                merchant,
            )
            for sums in [(incremented, captured, refunded)]
        }
        nothing: Any = (["", "", None, None, "", ""], (0, 0, 0))
        for payment in payments:
            standing, sums = at_bank.pop((payment.merchant_id, f"{payment.payment_id}/authorize"), nothing)
            state, reference, amount_minor, currency, auth_code, reason = standing
            if state not in ("", "CANCELLED"):
                assert Money(amount_minor, currency) == payment.amount
            assert sums == (payment.incremented_minor, payment.captured_minor, payment.refunded_minor), (
                payment
            )
            match payment.state:
                case State.AUTHORIZED | State.PARTIALLY_CAPTURED:
                    expected = ("APPROVED", reference, auth_code, "")
                case State.CAPTURED | State.SETTLED | State.PARTIALLY_REFUNDED | State.REFUNDED:
                    assert state in ("CAPTURED", "VOIDED"), f"{payment} holds something"
                    expected = (state, reference, auth_code, "")
                case State.VOIDED | State.EXPIRED if not payment.decline_reason:
                    expected = ("VOIDED", reference, auth_code, "")
                case State.VOIDED:
                    expected = ("VOIDED", reference, "", payment.decline_reason)
                case State.DECLINED:
                    expected = ("DECLINED", reference, "", reason)
                case State.REJECTED:
                    expected = ("", "", "", payment.decline_reason)
                case State.FAILED:
                    assert state in ("", "CANCELLED", "VOIDED"), f"{payment} holds something"
                    expected = (state, "", "", payment.decline_reason)
                case _:
                    raise AssertionError(f"{payment} has not ended")
            told = (state, payment.processor_reference, payment.auth_code, payment.decline_reason)
            assert told == expected, payment
        assert not [standing for standing, _ in at_bank.values() if standing[0] == "APPROVED"], (
            "held for no payment"
        )
        self._assert_operations_agree(merchant)

    def _assert_operations_agree(self, merchant: str) -> None:
        """Every increment, capture and refund that payment tells is one at the bank, and the other way round."""
        ours = self.on_payment(
            "SELECT data->>'processor_reference', (data->>'amount_minor')::bigint FROM payment_events"
            " WHERE %s::text IN ('', merchant_id)"
            " AND type IN ('PaymentAuthorizationIncremented', 'PaymentCaptured', 'PaymentRefunded')",
            merchant,
        )
        theirs = self.on_bank(
            "SELECT operation_id, amount_minor FROM operations WHERE %s::text IN ('', merchant_id)"
            " AND result IN ('INCREMENTED', 'CAPTURED', 'REFUNDED')",
            merchant,
        )
        assert sorted(ours) == sorted(theirs)

    def _assert_ledger_agrees(self, payments: Iterable[Payment], merchant: str) -> None:
        assert not self.on_payment(
            "SELECT journal_id FROM journal_entries WHERE %s::text IN ('', merchant_id)"
            " GROUP BY merchant_id, journal_id, currency HAVING sum(amount_minor) <> 0",
            merchant,
        )
        booked = {
            (merchant_id, currency, account): minor
            for merchant_id, currency, account, minor in self.on_payment(
                "SELECT merchant_id, currency, account, sum(amount_minor)::bigint FROM journal_entries"
                " WHERE %s::text IN ('', merchant_id) GROUP BY 1, 2, 3 HAVING sum(amount_minor) <> 0",
                merchant,
            )
        }
        due: Counter[tuple[str, str, str]] = Counter()
        for p in payments:
            held = 0 if p.found_late else p.held_minor
            for account, minor in (
                ("holds", held),
                ("holds_control", -held),
                ("processor_receivable", p.captured_minor - p.refunded_minor - p.settled_minor),
                ("merchant_payable", p.refunded_minor + p.fee_minor - p.captured_minor),
                ("fees", -p.fee_minor),
                ("cash", p.settled_minor),
            ):
                due[(p.merchant_id, p.amount.currency, account)] += minor
        for merchant_id, currency, fee, payout, payout_state in self.on_payment(
            "SELECT merchant_id, currency, CASE state WHEN 'SETTLING' THEN 0 ELSE processor_fee_minor END,"
            " payout_minor, payout_state FROM settlements WHERE %s::text IN ('', merchant_id)",
            merchant,
        ):
            under_way, paid = payout * (payout_state == "PAYING"), payout * (payout_state == "PAID")
            for account, minor in (
                ("processor_fees", fee),
                ("merchant_payable", under_way + paid),
                ("payouts", -under_way),
                ("cash", -fee - paid),
            ):
                due[(merchant_id, currency, account)] += minor
        assert booked == {key: minor for key, minor in due.items() if minor}

    def _assert_announced(self, merchant: str) -> None:
        announced: dict[tuple[str, str], list[str]] = defaultdict(list)
        for merchant_id, payment_id, type_ in self.on_payment(
            "SELECT merchant_id, aggregate_id, type FROM outbox WHERE %s::text IN ('', merchant_id) ORDER BY outbox_id",
            merchant,
        ):
            announced[(merchant_id, payment_id)].append(type_.rpartition(".")[2])
        told = self.on_payment(
            "SELECT merchant_id, payment_id, type FROM payment_events WHERE %s::text IN ('', merchant_id)"
            " ORDER BY merchant_id, payment_id, version",
            merchant,
        )
        due: dict[tuple[str, str], list[str]] = defaultdict(list)
        for merchant_id, payment_id, type_ in told:
            if (message := ANNOUNCED.get(EventType(type_))) is not None:
                due[(merchant_id, payment_id)].append(message.DESCRIPTOR.name)
        assert announced == due


class Shop:
    """A new merchant, calling payment; and, behind its back, fraud and the bank. Its id begins with `name`."""

    def __init__(self, mesh: PaymentMesh, name: str, payment_target: str = "") -> None:
        self.mesh = mesh
        self.merchant = f"{name[:56]}-{next(_numbers)}"
        self._target = payment_target or mesh.payment.target
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Shop:
        # One attempt: a test that counts strikes, or kills a process, must see what happens to its own call.
        channel = await self._open.enter_async_context(
            open_channel(self._target, caller="shop", attempts_max=1, wait_for_ready=True)
        )
        fraud = await self._open.enter_async_context(open_channel(self.mesh.fraud.target, caller="shop"))
        bank = await self._open.enter_async_context(
            open_channel(self.mesh.bank.target, caller="shop", wait_for_ready=True)
        )
        self.channel = channel
        self.stub = PaymentServiceStub(channel)
        self.ledger = LedgerServiceStub(channel)
        self.fraud = FraudServiceStub(fraud)
        self.bank = BankServiceStub(bank)
        self.faults = FaultServiceStub(bank)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def wish(
        self,
        order: str = "o1",
        amount_minor: int = 1_000,
        token: str = "",
        currency: str = "GBP",
        **customer: str,
    ) -> pb.AuthorizePaymentRequest:
        """A request. Unless told otherwise each order is paid with a card of its own, which is approved."""
        return pb.AuthorizePaymentRequest(
            merchant_id=self.merchant,
            order_id=order,
            amount=money_pb2.Money(amount_minor=amount_minor, currency=currency),
            card=pb.Card(token=token or f"tok_visa_{order}"),
            customer=pb.Customer(**customer),
        )

    async def authorize(self, key: str, wish: pb.AuthorizePaymentRequest | None = None) -> pb.Payment:
        """Raises PaymeshCallError."""
        with typed_errors():
            return (await self.stub.AuthorizePayment(wish or self.wish(), metadata=with_key(key))).payment

    async def authorize_all(
        self, *items: tuple[str, pb.AuthorizePaymentRequest]
    ) -> list[pb.AuthorizePaymentResult]:
        """As one batch of (key, request)."""
        request = pb.BatchAuthorizePaymentsRequest(
            items=[pb.AuthorizePaymentItem(idempotency_key=key, request=wish) for key, wish in items]
        )
        with typed_errors():
            return list((await self.stub.BatchAuthorizePayments(request)).results)

    async def void(
        self, key: str, payment_id: str = "", *, authorize_key: str = "", note: str = ""
    ) -> pb.Payment:
        """By id or by key. Raises PaymeshCallError."""
        request = self.void_wish(payment_id, authorize_key=authorize_key, note=note)
        with typed_errors():
            return (await self.stub.VoidPayment(request, metadata=with_key(key))).payment

    def void_wish(
        self, payment_id: str = "", *, authorize_key: str = "", note: str = ""
    ) -> pb.VoidPaymentRequest:
        """A request."""
        if authorize_key:
            return pb.VoidPaymentRequest(merchant_id=self.merchant, authorize_key=authorize_key, note=note)
        return pb.VoidPaymentRequest(merchant_id=self.merchant, payment_id=payment_id, note=note)

    async def void_all(self, *items: tuple[str, pb.VoidPaymentRequest]) -> list[pb.VoidPaymentResult]:
        """As one batch of (key, request)."""
        request = pb.BatchVoidPaymentsRequest(
            items=[pb.VoidPaymentItem(idempotency_key=key, request=wish) for key, wish in items]
        )
        with typed_errors():
            return list((await self.stub.BatchVoidPayments(request)).results)

    def move_wish(
        self,
        what: str,
        payment_id: str,
        amount_minor: int | None = None,
        *,
        currency: str = "GBP",
        **more: Any,
    ) -> Any:
        """A request to capture, refund or increment; no amount for all there is."""
        request = MOVES[what][2](merchant_id=self.merchant, payment_id=payment_id, **more)
        if amount_minor is not None:
            request.amount.CopyFrom(money_pb2.Money(amount_minor=amount_minor, currency=currency))
        return request

    async def move(
        self, what: str, key: str, payment_id: str, amount_minor: int | None = None, **more: Any
    ) -> pb.Payment:
        """Capture, refund or increment. Raises PaymeshCallError."""
        rpc = getattr(self.stub, MOVES[what][0])
        with typed_errors():
            answer = await rpc(self.move_wish(what, payment_id, amount_minor, **more), metadata=with_key(key))
        payment: pb.Payment = answer.payment
        return payment

    async def move_all(self, what: str, *items: tuple[str, Any]) -> list[Any]:
        """As one batch of (key, request)."""
        _, batch, _, item, request = MOVES[what]
        wishes = [item(idempotency_key=key, request=wish) for key, wish in items]
        with typed_errors():
            return list((await getattr(self.stub, batch)(request(items=wishes))).results)

    async def get(self, payment_id: str) -> pb.GetPaymentResponse:
        """Raises PaymeshCallError."""
        with typed_errors():
            return await self.stub.GetPayment(
                pb.GetPaymentRequest(merchant_id=self.merchant, payment_id=payment_id)
            )

    async def story(self, payment_id: str) -> list[str]:
        """Types of a payment's events, oldest first, without "Payment"."""
        return [event.type.removeprefix("Payment") for event in (await self.get(payment_id)).events]

    async def becomes(self, payment_id: str, state: pb.PaymentState.ValueType) -> pb.Payment:
        """Wait, asking only, until a payment is in `state`."""

        async def look() -> pb.Payment | None:
            payment = (await self.get(payment_id)).payment
            return payment if payment.state == state else None

        return await until(look)

    async def insist(self, call: Callable[[], Awaitable[pb.Payment]]) -> pb.Payment:
        """What a caller does who keeps to the contract: repeat with the same key until there is an answer."""

        async def ask() -> pb.Payment | None:
            try:
                with typed_errors():
                    return await call()
            except PaymeshCallError as error:
                if not error.kind.worth_repeating:
                    raise
                return None

        return await until(ask)

    async def arm(
        self,
        kind: bank_pb2.FaultKind.ValueType,
        target: bank_pb2.FaultTarget.ValueType = bank_pb2.FAULT_TARGET_UNSPECIFIED,
        *,
        strikes: int = 0,
        delay_ms: int = 0,
        probability_ppm: int = CERTAIN_PPM,
    ) -> None:
        """Have the bank misbehave to this merchant; 0 strikes mean no limit."""
        fault = bank_pb2.Fault(
            kind=kind,
            target=target,
            probability_ppm=probability_ppm,
            strikes_left=strikes,
            delay_ms=delay_ms,
            merchant_id=self.merchant,
        )
        await self.faults.InjectFault(bank_pb2.InjectFaultRequest(fault=fault))

    async def struck(self) -> None:
        """Wait until a fault that was armed for this merchant has struck: then the bank has heard of the call."""

        async def look() -> bool:
            faults = (await self.faults.ListFaults(bank_pb2.ListFaultsRequest())).faults
            return any(fault.strikes for fault in faults if fault.merchant_id == self.merchant)

        await until(look)

    async def booked(self, *results: str) -> None:
        """Wait until the bank's books show operations with these results, and no others."""

        async def look() -> bool:
            return [result for _, _, result in self.books()] == list(results)

        await until(look)

    async def calm(self) -> None:
        """Have the bank behave to everybody."""
        await self.faults.ClearFaults(bank_pb2.ClearFaultsRequest())

    def books(self) -> list[tuple[str | None, str, str]]:
        """(key, kind, result) of this merchant's operations at the bank, as they arrived."""
        query = "SELECT key, kind, result FROM books WHERE merchant_id = %s ORDER BY created_at, key"
        return [(key, kind, result) for key, kind, result in self.mesh.on_bank(query, self.merchant)]

    def rows(self) -> list[tuple[str, str]]:
        """(payment id, state) of this merchant's payments, oldest first."""
        query = "SELECT payment_id, state FROM payments WHERE merchant_id = %s ORDER BY payment_id"
        return [(payment_id, state) for payment_id, state in self.mesh.on_payment(query, self.merchant)]
