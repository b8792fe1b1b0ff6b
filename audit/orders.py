"""Orders as four databases have them: the saga, and what the participants made for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from audit.merge import Key, Stream, merge
from audit.report import AuditError
from audit.snapshot import Row, Snapshots
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1 import stored_pb2
from services.kit.money import Money
from services.orchestrator.domain import PLACE, State, saga_id_of

ORCHESTRATOR = "orchestrator"
"""The caller as which the orchestrator asks its participants."""

_SAGAS = """
SELECT merchant_id, order_id, saga_id, state, caller, key, input, steps::text, reason::text, kind
FROM sagas ORDER BY merchant_id/*bytes*/, order_id/*bytes*/
"""
_REQUESTS = """
SELECT * FROM (
    SELECT merchant_id, regexp_replace(resource_id, '^saga_', 'ord_') AS order_id, caller, key, result
    FROM idempotency WHERE method = 'PlaceOrder'
) AS request ORDER BY merchant_id/*bytes*/, order_id/*bytes*/
"""
# A participant's record with the request that made it. A request is known by the identifier that was born with it.
_RESERVATIONS = """
SELECT r.merchant_id, r.order_id, r.reservation_id, r.state, r.lines::text, i.caller, i.key, i.result
FROM reservations AS r
LEFT JOIN idempotency AS i
  ON i.merchant_id = r.merchant_id AND i.method = 'ReserveStock' AND i.resource_id = r.reservation_id
ORDER BY r.merchant_id/*bytes*/, r.order_id/*bytes*/, r.reservation_id
"""
# What the orchestrator has moved: payments may be captured and refunded by others, too.
_MOVED = """CASE WHEN p.captured_minor = 0 THEN 0 ELSE (
    SELECT coalesce(sum((asked.data->>'amount_minor')::bigint), 0) FROM (
        SELECT type, data, lead(type) OVER (ORDER BY version) AS next FROM payment_events AS e
        WHERE e.merchant_id = p.merchant_id AND e.payment_id = p.payment_id AND e.type <> 'PaymentOutcomeUnknown'
    ) AS asked WHERE asked.type = '{asked}' AND asked.next = '{done}' AND asked.data->>'caller' = 'orchestrator'
) END"""
_TAKEN = _MOVED.format(asked="PaymentCaptureRequested", done="PaymentCaptured")
_GIVEN_BACK = _MOVED.format(asked="PaymentRefundRequested", done="PaymentRefunded")
_PAYMENTS = f"""
SELECT p.merchant_id, p.order_id, p.payment_id, p.state, p.amount_minor, p.currency, {_TAKEN}, {_GIVEN_BACK},
       p.captured_minor, i.caller, i.key, i.result
FROM payments AS p
LEFT JOIN idempotency AS i
  ON i.merchant_id = p.merchant_id AND i.method = 'AuthorizePayment' AND i.resource_id = p.payment_id
ORDER BY p.merchant_id/*bytes*/, p.order_id/*bytes*/, p.payment_id
"""
_SHIPMENTS = """
SELECT s.merchant_id, s.order_id, s.shipment_id, s.state, s.address->>'country', i.caller, i.key, i.result
FROM shipments AS s
LEFT JOIN idempotency AS i
  ON i.merchant_id = s.merchant_id AND i.method = 'CreateShipment' AND i.resource_id = s.shipment_id
ORDER BY s.merchant_id/*bytes*/, s.order_id/*bytes*/, s.shipment_id
"""
_RETURNS = """
SELECT merchant_id, order_id, return_id, lines::text FROM returns ORDER BY merchant_id/*bytes*/, order_id/*bytes*/
"""
_PRESENT = """
SELECT merchant_id, order_id, saga_id, state FROM sagas
WHERE (merchant_id, saga_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
UNION
SELECT merchant_id, order_id, saga_id, state FROM sagas
WHERE kind <> 'place' AND (merchant_id, order_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(orders)s::text[]))
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A call with an idempotency key. `result` is the stored answer; None where the answer is read back from what the
    call has made, or is still to come."""

    caller: str
    key: str
    result: bytes | None


@dataclass(frozen=True, slots=True)
class Part:
    """What one participant made for an order. `requests` are the calls that made it: one, if all is well."""

    id: str
    state: str
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Reservation(Part):
    """With pieces by sku."""

    lines: dict[str, int]


@dataclass(frozen=True, slots=True)
class Payment(Part):
    """With what it is for, and what was moved of it."""

    amount: Money
    taken_minor: int
    """Captured by the orchestrator."""
    given_back_minor: int
    """Refunded by the orchestrator."""
    captured_minor: int
    """By whomever."""


@dataclass(frozen=True, slots=True)
class Shipment(Part):
    """With where it goes."""

    country: str


@dataclass(frozen=True, slots=True)
class Saga:
    """A saga as it is stored."""

    saga_id: str
    state: State
    caller: str
    key: str
    order: pb.PlaceOrderRequest
    steps: dict[str, tuple[str, int, dict[str, str]]]
    """By name: state, attempts, what the do answered."""
    reason: dict[str, str] | None
    fault: str = ""
    """Why the row cannot be read; empty if it can."""

    @property
    def facts(self) -> dict[str, str]:
        """Everything that the steps have answered."""
        return {key: value for _, _, facts in self.steps.values() for key, value in facts.items()}


@dataclass(frozen=True, slots=True)
class Later:
    """A saga that was begun with a placed order."""

    saga_id: str
    kind: str
    state: State
    lines: dict[str, int]
    """What comes back; empty unless it is a return."""
    amount_minor: int
    """What is refunded for it."""
    fault: str = ""
    """Why the row cannot be read; empty if it can."""


@dataclass(frozen=True, slots=True)
class OrderBook:
    """All that is known under one order's id."""

    merchant_id: str
    id: str
    saga: Saga | None
    requests: Sequence[Request]
    """PlaceOrder calls that were given this order's id at birth."""
    reservations: Sequence[Reservation]
    payments: Sequence[Payment]
    shipments: Sequence[Shipment]
    later: Sequence[Later] = ()
    """What was begun with it after it was placed."""
    returns: Sequence[dict[str, int]] = ()
    """What inventory has put back for it: pieces by sku, of each return."""

    def completed(self, kind: str) -> list[Later]:
        """Its later sagas of a kind that are completed."""
        return [one for one in self.later if one.kind == kind and one.state is State.COMPLETED]

    @property
    def placed(self) -> bool:
        """Whether it was placed, and no person is needed for it."""
        return (
            self.saga is not None
            and self.saga.state is State.COMPLETED
            and all(one.state is not State.PARKED for one in self.later)
        )

    @property
    def parts(self) -> Sequence[Part]:
        """What the participants have."""
        return [*self.reservations, *self.payments, *self.shipments]

    @property
    def in_flight(self) -> bool:
        """Whether one of its sagas has not ended."""
        return any(not state.ended for state in self.states.values())

    @property
    def states(self) -> dict[str, State]:
        """Where its sagas stand, by their numbers."""
        placing = {self.saga.saga_id: self.saga.state} if self.saga is not None else {}
        return placing | {one.saga_id: one.state for one in self.later}

    @property
    def ordered(self) -> bool:
        """Whether the orchestrator has, or should have, heard of it: participants may also be called by others."""
        return self.saga is not None or any(
            request.caller == ORCHESTRATOR for part in self.parts for request in part.requests
        )


