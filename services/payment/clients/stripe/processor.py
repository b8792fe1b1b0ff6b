"""Asks Stripe.

A payment is one PaymentIntent: created and confirmed in one call, captured once, refunded at will. The keys of our
operations are Stripe's idempotency keys, and stand in the metadata of what they made. Stripe forgets a key after a day
at the earliest; until then the same call under the same key gets the first answer, whatever that was. So an
authorization of which the search knows nothing may always be sent again, and that is how it is found out what became of
it. Behind an authorization its `pi_…` is known, and everything is looked up there before it is sent again.

*Cancel by key* claims the key for a request that holds nothing. Is it ours, a late authorization finds it taken. Is it
not, the authorization has arrived before: its own request is repeated, which tells what it made, and that is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import stripe

from services.kit.clock import now_ms
from services.kit.money import Money
from services.payment.clients.fraud import Asked
from services.payment.clients.one_by_one import CallLimits, OneByOne, Unanswered
from services.payment.clients.processor import (
    CannotRun,
    authorize_key,
    movement_key,
    void_key,
)
from services.payment.clients.stripe import answers
from services.payment.clients.stripe.amounts import Inexpressible, to_stripe
from services.payment.clients.stripe.answers import asking
from services.payment.clients.stripe.cards import payment_method_of
from services.payment.clients.stripe.settings import KEY_VARIABLE, StripeSettings
from services.payment.domain import (
    Absent,
    Approved,
    Authorization,
    Declined,
    Gone,
    Letting,
    Movement,
    Payment,
    RefusedByProcessor,
    State,
)

if TYPE_CHECKING:
    from stripe.params import PaymentIntentCreateParams

log = logging.getLogger(__name__)

KEY_LIFE_MS = 23 * 3_600_000
"""So long after a payment began, Stripe remembers the key of its authorization for sure: it promises a day."""
REFUNDS_MAX = 1_000
"""Refunds of one payment that are looked through: it cannot have more, for it cannot have more events."""

METADATA_KEY = "paymesh_key"
"""Under this name our operation's key stands in the metadata of what it made."""


