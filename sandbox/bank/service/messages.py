"""Between the contract's messages and the words of the domain."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from paymesh.bank.v1 import bank_pb2 as pb
from paymesh.money.v1 import money_pb2
from sandbox.bank import domain
from sandbox.bank.cards import card_of
from sandbox.bank.domain import (
    Authorization,
    AuthorizeWish,
    Identity,
    Kind,
    Operation,
    Result,
    State,
    VoidWish,
)
from services.kit.checks import Checks, check_key
from services.kit.errors import Invalid, PaymeshError
from services.kit.sets import Answer, Command, Failed, Outcome

CARD_TOKEN_LENGTH_MAX = 128

_STATES = {
    State.APPROVED: pb.AUTHORIZATION_STATE_APPROVED,
    State.DECLINED: pb.AUTHORIZATION_STATE_DECLINED,
    State.VOIDED: pb.AUTHORIZATION_STATE_VOIDED,
    State.CANCELLED: pb.AUTHORIZATION_STATE_CANCELLED,
}


def authorize_wish(request: pb.AuthorizeRequest) -> AuthorizeWish:
    """Raises Invalid."""
    checks = Checks()
    amount = request.amount
    checks.text("merchant_id", request.merchant_id)
    checks.money("amount", amount.amount_minor, amount.currency)
    checks.text("card_token", request.card_token, max_length=CARD_TOKEN_LENGTH_MAX)
    checks.text("reference", request.reference, optional=True)
    checks.done()
    token = request.card_token
    return AuthorizeWish(
        request.merchant_id, amount.amount_minor, amount.currency, token, request.reference, card_of(token)
    )


def void_wish(request: pb.VoidRequest) -> VoidWish:
    """Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("authorization_id", request.authorization_id)
    checks.done()
    return VoidWish(request.merchant_id, request.authorization_id)


def authorize_outcome(command: Command[AuthorizeWish], standing: Operation) -> Outcome[pb.AuthorizeResponse]:
    """What a command came to, by the operation that stands under its key: its own or that of an earlier call."""
    replayed = standing.operation_id != command.resource_id
    if replayed:
        refusal = domain.repeat_refusal(standing, Kind.AUTHORIZE, command.key, command.fingerprint)
        if refusal is not None:
            return Failed(refusal)
    return Answer(pb.AuthorizeResponse(authorization=message_of(domain.authorization(standing))), replayed)


def void_outcome(
    command: Command[VoidWish], standing: Operation, held: dict[Identity, Operation], replayed: bool
) -> Outcome[pb.VoidResponse]:
    """Like `authorize_outcome`; `held` has the authorization that `standing` was to undo."""
    if replayed:
        refusal = domain.repeat_refusal(standing, Kind.VOID, command.key, command.fingerprint)
        if refusal is not None:
            return Failed(refusal)
    if standing.result is Result.REFUSED:
        return Failed(domain.nothing_held(command.request.authorization_id), replayed)
    voided = domain.authorization(held[(command.merchant_id, command.request.authorization_id)], voided=True)
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


def looked_up(authorization: Authorization | None) -> pb.LookupByKeyResponse:
    """None means that nothing has arrived."""
    if authorization is None:
        return pb.LookupByKeyResponse(found=False)
    return pb.LookupByKeyResponse(found=True, authorization=message_of(authorization))


def merchants_of(request: pb.BatchAuthorizeRequest | pb.BatchVoidRequest) -> set[str]:
    """Whose operations travel in a batch."""
    return {item.request.merchant_id for item in request.items}


def message_of(authorization: Authorization) -> pb.Authorization:
    """An amount that nobody knows, because the call never arrived, is left unset."""
    amount = None
    if authorization.amount_minor is not None and authorization.currency is not None:
        amount = money_pb2.Money(amount_minor=authorization.amount_minor, currency=authorization.currency)
    return pb.Authorization(
        authorization_id=authorization.authorization_id,
        merchant_id=authorization.merchant_id,
        idempotency_key=authorization.key,
        amount=amount,
        state=_STATES[authorization.state],
        auth_code=authorization.auth_code,
        decline_reason=authorization.decline_reason,
        created_at=_timestamp(authorization.created_at),
    )


@lru_cache(maxsize=256)
def _timestamp(at: datetime) -> Timestamp:
    """All operations of a set share one instant; it is converted once and copied from then on."""
    message = Timestamp()
    message.FromDatetime(at)
    return message