async def read_orders(snapshots: Snapshots) -> AsyncIterator[OrderBook]:
    """Every order, by ascending (merchant, id)."""
    streams = [
        Stream(snapshots["orchestrator"], _SAGAS),
        Stream(snapshots["orchestrator"], _REQUESTS),
        Stream(snapshots["inventory"], _RESERVATIONS),
        Stream(snapshots["payment"], _PAYMENTS),
        Stream(snapshots["shipping"], _SHIPMENTS),
        Stream(snapshots["inventory"], _RETURNS),
    ]
    async for (merchant_id, order_id), (sagas, requests, reserved, paid, shipped, back) in merge(streams):
        placing = [row for row in sagas if row[9] == PLACE.kind]
        yield OrderBook(
            merchant_id,
            order_id,
            _saga(placing[0]) if placing else None,
            [Request(*row[2:]) for row in requests],
            [Reservation(i, r[3], asked, orjson.loads(r[4])) for i, r, asked in _parts(reserved)],
            [Payment(i, r[3], asked, Money(r[4], r[5]), *r[6:9]) for i, r, asked in _parts(paid)],
            [Shipment(i, r[3], asked, r[4]) for i, r, asked in _parts(shipped)],
            [_later(row) for row in sagas if row[9] != PLACE.kind],
            [orjson.loads(row[3]) for row in back],
        )


async def unmoved_orders(snapshots: Snapshots, books: Sequence[OrderBook]) -> set[Key]:
    """Those whose sagas stand at present where they stood in the snapshot."""
    rows = await snapshots["orchestrator"].fetch_present(
        _PRESENT,
        {
            "merchants": [b.merchant_id for b in books],
            "ids": [_saga_id(b) for b in books],
            "orders": [b.id for b in books],
        },
    )
    now: dict[Key, dict[str, str]] = {}
    for merchant, order_id, saga_id, state in rows:
        now.setdefault((merchant, order_id), {})[saga_id] = state
    return {
        (book.merchant_id, book.id)
        for book in books
        if now.get((book.merchant_id, book.id), {}) == book.states
    }


def _saga_id(book: OrderBook) -> str:
    return book.saga.saga_id if book.saga else saga_id_of(book.id)


def _later(row: Row) -> Later:
    state = _state(row)
    try:
        task = stored_pb2.OrderTask.FromString(row[6])
    except DecodeError as error:
        return Later(row[2], row[9], state, {}, 0, str(error))
    lines = {line.sku: line.quantity for line in task.lines}
    return Later(row[2], row[9], state, lines, task.amount.amount_minor)


def _state(row: Row) -> State:
    try:
        return State(row[3])
    except ValueError as error:
        raise AuditError(f"saga {row[2]} is in a state that this audit does not know: {error}") from error


def _saga(row: Row) -> Saga:
    state = _state(row)
    try:
        order = pb.PlaceOrderRequest.FromString(row[6])
        stored: dict[str, Any] = orjson.loads(row[7])
        steps = {name: (state, attempts, facts) for name, (state, attempts, facts) in stored.items()}
    except (DecodeError, ValueError, TypeError) as error:
        return Saga(row[2], state, row[4], row[5], pb.PlaceOrderRequest(), {}, None, str(error))
    reason = orjson.loads(row[8]) if row[8] else None
    return Saga(row[2], state, row[4], row[5], order, steps, reason)


def _parts(rows: Sequence[Row]) -> list[tuple[str, Row, list[Request]]]:
    """A participant's rows of one order by the identifier of what it made, each with the requests that made it."""
    found: dict[str, tuple[Row, list[Request]]] = {}
    for row in rows:
        _, requests = found.setdefault(row[2], (row, []))
        if row[-2] is not None:
            requests.append(Request(*row[-3:]))
    return [(part_id, row, requests) for part_id, (row, requests) in found.items()]
