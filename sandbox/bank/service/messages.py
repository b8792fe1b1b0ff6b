"""Between the contract's messages and the words of the domain."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

from paymesh.bank.v1 import bank_pb2 as pb
from sandbox.bank import domain
from sandbox.bank.cards import card_of
from sandbox.bank.domain import (
    Authorization,
    AuthorizeWish,
    Hold,
    Identity,
    Kind,
    MoveWish,
    Operation,
    Result,
    State,
    VoidWish,
)
from services.kit.checks import Checks, check_key
from services.kit.errors import Invalid, PaymeshError
from services.kit.sets import Answer, Command, Failed, Outcome

CARD_TOKEN_LENGTH_MAX = 128
SHARED_REMEMBERED = 256
"""More merchants, currencies and outcomes than a set has."""

_STATES = {
    State.APPROVED: pb.AUTHORIZATION_STATE_APPROVED,
    State.DECLINED: pb.AUTHORIZATION_STATE_DECLINED,
    State.VOIDED: pb.AUTHORIZATION_STATE_VOIDED,
    State.CANCELLED: pb.AUTHORIZATION_STATE_CANCELLED,
    State.CAPTURED: pb.AUTHORIZATION_STATE_CAPTURED,
}
KINDS = {kind: pb.OperationKind.Value(f"OPERATION_KIND_{kind}") for kind in Kind}
_NOT_DONE = {
    Result.DECLINED: pb.OPERATION_STATE_DECLINED,
    Result.REFUSED: pb.OPERATION_STATE_REFUSED,
    Result.CANCELLED: pb.OPERATION_STATE_CANCELLED,
}


def authorize_wish(request: pb.AuthorizeRequest) -> AuthorizeWish:
    """Raises Invalid. Every field is read once: the message makes a text anew each time."""
    amount = request.amount
    merchant_id, amount_minor, currency = request.merchant_id, amount.amount_minor, amount.currency
    card_token, reference = request.card_token, request.reference
    checks = Checks()
    checks.text("merchant_id", merchant_id)
    checks.money("amount", amount_minor, currency)
    checks.text("card_token", card_token, max_length=CARD_TOKEN_LENGTH_MAX)
    checks.text("reference", reference, optional=True)
    checks.done()
    return AuthorizeWish(merchant_id, amount_minor, currency, card_token, reference, card_of(card_token))


def void_wish(request: pb.VoidRequest) -> VoidWish:
    """Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("authorization_id", request.authorization_id)
    checks.done()
    return VoidWish(request.merchant_id, request.authorization_id)


def capture_wish(request: pb.CaptureRequest) -> MoveWish:
    """Raises Invalid."""
    return _move_wish(request, request.final)


def move_wish(request: pb.RefundRequest | pb.IncrementAuthorizationRequest) -> MoveWish:
    """Raises Invalid."""
    return _move_wish(request, False)


def _move_wish(
    request: pb.CaptureRequest | pb.RefundRequest | pb.IncrementAuthorizationRequest, final: bool
) -> MoveWish:
    checks = Checks()
    amount = request.amount
    checks.text("merchant_id", request.merchant_id)
    checks.text("authorization_id", request.authorization_id)
    checks.money("amount", amount.amount_minor, amount.currency)
    checks.done()
    return MoveWish(
        request.merchant_id, request.authorization_id, amount.amount_minor, amount.currency, final
    )


def move_outcome(kind: Kind, command: Command[MoveWish], standing: Operation) -> Operation | Failed:
    """What a command came to, by the operation that stands under its key: its own or that of an earlier call."""
    replayed = standing.operation_id != command.resource_id
    if replayed:
        refusal = domain.repeat_refusal(standing, kind, command.key, command.fingerprint)
        if refusal is not None:
            return Failed(refusal)
    if standing.result is Result.REFUSED:
        return Failed(domain.refusal(standing), replayed)
    return standing


