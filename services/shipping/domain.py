"""What may happen to a shipment. Pure: shipments in, decisions out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import StrEnum

from services.kit.errors import NotFound, PaymeshError, Refused

TRACKING_PREFIX = "PM"
TRACKING_LENGTH = 12
"""Characters behind the prefix: 60 bits, short enough to be read out on the telephone."""

ShipmentKey = tuple[str, str]
"""(merchant, shipment id)."""


class State(StrEnum):
    """Where a shipment stands."""

    CREATED = "CREATED"
    CANCELLED = "CANCELLED"
    DISPATCHED = "DISPATCHED"


@dataclass(frozen=True, slots=True)
class Address:
    """Where goods go. `country` is an ISO 3166-1 alpha-2 code."""

    name: str
    street_lines: tuple[str, ...]
    city: str
    postal_code: str
    country: str


@dataclass(frozen=True, slots=True)
class Create:
    """A wish to have an order delivered."""

    merchant_id: str
    order_id: str
    address: Address


@dataclass(frozen=True, slots=True)
class ByKey:
    """Names a shipment by the idempotency key of the call that books it."""

    create_key: str


@dataclass(frozen=True, slots=True)
class End:
    """A wish to cancel or dispatch: `target` is the shipment's id, or the key of its CreateShipment."""

    merchant_id: str
    target: str | ByKey


@dataclass(frozen=True, slots=True)
class Shipment:
    """A booked delivery of one order."""

    merchant_id: str
    shipment_id: str
    order_id: str
    address: Address
    state: State
    tracking_number: str
    created_at_ms: int


def create(wish: Create, unserved_countries: AbstractSet[str]) -> Refused | None:
    """None where a carrier goes, else why not."""
    country = wish.address.country
    if country in unserved_countries:
        return Refused("COUNTRY_NOT_SERVED", f"no carrier goes to {country}", facts={"country": country})
    return None


def new_shipment(wish: Create, shipment_id: str, created_at_ms: int) -> Shipment:
    """What `wish` becomes when it is granted."""
    return Shipment(
        wish.merchant_id,
        shipment_id,
        wish.order_id,
        wish.address,
        State.CREATED,
        tracking_number(shipment_id),
        created_at_ms,
    )


def tracking_number(shipment_id: str) -> str:
    """For example "PMX3K7Q2WN5RTA". Made from the identifier, so that a repeated attempt gets the same one;
    hashed, because numbers that follow each other tell a customer how many parcels a shop sends."""
    digest = hashlib.blake2b(shipment_id.encode(), digest_size=8).digest()
    return TRACKING_PREFIX + base64.b32encode(digest).decode()[:TRACKING_LENGTH]


def order_already_shipped(order_id: str) -> Refused:
    """Another key has booked for this order."""
    return Refused(
        "ORDER_ALREADY_SHIPPED", f"order {order_id!r} has a shipment under another idempotency key"
    )


def cancel(shipment: Shipment) -> Shipment | PaymeshError:
    """Call the delivery off. Idempotent; refused when the goods have left."""
    if shipment.state is State.DISPATCHED:
        return Refused("SHIPMENT_DISPATCHED", "the carrier has the goods; the shipment cannot be cancelled")
    return replace(shipment, state=State.CANCELLED)


def dispatch(shipment: Shipment) -> Shipment | PaymeshError:
    """Hand the goods to the carrier. Idempotent; refused when the shipment was cancelled."""
    if shipment.state is State.CANCELLED:
        return Refused("SHIPMENT_CANCELLED", "the shipment was cancelled; it cannot be dispatched")
    return replace(shipment, state=State.DISPATCHED)


def end(
    shipments: Mapping[ShipmentKey, Shipment],
    keys: Sequence[ShipmentKey],
    decide: Callable[[Shipment], Shipment | PaymeshError],
) -> tuple[list[Shipment | PaymeshError | None], list[Shipment]]:
    """Decide `cancel` or `dispatch` for `keys`, in order. Returns a decision per key (None where there is no
    such shipment) and the shipments that changed, each once."""
    current = dict(shipments)
    decisions: list[Shipment | PaymeshError | None] = []
    changed: dict[ShipmentKey, Shipment] = {}
    for key in keys:
        before = current.get(key)
        decision = decide(before) if before is not None else None
        decisions.append(decision)
        if isinstance(decision, Shipment) and decision != before:
            current[key] = changed[key] = decision
    return decisions, list(changed.values())


def as_made(shipment: Shipment) -> Shipment:
    """The shipment as it was when it was booked."""
    return replace(shipment, state=State.CREATED)


def nothing_booked(merchant_id: str) -> Shipment:
    """What a cancellation by key returns when there never was a shipment, and never will be."""
    return Shipment(merchant_id, "", "", Address("", (), "", "", ""), State.CANCELLED, "", 0)


def no_shipment(shipment_id: str) -> NotFound:
    """A shipment was named that does not exist."""
    return NotFound("UNKNOWN_SHIPMENT", f"there is no shipment {shipment_id!r}")
