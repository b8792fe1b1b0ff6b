"""The RPCs of shipping: proto in, domain, proto out."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from paymesh.shipping.v1 import events_pb2
from paymesh.shipping.v1 import shipping_pb2 as pb
from services.kit.checks import KEY_LENGTH_MAX, Checks
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.idempotency import bar, run_set
from services.kit.outbox import Announcement, announce
from services.kit.rpc.method import SetMethod
from services.kit.rpc.stored import Pack
from services.kit.rpc.values import write_timestamp
from services.kit.sets import Answer, Command, Failed, Outcome
from services.kit.telemetry import traceparent_of
from services.shipping import domain, store
from services.shipping.domain import Address, ByKey, Create, End, Shipment

NAME = "paymesh.shipping.v1.ShippingService"
TEXT_LENGTH_MAX = 200
STREET_LINES_MAX = 10
POSTAL_CODE_LENGTH_MAX = 32

_STATES = {
    domain.State.CREATED: pb.SHIPMENT_STATE_CREATED,
    domain.State.CANCELLED: pb.SHIPMENT_STATE_CANCELLED,
    domain.State.DISPATCHED: pb.SHIPMENT_STATE_DISPATCHED,
}


class ShippingService:
    """See the contract, paymesh/shipping/v1/shipping.proto."""

    def __init__(self, database: Database, unserved_countries: AbstractSet[str]) -> None:
        self._database = database
        self._unserved_countries = unserved_countries
        self._created = Pack(pb.CreateShipmentResponse, _recall)
        create = SetMethod(
            f"{NAME}/CreateShipment",
            parse=_create,
            handle=self._create,
            batch_response=pb.BatchCreateShipmentsResponse,
            id_prefix="shp",
        )
        cancel = SetMethod(
            f"{NAME}/CancelShipment",
            parse=_cancel,
            handle=self._cancel,
            batch_response=pb.BatchCancelShipmentsResponse,
        )
        dispatch = SetMethod(
            f"{NAME}/DispatchShipment",
            parse=_dispatch,
            handle=self._dispatch,
            batch_response=pb.BatchDispatchShipmentsResponse,
        )
        self.CreateShipment, self.BatchCreateShipments = create.single, create.batch
        self.CancelShipment, self.BatchCancelShipments = cancel.single, cancel.batch
        self.DispatchShipment, self.BatchDispatchShipments = dispatch.single, dispatch.batch
        self.creating, self.cancelling = create, cancel
        self._methods = (create, cancel, dispatch)

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        for method in self._methods:
            await method.drain()

    async def _create(
        self, commands: Sequence[Command[Create]], deadline: Deadline
    ) -> list[Outcome[pb.CreateShipmentResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[Create]]
        ) -> list[Outcome[pb.CreateShipmentResponse]]:
            created_at_ms = now_ms()
            refusals = [domain.create(c.request, self._unserved_countries) for c in fresh]
            wishes = [domain.new_shipment(c.request, c.resource_id, created_at_ms) for c in fresh]
            granted = [wish for wish, refusal in zip(wishes, refusals, strict=True) if refusal is None]
            made = await store.insert_shipments(tx, granted) if granted else set()
            outcomes: list[Outcome[pb.CreateShipmentResponse]] = []
            announcements = []
            for command, wish, refusal in zip(fresh, wishes, refusals, strict=True):
                if wish.shipment_id in made:
                    message = _shipment(wish)
                    outcomes.append(Answer(pb.CreateShipmentResponse(shipment=message)))
                    announcements.append(_announcement(command, events_pb2.ShipmentCreated(shipment=message)))
                else:
                    outcomes.append(Failed(refusal or domain.order_already_shipped(wish.order_id)))
            announce(tx, announcements)
            return outcomes

        return await run_set(self._database, "CreateShipment", commands, work, self._created, deadline)

    async def _cancel(
        self, commands: Sequence[Command[End]], deadline: Deadline
    ) -> list[Outcome[pb.CancelShipmentResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[End]]
        ) -> list[Outcome[pb.CancelShipmentResponse]]:
            keys = [_do_key(c) for c in fresh if isinstance(c.request.target, ByKey)]
            arrived = await bar(tx, "CreateShipment", keys, self._created) if keys else {}
            ids = [(c.merchant_id, _target(c, arrived)) for c in fresh]
            decisions, ended = domain.end(await store.lock_shipments(tx, ids), ids, domain.cancel)
            store.save_ended(tx, ended)
            outcomes: list[Outcome[pb.CancelShipmentResponse]] = []
            for command, decision in zip(fresh, decisions, strict=True):
                if decision is None and isinstance(command.request.target, ByKey):
                    decision = domain.nothing_booked(command.merchant_id)
                if isinstance(decision, Shipment):
                    outcomes.append(Answer(pb.CancelShipmentResponse(shipment=_shipment(decision))))
                else:
                    outcomes.append(Failed(decision or domain.no_shipment(str(command.request.target))))
            announce(tx, _ended(fresh, decisions, ended, events_pb2.ShipmentCancelled))
            return outcomes

        pack = Pack(pb.CancelShipmentResponse)
        return await run_set(self._database, "CancelShipment", commands, work, pack, deadline)

    async def _dispatch(
        self, commands: Sequence[Command[End]], deadline: Deadline
    ) -> list[Outcome[pb.DispatchShipmentResponse]]:
        async def work(
            tx: Transaction, fresh: list[Command[End]]
        ) -> list[Outcome[pb.DispatchShipmentResponse]]:
            ids = [(c.merchant_id, _target(c, {})) for c in fresh]
            decisions, ended = domain.end(await store.lock_shipments(tx, ids), ids, domain.dispatch)
            store.save_ended(tx, ended)
            announce(tx, _ended(fresh, decisions, ended, events_pb2.ShipmentDispatched))
            return [
                Answer(pb.DispatchShipmentResponse(shipment=_shipment(d)))
                if isinstance(d, Shipment)
                else Failed(d or domain.no_shipment(str(c.request.target)))
                for c, d in zip(fresh, decisions, strict=True)
            ]

        pack = Pack(pb.DispatchShipmentResponse)
        return await run_set(self._database, "DispatchShipment", commands, work, pack, deadline)

    async def GetShipment(self, request: pb.GetShipmentRequest, context: Any) -> pb.GetShipmentResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("shipment_id", request.shipment_id)
        checks.done()
        shipment = await store.find_shipment(self._database, request.merchant_id, request.shipment_id)
        if shipment is None:
            raise domain.no_shipment(request.shipment_id)
        return pb.GetShipmentResponse(shipment=_shipment(shipment))


async def _recall(
    tx: Transaction, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], pb.CreateShipmentResponse]:
    """The answers of CreateShipment, whatever has become of the shipments since."""
    made = await store.lock_shipments(tx, keys)
    return {key: pb.CreateShipmentResponse(shipment=_shipment(domain.as_made(s))) for key, s in made.items()}


def _create(request: pb.CreateShipmentRequest) -> Create:
    address = request.address
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_id", request.order_id)
    checks.text("address.name", address.name, max_length=TEXT_LENGTH_MAX)
    checks.number("address.street_lines", len(address.street_lines), at_least=0, at_most=STREET_LINES_MAX)
    for place, line in enumerate(address.street_lines[:STREET_LINES_MAX]):
        checks.text(f"address.street_lines[{place}]", line, max_length=TEXT_LENGTH_MAX, optional=True)
    checks.text("address.city", address.city, max_length=TEXT_LENGTH_MAX, optional=True)
    checks.text("address.postal_code", address.postal_code, max_length=POSTAL_CODE_LENGTH_MAX, optional=True)
    checks.country("address.country", address.country)
    checks.done()
    lines = tuple(address.street_lines)
    where = Address(address.name, lines, address.city, address.postal_code, address.country)
    return Create(request.merchant_id, request.order_id, where)


def _cancel(request: pb.CancelShipmentRequest) -> End:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    by_key = request.WhichOneof("target") == "create_key"
    if by_key:
        checks.text("create_key", request.create_key, max_length=KEY_LENGTH_MAX)
    else:
        checks.text("shipment_id", request.shipment_id)
    checks.done()
    return End(request.merchant_id, ByKey(request.create_key) if by_key else request.shipment_id)


def _dispatch(request: pb.DispatchShipmentRequest) -> End:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("shipment_id", request.shipment_id)
    checks.done()
    return End(request.merchant_id, request.shipment_id)


def _do_key(command: Command[End]) -> tuple[str, str, str]:
    """Identity of the CreateShipment that the command undoes."""
    target = command.request.target
    return (command.merchant_id, command.caller, target.create_key if isinstance(target, ByKey) else "")


def _target(command: Command[End], arrived: dict[tuple[str, str, str], str]) -> str:
    """Identifier of the shipment that the command names; empty when it names a call that never arrived."""
    target = command.request.target
    return arrived.get(_do_key(command), "") if isinstance(target, ByKey) else target


def _shipment(shipment: Shipment) -> pb.Shipment:
    message = pb.Shipment(
        merchant_id=shipment.merchant_id,
        shipment_id=shipment.shipment_id,
        order_id=shipment.order_id,
        state=_STATES[shipment.state],
        tracking_number=shipment.tracking_number,
    )
    if shipment.shipment_id:
        write_timestamp(message.created_at, shipment.created_at_ms)
        to, address = message.address, shipment.address
        to.name = address.name
        to.street_lines.extend(address.street_lines)
        to.city = address.city
        to.postal_code = address.postal_code
        to.country = address.country
    return message


def _announcement(command: Command[Any], event: Any) -> Announcement:
    shipment: pb.Shipment = event.shipment
    return Announcement(command.merchant_id, shipment.shipment_id, event, traceparent_of(command.span))


def _ended(
    commands: Sequence[Command[End]], decisions: Sequence[object], changed: Sequence[Shipment], event: Any
) -> list[Announcement]:
    """One announcement per shipment that changed, with the trace of the command that changed it."""
    by = {id(d): c for c, d in zip(reversed(commands), reversed(decisions), strict=True)}
    return [_announcement(by[id(s)], event(shipment=_shipment(s))) for s in changed]