def authorize_outcome(command: Command[AuthorizeWish], standing: Operation) -> Outcome[pb.AuthorizeResponse]:
    """What a command came to, by the operation that stands under its key: its own or that of an earlier call."""
    replayed = standing.operation_id != command.resource_id
    if replayed:
        refusal = domain.repeat_refusal(standing, Kind.AUTHORIZE, command.key, command.fingerprint)
        if refusal is not None:
            return Failed(refusal)
    response = pb.AuthorizeResponse()
    _fill(response.authorization, domain.authorization(standing))
    return Answer(response, replayed)


def void_outcome(
    command: Command[VoidWish], standing: Operation, holds: dict[Identity, Hold], replayed: bool
) -> Outcome[pb.VoidResponse]:
    """Like `authorize_outcome`; `holds` has the authorization that `standing` was to undo."""
    if replayed:
        refusal = domain.repeat_refusal(standing, Kind.VOID, command.key, command.fingerprint)
        if refusal is not None:
            return Failed(refusal)
    made = holds[(command.merchant_id, command.request.authorization_id)].made
    if standing.result is Result.REFUSED:
        return Failed(domain.nothing_held(made), replayed)
    voided = domain.authorization(made, voided=True)
    return Answer(pb.VoidResponse(authorization=message_of(voided)), replayed)


def lookup_fault(request: pb.LookupByKeyRequest) -> PaymeshError | None:
    """Why one of several look-ups cannot be answered; the others can."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    try:
        check_key(request.idempotency_key)
    except Invalid as invalid:
        checks.violations.extend(invalid.violations)
    return Invalid(checks.violations) if checks.violations else None


def looked_up(found: tuple[Operation, Authorization] | None) -> pb.LookupByKeyResponse:
    """None means that nothing has arrived."""
    if found is None:
        return pb.LookupByKeyResponse(found=False)
    operation, authorization = found
    return pb.LookupByKeyResponse(
        found=True, authorization=message_of(authorization), operation=operation_of(operation)
    )


def operation_of(operation: Operation) -> pb.Operation:
    """An operation on the wire."""
    message = pb.Operation(
        operation_id=operation.operation_id,
        merchant_id=operation.merchant_id,
        idempotency_key=operation.key or "",
        kind=KINDS[operation.kind],
        state=_NOT_DONE.get(operation.result, pb.OPERATION_STATE_DONE),
        authorization_id=operation.undoes or operation.operation_id,
        reason=operation.decline_reason,
    )
    message.created_at.FromDatetime(operation.created_at)
    if operation.amount_minor is not None:
        message.amount.amount_minor = operation.amount_minor
        message.amount.currency = operation.currency or ""
    return message


def merchants_of(request: Any) -> set[str]:
    """Whose operations travel in a batch."""
    return {item.request.merchant_id for item in request.items}


def message_of(authorization: Authorization) -> pb.Authorization:
    """An authorization on the wire."""
    message = pb.Authorization()
    _fill(message, authorization)
    return message


def _fill(message: pb.Authorization, authorization: Authorization) -> None:
    message.CopyFrom(
        _shared(
            authorization.merchant_id,
            authorization.currency,
            authorization.state,
            authorization.decline_reason,
            authorization.created_at,
        )
    )
    message.authorization_id = authorization.authorization_id
    message.idempotency_key = authorization.key
    message.auth_code = authorization.auth_code
    if authorization.amount_minor is not None:
        message.amount.amount_minor = authorization.amount_minor


@lru_cache(maxsize=SHARED_REMEMBERED)
def _shared(
    merchant_id: str, currency: str | None, state: State, decline_reason: str, created_at: datetime
) -> pb.Authorization:
    """What most authorizations of a set have in common, only ever to be copied: that takes half the time of a message
    filled field by field. An amount that nobody knows, because the call never arrived, is left unset."""
    message = pb.Authorization(merchant_id=merchant_id, state=_STATES[state], decline_reason=decline_reason)
    if currency is not None:
        message.amount.currency = currency
    message.created_at.FromDatetime(created_at)
    return message
