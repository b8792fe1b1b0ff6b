"""What the operations share: the merchant, the key, the page, and the card in whichever form it came."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Header, Query, Request
from fastapi.responses import Response

from paymesh.payment.v1 import payment_pb2
from services.edge import store
from services.edge.clients import Answered, Clients
from services.edge.domain import problems
from services.edge.domain.cards import Card, KeptCard, check, fingerprint
from services.edge.domain.keys import idempotency_key
from services.edge.domain.problems import Declined
from services.edge.service.bodies import AnyCard, CardNumber
from services.edge.vault import Vault
from services.kit.checks import ID_LENGTH_MAX
from services.kit.db import Database, Transaction
from services.kit.ids import new_id

REPLAYED_HEADER = "Idempotent-Replayed"
PAGE_LIMIT_DEFAULT = 20
PAGE_LIMIT_MAX = 100
"""A page is for a person or a screen; whoever wants everything asks page after page."""
CARD_PREFIX = "card_"

Key = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=257,
        description="1 to 255 printable ASCII characters of your choice, quoted or bare, the same for every repeat of "
        "this request. A key belongs to a merchant and an operation.",
        examples=["order-1001"],
    ),
]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT_MAX, description="At most this many.")]
Page = Annotated[str, Query(max_length=ID_LENGTH_MAX, description="`next_page` of the page before.")]


def merchant_of(request: Request) -> str:
    """Who is asking; the gate has seen to it."""
    merchant_id: str = request.state.merchant_id
    return merchant_id


def key_of(request: Request) -> str:
    """The idempotency key of a request. Raises Declined."""
    sent = request.headers.getlist("idempotency-key")
    if not sent or not any(value.strip() for value in sent):
        raise Declined(problems.key_missing())
    key = idempotency_key(sent[0]) if len(sent) == 1 else None
    if key is None:
        raise Declined(problems.key_malformed())
    return key


def mark(response: Response, answered: Answered) -> None:
    """Say so when an answer is that of an earlier request."""
    if answered.replayed:
        response.headers[REPLAYED_HEADER] = "true"


class Cards:
    """Turns what a merchant has sent for a card into the processor's token."""

    def __init__(self, database: Database, clients: Clients, vault: Vault, secret: str) -> None:
        self._database = database
        self._clients = clients
        self._vault = vault
        self._secret = secret.encode()

    async def take(self, merchant_id: str, sent: AnyCard) -> tuple[payment_pb2.Card, KeptCard | None]:
        """The card as payment knows it, and as the vault does. Raises PaymeshError or Declined."""
        if isinstance(sent, CardNumber):
            kept = await self._exchange(merchant_id, sent)
            # With the expiry as it was sent: the same number with another one is another request. Of a card of the
            # vault none is said, for it may be renewed between a request and its repeat.
            return payment_pb2.Card(
                token=kept.processor_token,
                bin=kept.bin,
                expiry_month=sent.exp_month,
                expiry_year=sent.exp_year,
            ), kept
        if not sent.token.startswith(CARD_PREFIX):
            return payment_pb2.Card(token=sent.token, bin=sent.bin), await self.of_token(
                merchant_id, sent.token
            )
        found = (
            await store.find_card(self._database, merchant_id, sent.token) if "\0" not in sent.token else None
        )
        if found is None:
            raise Declined(problems.malformed("card.token", "there is no such card"))
        return payment_pb2.Card(token=found.processor_token, bin=found.bin), found

    async def of_token(self, merchant_id: str, token: str) -> KeptCard | None:
        """The card of the vault behind a processor's token, if it came from here."""
        if "\0" in token:
            return None
        return await store.find_card_of_token(self._database, merchant_id, token)

    async def _exchange(self, merchant_id: str, sent: CardNumber) -> KeptCard:
        """The number for a token, and into the vault. The same number gives the same token every time, so a repeat of a
        request is the same request."""
        card = Card(
            sent.number.get_secret_value(), sent.exp_month, sent.exp_year, sent.cvc.get_secret_value()
        )
        check(card, datetime.now(UTC).date())
        token = await self._clients.tokenize(card)
        print_ = fingerprint(merchant_id, card.number, self._secret)
        known = await store.find_card_of_number(self._database, merchant_id, print_)
        kept = KeptCard(
            merchant_id,
            known.card_id if known else new_id(CARD_PREFIX.rstrip("_")),
            print_,
            token.token,
            token.brand,
            card.bin,
            card.last4,
            card.exp_month,
            card.exp_year,
        )
        if kept == known:
            return kept
        sealed = self._vault.seal(card.number, merchant_id, kept.card_id)

        async def work(tx: Transaction) -> None:
            await store.save_card(tx, kept, sealed)

        await self._database.transact(work)
        # Of two that came with a new number at once, one has given it its identifier.
        return await store.find_card_of_number(self._database, merchant_id, print_) or kept


def page_of(items: list[Any], next_page: str) -> dict[str, Any]:
    """A page of a list."""
    return {"data": items, "next_page": next_page or None}
