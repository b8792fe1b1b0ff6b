"""What may happen to stock. Pure: stock in, decisions out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from services.kit.errors import NotFound, PaymeshError, Refused, Retryable

ProductKey = tuple[str, str]
"""(merchant, sku)."""


class State(StrEnum):
    """Where a reservation stands."""

    RESERVED = "RESERVED"
    RELEASED = "RELEASED"
    COMMITTED = "COMMITTED"


@dataclass(frozen=True, slots=True)
class NewProduct:
    """A product to be created, with its first stock in pieces."""

    merchant_id: str
    sku: str
    name: str
    initial_quantity: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """Pieces that arrive for a product."""

    merchant_id: str
    sku: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Product:
    """A product and its stock, in pieces."""

    merchant_id: str
    sku: str
    name: str
    on_hand: int
    reserved: int

    @property
    def available(self) -> int:
        """Pieces that can still be promised."""
        return self.on_hand - self.reserved


@dataclass(frozen=True, slots=True)
class Reserve:
    """A wish for stock: pieces by sku, ascending."""

    merchant_id: str
    order_id: str
    lines: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ByKey:
    """Names a reservation by the idempotency key of the call that makes it."""

    reserve_key: str


@dataclass(frozen=True, slots=True)
class End:
    """A wish to end a reservation: `target` is its identifier, or the key of its ReserveStock."""

    merchant_id: str
    target: str | ByKey


@dataclass(frozen=True, slots=True)
class Reservation:
    """Stock set aside for one order."""

    merchant_id: str
    reservation_id: str
    order_id: str
    lines: Mapping[str, int]
    state: State
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Return:
    """A wish to put goods of a reservation back on the shelf: pieces by sku, ascending."""

    merchant_id: str
    reservation_id: str
    lines: Mapping[str, int]

    @property
    def reservation_key(self) -> tuple[str, str]:
        """What the reservation is stored under."""
        return (self.merchant_id, self.reservation_id)


@dataclass(frozen=True, slots=True)
class StockReturn:
    """Goods of one reservation that came back."""

    merchant_id: str
    return_id: str
    reservation_id: str
    order_id: str
    lines: Mapping[str, int]
    created_at_ms: int

    @property
    def key(self) -> tuple[str, str]:
        """What it is stored under."""
        return (self.merchant_id, self.return_id)


def new_product(wish: NewProduct) -> Product:
    """What `wish` becomes."""
    return Product(wish.merchant_id, wish.sku, wish.name, wish.initial_quantity, 0)


def product_exists(sku: str) -> Refused:
    """Another key has created this product."""
    return Refused("PRODUCT_EXISTS", f"product {sku!r} exists", facts={"sku": sku})


def merge_lines(lines: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Pieces by sku, ascending; lines of one sku add up."""
    merged: dict[str, int] = {}
    for sku, quantity in lines:
        merged[sku] = merged.get(sku, 0) + quantity
    return dict(sorted(merged.items()))


def reserve(
    stock: Mapping[ProductKey, Product], wishes: Sequence[Reserve | Reservation]
) -> list[Refused | None]:
    """Decide wishes in order against one stock: None where all lines can be set aside, else why not. A wish that is too
    large does not stand in the way of smaller ones behind it."""
    left = {key: product.available for key, product in stock.items()}
    decisions: list[Refused | None] = []
    for wish in wishes:
        refusal = _refusal(left, wish)
        if refusal is None:
            for sku, quantity in wish.lines.items():
                left[(wish.merchant_id, sku)] -= quantity
        decisions.append(refusal)
    return decisions


def _refusal(left: Mapping[ProductKey, int], wish: Reserve | Reservation) -> Refused | None:
    for sku, quantity in wish.lines.items():
        available = left.get((wish.merchant_id, sku))
        if available is None:
            return Refused("UNKNOWN_PRODUCT", f"there is no product {sku!r}", facts={"sku": sku})
        if available < quantity:
            facts = {"sku": sku, "wanted": str(quantity), "available": str(available)}
            return Refused(
                "OUT_OF_STOCK", f"{quantity} of {sku!r} wanted, {available} available", facts=facts
            )
    return None


def deliver(stock: Mapping[ProductKey, Product], deliveries: Sequence[Delivery]) -> list[Product | NotFound]:
    """Add deliveries in order: the product as it is after each, or why not."""
    current = dict(stock)
    results: list[Product | NotFound] = []
    for delivery in deliveries:
        key = (delivery.merchant_id, delivery.sku)
        if key in current:
            current[key] = replace(current[key], on_hand=current[key].on_hand + delivery.quantity)
            results.append(current[key])
        else:
            results.append(NotFound("UNKNOWN_PRODUCT", f"there is no product {delivery.sku!r}"))
    return results


def order_is_taken(wish: Reserve | Reservation, lost: Collection[tuple[str, str]]) -> Refused | Retryable:
    """Another key has reserved for this order; or, in `lost`, wanted to in this very set and was refused itself, which
    leaves the order free for the next attempt."""
    if (wish.merchant_id, wish.order_id) in lost:
        return Retryable(
            "ORDER_CONTENDED", f"another reservation for order {wish.order_id!r} was just refused"
        )
    return Refused(
        "ORDER_ALREADY_RESERVED", f"order {wish.order_id!r} has a reservation under another idempotency key"
    )


