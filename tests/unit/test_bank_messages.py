"""What the bank says on the wire is what it has decided, field by field, and nothing of any other answer."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from paymesh.bank.v1 import bank_pb2 as pb
from sandbox.bank.domain import Authorization, State
from sandbox.bank.service.messages import message_of
from services.kit.money import AMOUNT_MINOR_MAX

STATES = {
    State.APPROVED: pb.AUTHORIZATION_STATE_APPROVED,
    State.DECLINED: pb.AUTHORIZATION_STATE_DECLINED,
    State.VOIDED: pb.AUTHORIZATION_STATE_VOIDED,
    State.CANCELLED: pb.AUTHORIZATION_STATE_CANCELLED,
    State.CAPTURED: pb.AUTHORIZATION_STATE_CAPTURED,
}
TEXTS = st.sampled_from(["", "a", "b"])
AMOUNTS = st.one_of(
    st.just((None, None)), st.tuples(st.integers(1, AMOUNT_MINOR_MAX), st.sampled_from(["GBP", "JPY"]))
)
INSTANTS = st.sampled_from(
    [datetime(2030, 5, 17, 12, 0, 0, microsecond, UTC) for microsecond in (0, 999_999)]
)


@st.composite
def _authorizations(draw: st.DrawFn) -> Authorization:
    amount_minor, currency = draw(AMOUNTS)
    return Authorization(
        merchant_id=draw(st.sampled_from(["m", "n"])),
        authorization_id=draw(TEXTS),
        key=draw(TEXTS),
        amount_minor=amount_minor,
        currency=currency,
        state=draw(st.sampled_from(State)),
        auth_code=draw(TEXTS),
        decline_reason=draw(TEXTS),
        created_at=draw(INSTANTS),
    )


@given(st.lists(_authorizations(), min_size=1, max_size=10))
def test_no_message_has_anything_of_another(authorizations: list[Authorization]) -> None:
    messages = [message_of(authorization) for authorization in authorizations]
    for authorization, message in zip(authorizations, messages, strict=True):
        assert (message.merchant_id, message.authorization_id, message.idempotency_key) == (
            authorization.merchant_id,
            authorization.authorization_id,
            authorization.key,
        )
        assert message.HasField("amount") == (authorization.amount_minor is not None)
        assert (message.amount.amount_minor, message.amount.currency) == (
            authorization.amount_minor or 0,
            authorization.currency or "",
        )
        assert message.state == STATES[authorization.state]
        assert message.auth_code == authorization.auth_code
        assert message.decline_reason == authorization.decline_reason
        assert message.created_at.ToDatetime(UTC) == authorization.created_at
