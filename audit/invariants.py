"""The list: what must hold of the books, as data.

An invariant has one or more checks. A `Query` is done by one database alone, within its snapshot. `OfPayments`,
`OfSettlements`, `OfOrders` and `OfCorrections` judge, one by one, books that were put together from several databases;
if the judgement compares databases (`across`), only what is settled is judged, and a suspect only offends if it has not
moved since (see the package).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from audit import edge_queries, order_rules, payment_rules, queries, reconciler_queries, settlement_rules
from audit.corrections import CorrectionBook, is_posted_once
from audit.orders import OrderBook
from audit.payments import PaymentBook
from audit.settlements import SettlementBook
from services.orchestrator.domain import CANCEL, State
from services.payment.domain import FIRST_PROCESSOR

TAKEOVER_SECONDS = 4.0
"""A live orchestrator takes over what a dead one left behind at its next heartbeat, a second or so after the lease ran
out. What nobody owns after this long is owned by nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A database's own sums."""

    service: str
    counted: tuple[str, str] | None = None
    """What is judged, and the query that counts it."""
    offending: tuple[str, ...]
    noted: tuple[str, str] | None = None
    """What is no offence but should be known, as a word for it and the query that finds it."""
    again_seconds: float = 0.0
    """Offenders only offend if they still do, in the database as it then is, after so long."""


class Book(Protocol):
    """What is judged one by one."""

    @property
    def merchant_id(self) -> str:
        """Whose it is."""

    @property
    def id(self) -> str:
        """What it is known by, within the merchant."""

    @property
    def in_flight(self) -> bool:
        """Whether it is under way: databases may rightly differ about it."""


B = TypeVar("B", bound=Book)


@dataclass(frozen=True, slots=True)
class Each(Generic[B]):
    """Judges books one by one. `count` says how many of `what` a book has; one that has none is not judged."""

    what: str
    judge: Callable[[B], Iterable[str]]
    count: Callable[[B], int]
    across: bool = False
    """Whether it compares databases."""


class OfPayments(Each[PaymentBook]):
    """Judges payments."""


class OfSettlements(Each[SettlementBook]):
    """Judges settlements."""


class OfOrders(Each[OrderBook]):
    """Judges orders."""


class OfCorrections(Each[CorrectionBook]):
    """Judges corrections."""


@dataclass(frozen=True, slots=True)
class Followed:
    """Holds how far listeners are against how far their sources are."""

    what: str


