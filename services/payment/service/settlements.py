"""The RPCs that settle, and that tell of settlements."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import orjson

from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import settlement_pb2 as pb
from paymesh.payment.v1 import settlement_pb2_grpc
from services.kit.checks import Checks, page_size
from services.kit.db import Database
from services.kit.errors import Invalid, NotFound
from services.kit.rpc.values import write_timestamp
from services.payment import store
from services.payment.domain.settlement import (
    ItemKind,
    PayoutState,
    Settlement,
    SettlementState,
)
from services.payment.service.settling import Clock, Settling

SETTLEMENT_NAME = "paymesh.payment.v1.SettlementService"
TOKEN_LENGTH_MAX = 400
"""Of page tokens and cursors: a day and three identifiers, in JSON and base64."""

_STATES = {state: pb.SettlementState.Value(f"SETTLEMENT_STATE_{state}") for state in SettlementState}
_PAYOUT_STATES = {state: pb.PayoutState.Value(f"PAYOUT_STATE_{state}") for state in PayoutState}
_KINDS = {kind: pb.SettlementItemKind.Value(f"SETTLEMENT_ITEM_KIND_{kind}") for kind in ItemKind}


class SettlementService(settlement_pb2_grpc.SettlementServiceServicer):
    """See the contract, paymesh/payment/v1/settlement.proto. `wake` tells the runner that there is work."""

    def __init__(
        self, database: Database, settling: Settling, clock: Clock, wake: Callable[[], None]
    ) -> None:
        self._database = database
        self._settling = settling
        self._clock = clock
        self._wake = wake

    async def drain(self) -> None:
        """Nothing is gathered here: every call ends by itself."""

    async def RunSettlement(self, request: pb.RunSettlementRequest, context: Any) -> pb.RunSettlementResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id, optional=True)
        day = _day(checks, "date", request.date)
        today = self._clock().date()
        if day is not None and day > today:
            checks.fail("date", f"is {day}, and today is {today} (UTC): nothing was captured then yet")
        checks.done()
        assert day is not None
        await self._settling.sweep()
        made = await self._settling.settle_day(request.merchant_id, day)
        self._wake()
        return pb.RunSettlementResponse(made=made)

    async def GetSettlement(self, request: pb.GetSettlementRequest, context: Any) -> pb.GetSettlementResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.text("settlement_id", request.settlement_id)
        checks.done()
        found = await store.find_settlement(self._database, (request.merchant_id, request.settlement_id))
        if found is None:
            raise NotFound("UNKNOWN_SETTLEMENT", f"there is no settlement {request.settlement_id!r}")
        return pb.GetSettlementResponse(settlement=_settlement(*found))

    async def ListSettlements(
        self, request: pb.ListSettlementsRequest, context: Any
    ) -> pb.ListSettlementsResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id, optional=True)
        days = _days(checks, "from_date", request.from_date, "to_date", request.to_date)
        before = _place(checks, "page_token", request.page_token, (date, str, str))
        checks.done()
        size = page_size(request.page_size)
        found = await store.list_settlements(
            self._database,
            request.merchant_id,
            days or (store.FIRST_DAY, store.LAST_DAY),
            request.open_only,
            (before[0], before[1], before[2]) if before else (store.LAST_DAY, "", ""),
            size + 1,
        )
        last = found[size - 1][0] if len(found) > size else None
        return pb.ListSettlementsResponse(
            settlements=[_settlement(*one) for one in found[:size]],
            next_page_token=_token(last.day.isoformat(), last.merchant_id, last.settlement_id)
            if last
            else "",
        )

    async def ListSettlementItems(
        self, request: pb.ListSettlementItemsRequest, context: Any
    ) -> pb.ListSettlementItemsResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id, optional=True)
        days = _days(checks, "from_date", request.from_date, "to_date", request.to_date)
        booked = _days(checks, "booked_from", request.booked_from, "booked_to", request.booked_to)
        unsettled = request.unsettled_only
        if unsettled and (days or booked):
            checks.fail("unsettled_only", "goes without dates: what is in no settlement has none")
        if unsettled:
            place = _place(checks, "after_cursor", request.after_cursor, (str, str, int))
        else:
            place = _place(checks, "after_cursor", request.after_cursor, (date, str, str, str, int))
        checks.done()
        size = _limit(request.limit)
        if unsettled:
            after = (place[0], place[1], place[2]) if place else ("", "", -1)
            lines = await store.list_unsettled_lines(self._database, request.merchant_id, after, size + 1)
        else:
            begin = (place[0], place[1], place[2], place[3], place[4]) if place else store.LIST_BEGINNING
            lines = await store.list_lines(
                self._database,
                request.merchant_id,
                days or (store.FIRST_DAY, store.LAST_DAY),
                booked,
                begin,
                size + 1,
            )
        page = lines[:size]
        return pb.ListSettlementItemsResponse(
            items=[_item(line) for line in page],
            next_cursor=_cursor(page[-1]) if page else request.after_cursor,
            more=len(lines) > size,
        )


def _day(checks: Checks, field: str, text: str) -> date | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    # Python reads more than one form of it, and years that the stores do not know.
    if day is None or day.isoformat() != text or not store.FIRST_DAY <= day <= store.LAST_DAY:
        checks.fail(field, f"{text[:20]!r} is not a day such as '2026-11-25'")
        return None
    return day


def _days(
    checks: Checks, from_field: str, from_text: str, to_field: str, to_text: str
) -> tuple[date, date] | None:
    """First and last day; None where neither was given."""
    first = _day(checks, from_field, from_text) if from_text else store.FIRST_DAY
    last = _day(checks, to_field, to_text) if to_text else store.LAST_DAY
    if not (from_text or to_text) or first is None or last is None:
        return None
    if first > last:
        checks.fail(from_field, f"is {first}, which is behind {to_field}, {last}")
    return first, last


def _limit(requested: int) -> int:
    try:
        return page_size(requested)
    except Invalid as invalid:
        raise Invalid.field("limit", invalid.violations[0].description) from None


def _token(*place: str | int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode()


def _place(checks: Checks, field: str, token: str, kinds: Sequence[type]) -> list[Any] | None:
    """What a token of ours says; None for an empty one."""
    if not token:
        return None
    try:
        place = orjson.loads(base64.urlsafe_b64decode(token)) if len(token) <= TOKEN_LENGTH_MAX else None
        if isinstance(place, list) and len(place) == len(kinds):
            return [_read(value, kind) for value, kind in zip(place, kinds, strict=True)]
    except (binascii.Error, ValueError):
        pass
    checks.fail(field, "is not one that an answer of this method had")
    return None


def _read(value: Any, kind: type) -> Any:
    """A part of a token. Raises ValueError."""
    if kind is date and isinstance(value, str):
        return date.fromisoformat(value)
    if type(value) is not kind:
        raise ValueError("of another kind")
    if (isinstance(value, str) and "\x00" in value) or (isinstance(value, int) and not -1 <= value < 2**31):
        raise ValueError("out of range")
    return value


def _cursor(line: store.Line) -> str:
    if line.day is None:
        return _token(line.merchant_id, line.payment_id, line.version)
    return _token(line.day.isoformat(), line.merchant_id, line.settlement_id, line.payment_id, line.version)


def _settlement(settlement: Settlement, items_waiting: int) -> pb.Settlement:
    """A settlement on the wire."""

    def money(amount_minor: int) -> money_pb2.Money:
        return money_pb2.Money(amount_minor=amount_minor, currency=settlement.currency)

    message = pb.Settlement(
        merchant_id=settlement.merchant_id,
        settlement_id=settlement.settlement_id,
        date=settlement.day.isoformat(),
        number=settlement.number,
        currency=settlement.currency,
        state=_STATES[settlement.state],
        waits_for=settlement.waits_for,
        items=settlement.items,
        items_waiting=items_waiting,
        captured=money(settlement.captured_minor),
        refunded=money(settlement.refunded_minor),
        fees=money(settlement.fee_minor),
        due=money(settlement.due_minor),
        brought_forward=money(settlement.brought_forward_minor),
        payout=money(settlement.payout_minor),
        payout_state=_PAYOUT_STATES[settlement.payout_state],
        payout_reference=settlement.payout_reference,
        payout_refusal=settlement.payout_refusal,
        processor_reference=settlement.processor_reference,
        booked_on=_text(settlement.booked_on),
        value_on=_text(settlement.value_on),
        payout_booked_on=_text(settlement.payout_booked_on),
        payout_value_on=_text(settlement.payout_value_on),
    )
    if settlement.state is not SettlementState.SETTLING:
        message.processor_fees.CopyFrom(money(settlement.processor_fee_minor))
        message.net.CopyFrom(money(settlement.net_minor))
    write_timestamp(message.created_at, settlement.created_at_ms)
    if settlement.completed_at_ms:
        write_timestamp(message.completed_at, settlement.completed_at_ms)
    return message


def _item(line: store.Line) -> pb.SettlementItem:
    """A capture, a refund or a payout on the wire."""
    message = pb.SettlementItem(
        merchant_id=line.merchant_id,
        kind=_KINDS[line.kind] if line.kind else pb.SETTLEMENT_ITEM_KIND_PAYOUT,
        settlement_id=line.settlement_id,
        settlement_date=_text(line.day),
        payment_id=line.payment_id,
        version=line.version,
        operation_key=line.operation_key,
        bank_reference=line.bank_reference,
        batch_reference=line.batch_reference,
        booked_on=_text(line.booked_on),
        value_on=_text(line.value_on),
        amount=money_pb2.Money(amount_minor=line.amount_minor, currency=line.currency),
        fee=money_pb2.Money(amount_minor=line.fee_minor, currency=line.currency),
    )
    if line.payout_state is not None:
        message.payout_state = _PAYOUT_STATES[line.payout_state]
    if line.processor_fee_minor is not None:
        message.processor_fee.CopyFrom(
            money_pb2.Money(amount_minor=line.processor_fee_minor, currency=line.currency)
        )
    write_timestamp(message.captured_at, line.recorded_at_ms)
    return message


def _text(day: date | None) -> str:
    return day.isoformat() if day else ""