def release(reservation: Reservation) -> Reservation | PaymeshError:
    """Give stock back. Idempotent; refused when the goods have left."""
    if reservation.state is State.COMMITTED:
        return Refused("RESERVATION_COMMITTED", "the goods have left the warehouse; they cannot be released")
    return replace(reservation, state=State.RELEASED)


def commit(reservation: Reservation) -> Reservation | PaymeshError:
    """Take stock out for good. Idempotent; refused when it was given back."""
    if reservation.state is State.RELEASED:
        return Refused("RESERVATION_RELEASED", "the stock was given back; it cannot be committed")
    return replace(reservation, state=State.COMMITTED)


def end(
    reservations: Mapping[tuple[str, str], Reservation],
    keys: Sequence[tuple[str, str]],
    decide: Callable[[Reservation], Reservation | PaymeshError],
) -> tuple[list[Reservation | PaymeshError | None], list[Reservation]]:
    """Decide `release` or `commit` for (merchant, reservation id) `keys`, in order. Returns a decision per key (None
    for a reservation that does not exist) and the reservations that changed, each once."""
    current = dict(reservations)
    decisions: list[Reservation | PaymeshError | None] = []
    changed: dict[tuple[str, str], Reservation] = {}
    for key in keys:
        before = current.get(key)
        decision = decide(before) if before is not None else None
        decisions.append(decision)
        if isinstance(decision, Reservation) and decision != before:
            current[key] = changed[key] = decision
    return decisions, list(changed.values())


def new_reservation(wish: Reserve, reservation_id: str, created_at_ms: int) -> Reservation:
    """What `wish` becomes when it is granted."""
    return Reservation(
        wish.merchant_id, reservation_id, wish.order_id, wish.lines, State.RESERVED, created_at_ms
    )


def as_made(reservation: Reservation) -> Reservation:
    """The reservation as it was when it was made."""
    return replace(reservation, state=State.RESERVED)


def nothing_reserved(merchant_id: str) -> Reservation:
    """What a release by key returns when there never was a reservation, and never will be."""
    return Reservation(merchant_id, "", "", {}, State.RELEASED, 0)


def no_reservation(reservation_id: str) -> NotFound:
    """A reservation was named that does not exist."""
    return NotFound("UNKNOWN_RESERVATION", f"there is no reservation {reservation_id!r}")


def take_back(
    reservations: Mapping[tuple[str, str], Reservation],
    earlier: Iterable[StockReturn],
    wishes: Sequence[tuple[Return, str]],
    now_ms: int,
) -> list[StockReturn | PaymeshError]:
    """Decide returns, each with the identifier that it would get, in order: all lines or none, and of no product more
    than was committed and has not come back. `earlier` are all returns of these reservations so far."""
    out = {key: dict(reservation.lines) for key, reservation in reservations.items()}
    for made in earlier:
        _come_back(out[made.merchant_id, made.reservation_id], made.lines)
    decisions: list[StockReturn | PaymeshError] = []
    for wish, return_id in wishes:
        reservation = reservations.get(wish.reservation_key)
        refusal = (
            no_reservation(wish.reservation_id)
            if reservation is None
            else _not_to_be_returned(reservation, out[wish.reservation_key], wish)
        )
        if reservation is None or refusal is not None:
            assert refusal is not None
            decisions.append(refusal)
            continue
        _come_back(out[wish.reservation_key], wish.lines)
        decisions.append(
            StockReturn(
                wish.merchant_id,
                return_id,
                wish.reservation_id,
                reservation.order_id,
                wish.lines,
                now_ms,
            )
        )
    return decisions


def _come_back(out: dict[str, int], lines: Mapping[str, int]) -> None:
    for sku, quantity in lines.items():
        out[sku] -= quantity


def _not_to_be_returned(reservation: Reservation, out: Mapping[str, int], wish: Return) -> Refused | None:
    if reservation.state is not State.COMMITTED:
        return Refused(
            "RESERVATION_NOT_COMMITTED",
            f"the goods have not left: reservation {wish.reservation_id!r} is {reservation.state}",
            facts={"state": str(reservation.state)},
        )
    for sku, quantity in wish.lines.items():
        left = out.get(sku, 0)
        if left < quantity:
            return Refused(
                "RETURN_EXCEEDS_COMMITTED",
                f"{quantity} of {sku!r} come back, {left} are out",
                facts={"sku": sku, "returned": str(quantity), "out": str(left)},
            )
    return None


def pieces(reservations: Iterable[Reservation | StockReturn]) -> dict[ProductKey, int]:
    """Pieces by product over several reservations or returns, ascending: hot products are touched once per set."""
    totals: dict[ProductKey, int] = {}
    for reservation in reservations:
        for sku, quantity in reservation.lines.items():
            key = (reservation.merchant_id, sku)
            totals[key] = totals.get(key, 0) + quantity
    return dict(sorted(totals.items()))