class StripeProcessor(OneByOne):
    """A `Processor`."""

    def __init__(self, settings: StripeSettings) -> None:
        limits = CallLimits(
            seconds=settings.seconds,
            calls_max=settings.calls_max,
            failures_max=settings.failures_max,
            probe_seconds=settings.probe_seconds,
        )
        super().__init__("stripe", limits)
        self._test = settings.test
        self._check_seconds = settings.seconds
        # Requests and answers, with the customer's particulars in them, belong into no log, at whatever level.
        for chatty in ("stripe", "httpx", "httpcore"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        stripe.enable_telemetry = False
        self._http = stripe.HTTPXClient(timeout=settings.seconds)
        client = stripe.StripeClient(
            settings.key.get_secret_value(),
            http_client=self._http,
            base_addresses={"api": settings.url},
            # Whether a lost answer is asked for again is the resolver's decision.
            max_network_retries=0,
        )
        self._intents = client.v1.payment_intents
        self._refunds = client.v1.refunds

    async def check(self) -> None:
        """Raises CannotRun when Stripe does not accept the key."""
        try:
            async with asyncio.timeout(self._check_seconds):
                with asking():
                    await self._intents.list_async({"limit": 1})
        except Unanswered as unanswered:
            if unanswered.reason == "KEY_REFUSED":
                raise CannotRun(
                    f"Stripe does not accept the key in {KEY_VARIABLE}, or it may not read PaymentIntents: copy the"
                    " secret key from Stripe's dashboard (Developers, API keys)"
                ) from None
            log.warning("Stripe could not be asked whether it accepts the key: %s", unanswered.reason)
        except (TimeoutError, stripe.StripeError):
            log.warning("Stripe could not be asked whether it accepts the key")

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # the library's types end here

    async def authorize_one(self, asked: Asked) -> Authorization:
        wish = asked.wish
        method = payment_method_of(wish.card_token, test=self._test)
        if method is None:
            return Declined("", "INVALID_CARD")
        try:
            params = _hold(asked)
        except Inexpressible as why:
            return RefusedByProcessor(why.reason)
        params |= {
            "payment_method": method,
            "confirm": True,
            # A customer who has to prove himself to his bank is not here.
            "error_on_requires_action": True,
        }
        try:
            with asking():
                key = authorize_key(asked.payment)
                intent = await self._intents.create_async(params, {"idempotency_key": key})
        except stripe.CardError as error:
            return answers.declined(error)
        except stripe.InvalidRequestError as error:
            return Declined("", "INVALID_CARD") if answers.names_no_card(error) else answers.refusal_of(error)
        return answers.authorization_of(intent)

    async def void_one(self, payment: Payment) -> Letting:
        return await self._let_go(payment.processor_reference, void_key(payment), payment)

    async def move_one(self, payment: Payment) -> Movement:
        if payment.state is State.CAPTURING and not payment.pending_final:
            # Stripe would let go of the rest.
            return RefusedByProcessor("CAPTURES_ONCE")
        try:
            return await self._move(payment)
        except Inexpressible as why:
            return RefusedByProcessor(why.reason)
        except (stripe.CardError, stripe.InvalidRequestError) as error:
            # A refusal is only believed of what was not done: the first call may have been, and its key forgotten.
            found = await self.look_up_movement_one(payment)
            if not isinstance(found, Absent):
                return found
            if isinstance(error, stripe.CardError):
                return answers.declined(error)
            return answers.refusal_of(error)

    async def _move(self, payment: Payment) -> Movement:
        currency = payment.amount.currency
        pending = to_stripe(Money(payment.pending_minor, currency))
        reference = payment.processor_reference
        key = movement_key(payment)
        with asking():
            if payment.state is State.REFUNDING:
                refund = await self._refunds.create_async(
                    {"payment_intent": reference, "amount": pending, "metadata": {METADATA_KEY: key}},
                    {"idempotency_key": key},
                )
                return answers.refund_of(refund, payment)
            if payment.state is State.CAPTURING:
                intent = await self._intents.capture_async(
                    reference, {"amount_to_capture": pending}, {"idempotency_key": key}
                )
                moved = answers.capture_of(intent, payment)
            else:
                total = to_stripe(Money(payment.authorized_minor + payment.pending_minor, currency))
                intent = await self._intents.increment_authorization_async(
                    reference, {"amount": total}, {"idempotency_key": key}
                )
                moved = answers.increment_of(intent, payment)
        if isinstance(moved, Absent):
            raise Unanswered("NOT_DONE", alive=True)
        return moved

    async def look_up_one(self, asked: Asked) -> Authorization | Absent:
        key = authorize_key(asked.payment)
        try:
            intent = await self._find(key)
        except stripe.InvalidRequestError:
            # Not every account may search; as long as the key is remembered, a repeat tells as much.
            if _key_is_remembered(asked.payment):
                return Absent()
            raise Unanswered("SEARCH_REFUSED", alive=True) from None
        return Absent() if intent is None else answers.authorization_of(intent)

    async def look_up_movement_one(self, payment: Payment) -> Movement | Absent:
        try:
            if payment.state is State.REFUNDING:
                refund = await self._find_refund(payment)
                return Absent() if refund is None else answers.refund_of(refund, payment)
            intent = await self._retrieve(payment.processor_reference)
        except stripe.InvalidRequestError as error:
            return answers.refusal_of(error)
        read = answers.capture_of if payment.state is State.CAPTURING else answers.increment_of
        return read(intent, payment)

    async def cancel_one(self, asked: Asked) -> Authorization:
        key = authorize_key(asked.payment)
        try:
            params = _hold(asked)
        except Inexpressible:
            return Gone()  # it can never have been sent
        try:
            with asking():
                taken = await self._intents.create_async(params, {"idempotency_key": key})
        except stripe.InvalidRequestError as error:
            return answers.refusal_of(error)
        except Unanswered as unanswered:
            if unanswered.reason != "IDEMPOTENCY_KEY_REUSED":
                raise
            return await self._cancel_what_arrived(asked)
        answer = await self._cancelled(taken.id, asked.payment)
        if _key_is_remembered(asked.payment):
            return answer
        # The key was free because Stripe has forgotten it: what was made under it long ago is there nevertheless.
        made = await self._find(key)
        return answer if made is None else await self._cancelled(made.id, asked.payment)

    async def _cancel_what_arrived(self, asked: Asked) -> Authorization:
        """Cancel the authorization that was sent under the key before."""
        try:
            made = await self.authorize_one(asked)
        except Unanswered:
            # Stripe remembers an error under the key, or an intent that waits for something: only the search knows.
            intent = await self._find(authorize_key(asked.payment))
            if intent is None:
                raise
            return await self._cancelled(intent.id, asked.payment)
        return await self._cancelled(made.reference, asked.payment) if isinstance(made, Approved) else made

    async def _cancelled(self, reference: str, payment: Payment) -> Authorization:
        key = f"{authorize_key(payment)}/cancel/{reference}"  # there may be two under the first key
        let_go = await self._let_go(reference, key, payment)
        return let_go if isinstance(let_go, Gone) else RefusedByProcessor("CANCEL_REFUSED")

    async def _let_go(self, reference: str, key: str, payment: Payment) -> Letting:
        try:
            with asking():
                intent = await self._intents.cancel_async(reference, {}, {"idempotency_key": key})
        except stripe.InvalidRequestError as error:
            try:
                intent = await self._retrieve(reference)
            except stripe.InvalidRequestError:
                return answers.refusal_of(error)
        return answers.letting_of(intent, payment)

    async def _retrieve(self, reference: str) -> stripe.PaymentIntent:
        """As it stands. Raises Unanswered, stripe.InvalidRequestError."""
        with asking():
            return await self._intents.retrieve_async(reference, {"expand": ["latest_charge"]})

    async def _find(self, key: str) -> stripe.PaymentIntent | None:
        """The intent that was made under a key. The search lags behind by up to a minute, so it only says which."""
        with asking():
            page = await self._intents.search_async(
                {"query": f'metadata["{METADATA_KEY}"]:"{key}"', "limit": 10}
            )
        if not page.data:
            return None
        found = [await self._retrieve(one.id) for one in page.data]
        open_ = [intent for intent in found if intent.status != "canceled"]
        if len(open_) > 1:
            log.error("Stripe has %d PaymentIntents under the key %s", len(open_), key)
            raise Unanswered("SEVERAL_UNDER_ONE_KEY", alive=True)
        return open_[0] if open_ else found[0]

    async def _find_refund(self, payment: Payment) -> stripe.Refund | None:
        """The refund under way, among those of the intent: that list is never behind."""
        key = movement_key(payment)
        seen = 0
        with asking():
            page = await self._refunds.list_async(
                {"payment_intent": payment.processor_reference, "limit": 100}
            )
            async for refund in page.auto_paging_iter():
                if getattr(refund.metadata, METADATA_KEY, None) == key:
                    return refund
                seen += 1
                if seen > REFUNDS_MAX:
                    raise Unanswered("TOO_MANY_REFUNDS", alive=True)
        return None


def _key_is_remembered(payment: Payment) -> bool:
    """Whether Stripe still knows what was sent under the key of the authorization. It was sent after the intent."""
    return now_ms() - payment.created_at_ms < KEY_LIFE_MS


def _hold(asked: Asked) -> PaymentIntentCreateParams:
    """The request that an authorization and its cancellation have in common. Raises Inexpressible."""
    payment, amount = asked.payment, asked.wish.amount
    return {
        "amount": to_stripe(amount),
        "currency": amount.currency.lower(),
        "capture_method": "manual",
        "allowed_payment_method_types": ["card"],
        "expand": ["latest_charge"],
        "metadata": {
            METADATA_KEY: authorize_key(payment),
            "paymesh_merchant": payment.merchant_id,
            "paymesh_payment": payment.payment_id,
        },
    }