Check: TypeAlias = Query | OfPayments | OfSettlements | OfOrders | OfCorrections | Followed


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that must always be true."""

    number: int
    """Several invariants of one number are about one promise."""
    name: str
    sentence: str
    compared: str
    """What is held against what."""
    checks: tuple[Check, ...]


def _operations(book: PaymentBook) -> int:
    at_the_bank = book.row is not None and book.row.processor == FIRST_PROCESSOR
    return 1 if at_the_bank or book.operations else 0


def _settled(book: SettlementBook) -> int:
    return 1 if book.row is not None or book.batches or book.payouts else 0


def _judged_at_its_end(book: OrderBook) -> int:
    return 1 if book.saga is not None and book.saga.state is not State.PARKED else 0


INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        1,
        "journals-balance",
        "the entries of every journal add up to zero in every currency",
        "the entries of each journal",
        (
            Query(
                service="payment",
                counted=("journals", queries.COUNT_JOURNALS),
                offending=(queries.UNBALANCED_JOURNALS,),
            ),
        ),
    ),
    Invariant(
        1,
        "accounts",
        "every account has what payments and settlements say, for every merchant and currency",
        "journal entries with payments and settlements",
        (
            Query(
                service="payment",
                counted=("currencies of merchants", queries.COUNT_CURRENCIES),
                offending=(queries.ACCOUNTS_APART,),
            ),
        ),
    ),
    Invariant(
        2,
        "payments-are-their-events",
        "every payment and all its journals are what its events, numbered without a gap, add up to",
        "events with payments and journals",
        (OfPayments("payments", payment_rules.follows_its_events, lambda book: int(book.known)),),
    ),
    Invariant(
        3,
        "amounts-in-bounds",
        "refunded ≤ captured ≤ authorized, nothing less or more is held, and no order has two live payments",
        "amounts with each other and with what is held",
        (
            Query(
                service="payment",
                counted=("payments", queries.COUNT_PAYMENTS),
                offending=(queries.AMOUNTS_OUT_OF_BOUNDS, queries.ORDERS_PAID_TWICE),
            ),
        ),
    ),
    Invariant(
        3,
        "settled-once",
        "what was captured or given back is settled once, as it was, and its payment knows; what is owed is carried on",
        "events of payments with the items of settlements, settlements with their items and journals",
        (
            Query(
                service="payment",
                counted=("captures and refunds", queries.COUNT_ITEMS),
                offending=(
                    queries.ITEMS_APART,
                    queries.ITEMS_WITHOUT_SETTLEMENT,
                    queries.SETTLED_APART,
                    queries.BALANCES_APART,
                ),
            ),
            OfSettlements(
                "settlements",
                settlement_rules.is_its_items,
                lambda book: 1 if book.row is not None or book.items or book.entries else 0,
            ),
        ),
    ),
    Invariant(
        4,
        "one-operation-per-key",
        "the bank has one operation for one key, lets go of one hold once, and settles an operation once",
        "the bank's operations with each other",
        (
            Query(
                service="bank",
                counted=("operations", queries.COUNT_OPERATIONS),
                offending=(
                    queries.OPERATIONS_PER_KEY,
                    queries.VOIDS_PER_AUTHORIZATION,
                    queries.OPERATIONS_SETTLED_TWICE,
                ),
            ),
        ),
    ),
    Invariant(
        4,
        "bank-books",
        "payment's books and the bank's tell the same, operation by operation",
        "payments that were begun at the bank with its operations; of other processors there are no books here",
        (
            OfPayments("payments", payment_rules.agrees_with_the_bank, _operations, across=True),
            Query(service="payment", offending=(), noted=("not compared", queries.PAYMENTS_ELSEWHERE)),
        ),
    ),
    Invariant(
        4,
        "bank-settlements",
        "what the bank has settled and paid out is what payment has, item by item",
        "settlements with the bank's settlements and payouts",
        (OfSettlements("settlements", settlement_rules.agrees_with_the_bank, _settled, across=True),),
    ),
    Invariant(
        4,
        "fraud-first",
        "what reached the bank was approved by fraud, and what fraud declined did not reach it",
        "the bank's operations with fraud's assessments",
        (
            OfPayments(
                "payments",
                payment_rules.was_assessed_first,
                lambda book: int(book.row is not None),
                across=True,
            ),
        ),
    ),
    Invariant(
        5,
        "sagas-are-driven",
        "every saga has ended, is parked, or is owned by an orchestrator that lives",
        "sagas with the leases of their owners",
        (
            Query(
                service="orchestrator",
                counted=("sagas", queries.COUNT_SAGAS),
                offending=(queries.UNOWNED_SAGAS,),
                noted=("parked", queries.PARKED_SAGAS),
                again_seconds=TAKEOVER_SECONDS,
            ),
        ),
    ),
    Invariant(
        6,
        "stock",
        "what is reserved of a product is what open reservations say, and never more than there is",
        "products with reservations",
        (
            Query(
                service="inventory",
                counted=("products", queries.COUNT_PRODUCTS),
                offending=(queries.STOCK_APART,),
            ),
        ),
    ),
    Invariant(
        6,
        "returned-stock",
        "what came back of a product is at most what had left with its reservation",
        "returns with reservations",
        (
            Query(
                service="inventory",
                counted=("returns", queries.COUNT_RETURNS),
                offending=(queries.RETURNS_APART,),
            ),
        ),
    ),
    Invariant(
        7,
        "orders-and-their-parts",
        "a completed order has its stock, its money and its shipment, each once; a compensated one holds nothing",
        "sagas with reservations, payments and shipments",
        (OfOrders("orders", order_rules.agrees_with_its_parts, _judged_at_its_end, across=True),),
    ),
    Invariant(
        7,
        "dispatched-orders",
        "an order is dispatched exactly if its money is captured, its stock committed and its shipment on the way",
        "sagas with reservations, payments and shipments",
        (
            OfOrders(
                "orders",
                order_rules.has_left_as_a_whole,
                lambda book: int(book.placed and not book.completed(CANCEL.kind)),
                across=True,
            ),
        ),
    ),
    Invariant(
        7,
        "cancelled-orders",
        "a cancelled order holds nothing and has not left",
        "sagas with reservations, payments and shipments",
        (
            OfOrders(
                "orders",
                order_rules.is_gone,
                lambda book: int(book.placed and bool(book.completed(CANCEL.kind))),
                across=True,
            ),
        ),
    ),
    Invariant(
        7,
        "returned-orders",
        "what came back of an order had been sold, what was refunded had been captured, both as its returns say",
        "sagas with inventory's returns and payment's refunds",
        (
            OfOrders(
                "orders",
                order_rules.came_back_as_told,
                lambda book: int(book.placed),
                across=True,
            ),
        ),
    ),
    Invariant(
        7,
        "no-strays",
        "no participant has anything of the orchestrator's that the orchestrator does not know of",
        "reservations, payments and shipments with sagas",
        (OfOrders("parts", order_rules.was_ordered, lambda book: len(book.parts), across=True),),
    ),
    Invariant(
        8,
        "answered-once",
        "every accepted request has one effect, and an answer that replays and is true",
        "accepted keys and their answers with what they made",
        (
            OfOrders(
                "orders",
                order_rules.was_answered_once,
                lambda book: int(book.saga is not None or bool(book.requests)),
            ),
            OfOrders("parts", order_rules.parts_were_answered_once, lambda book: len(book.parts)),
            Query(
                service="orchestrator",
                offending=(
                    queries.LATER_ANSWERED_APART,
                    *(
                        queries.without_effect(method, "sagas", "saga_id")
                        for method in ("DispatchOrder", "CancelOrder", "ReturnOrder")
                    ),
                ),
            ),
            Query(
                service="inventory",
                offending=(
                    queries.unanswered("ReserveStock", "ReturnStock"),
                    queries.without_effect("ReserveStock", "reservations", "reservation_id"),
                    queries.without_effect("ReturnStock", "returns", "return_id"),
                ),
            ),
            Query(
                service="shipping",
                offending=(
                    queries.unanswered("CreateShipment"),
                    queries.without_effect("CreateShipment", "shipments", "shipment_id"),
                ),
            ),
            Query(
                service="payment",
                offending=(
                    queries.UNANSWERED_OPERATIONS,
                    queries.without_effect("AuthorizePayment", "payments", "payment_id"),
                ),
            ),
        ),
    ),
    Invariant(
        9,
        "announced-once",
        "whatever happened is in the outbox once, and nothing else is",
        "the outboxes with what happened",
        tuple(
            Query(
                service=service,
                counted=("announcements", queries.COUNT_ANNOUNCEMENTS),
                offending=(apart,),
                noted=("forgotten", queries.FORGOTTEN),
            )
            for service, apart in (
                ("orchestrator", queries.SAGAS_ANNOUNCED_APART),
                ("payment", queries.PAYMENTS_ANNOUNCED_APART),
                ("inventory", queries.RESERVATIONS_ANNOUNCED_APART),
                ("shipping", queries.SHIPMENTS_ANNOUNCED_APART),
            )
        ),
    ),
    Invariant(
        9,
        "passed-on-once",
        "every announcement has one position in its service's log, and the log has no gaps",
        "the outboxes with the logs",
        tuple(
            Query(
                service=service,
                counted=("events", queries.COUNT_POSITIONS),
                offending=(queries.UNNUMBERED, queries.NUMBERED_TWICE, queries.POSITIONS_APART),
            )
            for service in ("orchestrator", "payment", "inventory", "shipping")
        ),
    ),
    Invariant(
        9,
        "applied-once",
        "every listener has applied a source's events up to one position, and is never ahead of the source",
        "inboxes with logs",
        (
            Followed("listeners"),
            *(
                Query(service=service, offending=(), noted=("parked", queries.PARKED_EVENTS))
                for service in ("orchestrator", "payment", "inventory", "shipping")
            ),
        ),
    ),
    Invariant(
        10,
        "statements-add-up",
        "the opening balance of every statement and its lines are its closing balance",
        "statements with their lines",
        (
            Query(
                service="reconciler",
                counted=("statements", reconciler_queries.COUNT_STATEMENTS),
                offending=(reconciler_queries.STATEMENTS_APART, reconciler_queries.LINES_WITHOUT_STATEMENT),
            ),
        ),
    ),
    Invariant(
        10,
        "lines-accounted-for",
        "every line and every item is matched or open, and what is a difference is in one case that stands",
        "lines and items with matches and cases",
        (
            Query(
                service="reconciler",
                counted=("lines", reconciler_queries.COUNT_LINES),
                offending=(reconciler_queries.astray("lines", "line"),),
                noted=("waiting", reconciler_queries.waiting("lines", "line")),
            ),
            Query(
                service="reconciler",
                counted=("items", reconciler_queries.COUNT_ITEMS),
                offending=(reconciler_queries.astray("items", "item"),),
                noted=("waiting", reconciler_queries.waiting("items", "item")),
            ),
        ),
    ),
    Invariant(
        10,
        "matches-have-two-sides",
        "what one rule has matched in one run has lines and items, of one currency",
        "matched lines with matched items",
        (
            Query(
                service="reconciler",
                counted=("matches", reconciler_queries.COUNT_MATCHES),
                offending=(reconciler_queries.MATCHES_APART,),
                noted=("within a tolerance", reconciler_queries.MATCHES_WITHIN_A_TOLERANCE),
            ),
        ),
    ),
    Invariant(
        10,
        "cases-are-their-events",
        "every case has as many events as versions, and stands for something exactly as long as it is not closed",
        "cases with their events and members",
        (
            Query(
                service="reconciler",
                counted=("cases", reconciler_queries.COUNT_CASES),
                offending=(reconciler_queries.CASES_APART,),
            ),
        ),
    ),
    Invariant(
        10,
        "corrections-posted-once",
        "the correction of a case is posted by payment once, as two people have agreed on it, with its journal",
        "cases with payment's corrections and journals",
        (
            Query(
                service="payment",
                counted=("journals", queries.COUNT_CORRECTIONS),
                offending=(queries.CORRECTIONS_APART,),
            ),
            OfCorrections("corrections", is_posted_once, lambda _: 1, across=True),
        ),
    ),
    Invariant(
        11,
        "told-once",
        "every message is to be told to an endpoint once, and delivered if an attempt at it was answered well",
        "deliveries with messages, endpoints and attempts",
        (
            Query(
                service="edge",
                counted=("deliveries", edge_queries.COUNT_DELIVERIES),
                offending=(edge_queries.TOLD_TWICE, edge_queries.DELIVERIES_APART),
            ),
        ),
    ),
    Invariant(
        11,
        "one-owner-per-secret",
        "no two API keys have one secret, and every endpoint that is told has one to sign with",
        "API keys with each other, endpoints with their secrets",
        (
            Query(
                service="edge",
                counted=("keys", edge_queries.COUNT_KEYS),
                offending=(edge_queries.KEYS_OF_SEVERAL, edge_queries.UNSIGNED_ENDPOINTS),
            ),
        ),
    ),
)
