"""What may be concluded about a payment. Pure: a subject, what the windows counted and what the lists say in,
a verdict out.

Rules add up: each that fires puts its weight, in thousandths, on the score, which ends at 1,000. A score
above the threshold declines. Lists come first: a block list declines, an allow list approves unless a block
list objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from socket import AF_INET, inet_ntop, inet_pton
from typing import NamedTuple

from services.fraud.rules import (
    ALLOW_LIST,
    BIN_COUNTRY,
    BLOCK_LIST,
    CARD_TESTING,
    CARDS_FROM_IP,
    DEGRADED_AMOUNT,
    SCORE_MILLI_MAX,
    TRAITS,
    Counters,
    Limits,
    Measure,
    Rules,
    Trait,
    VelocityRule,
    Window,
)
from services.kit.money import Money

IP_ADDRESSES_REMEMBERED = 4_096
"""More than the sets under way hold: each address is looked at twice, when it arrives and when it is
counted."""
IPV6_CUSTOMER_PREFIX = 64
"""A household or a server is given a /64 and may use every address in it, so windows count the /64."""


class Decision(StrEnum):
    """What to do with a payment."""

    APPROVE = "approve"
    DECLINE = "decline"


class ListKind(StrEnum):
    """Which way a list decides."""

    BLOCK = "block"
    ALLOW = "allow"


class Subject(NamedTuple):
    """What a payment looks like to the rules; empty texts are unknown."""

    amount: Money
    card_token: str
    card_bin: str
    customer_id: str
    email: str
    ip_address: str
    billing_country: str

    def traits(self) -> tuple[str, str, str, str]:
        """The values that lists name, in the order of TRAITS."""
        return (self.card_token, self.customer_id, self.email, self.ip_address)


class AssessPayment(NamedTuple):
    """A wish to have a payment judged."""

    payment_id: str
    subject: Subject


class FiredRule(NamedTuple):
    """A rule that fired, what it added to the score, and what it saw."""

    rule: str
    score_milli: int
    explanation: str


class Verdict(NamedTuple):
    """What the rules came to; `fired` has the heaviest first."""

    decision: Decision
    score_milli: int
    fired: tuple[FiredRule, ...]
    degraded: bool


class Assessment(NamedTuple):
    """A verdict on record."""

    merchant_id: str
    assessment_id: str
    payment_id: str
    verdict: Verdict
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ListEntry:
    """A value on a block or allow list; `value` has the form in which it is compared: emails in lower case,
    addresses as `normal_ip` writes them."""

    merchant_id: str
    kind: ListKind
    trait: Trait
    value: str
    note: str
    created_at: datetime


class Listed(NamedTuple):
    """By which trait a subject is on a block and on an allow list."""

    blocked: Trait | None = None
    allowed: Trait | None = None


_UNLISTED = Listed()


class Lists:
    """All list entries in memory: a look-up costs the same however many there are."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[ListKind, frozenset[tuple[Trait, str]]]] = {}

    def replace(self, merchant_id: str, entries: Iterable[tuple[ListKind, Trait, str]]) -> None:
        """Take `entries` for everything that the merchant has on its lists."""
        held = list(entries)
        by_kind = {kind: frozenset((t, value) for k, t, value in held if k is kind) for kind in ListKind}
        if held:
            self._entries[merchant_id] = by_kind
        else:
            self._entries.pop(merchant_id, None)

    def find(self, merchant_id: str, subject: Subject) -> Listed:
        """What the merchant's lists say about a subject."""
        entries = self._entries.get(merchant_id)
        if entries is None:
            return _UNLISTED
        named = [(trait, value) for trait, value in zip(TRAITS, subject.traits(), strict=True) if value]
        block, allow = entries[ListKind.BLOCK], entries[ListKind.ALLOW]
        return Listed(
            next((pair[0] for pair in named if pair in block), None),
            next((pair[0] for pair in named if pair in allow), None),
        )


_CLEAR = Verdict(Decision.APPROVE, 0, (), degraded=False)
_CLEAR_DEGRADED = Verdict(Decision.APPROVE, 0, (), degraded=True)


def assess(rules: Rules, subject: Subject, counters: Counters | None, listed: Listed) -> Verdict:
    """Judge a payment. `counters` is None when the windows could not be asked: the verdict is then
    `degraded`, made without velocity rules and with an amount limit of its own."""
    degraded = counters is None
    if listed.blocked is not None:
        fired = FiredRule(BLOCK_LIST, SCORE_MILLI_MAX, f"{_CALLED[listed.blocked]} is on the block list")
        return Verdict(Decision.DECLINE, SCORE_MILLI_MAX, (fired,), degraded)
    if listed.allowed is not None:
        fired = FiredRule(ALLOW_LIST, 0, f"{_CALLED[listed.allowed]} is on the allow list")
        return Verdict(Decision.APPROVE, 0, (fired,), degraded)
    limits = rules.limits(subject.amount.currency)
    silent = counters is not None and limits.silent(subject.amount.amount_minor, counters)
    found = [] if silent else _fired(rules, limits, subject, counters)
    if country := _foreign(rules, subject):
        seen = f"the card is from {country}, the billing address in {subject.billing_country}"
        found.append(FiredRule(BIN_COUNTRY, rules.bin_country_score_milli, seen))
    if not found:
        return _CLEAR_DEGRADED if degraded else _CLEAR
    found.sort(key=lambda rule: rule.score_milli, reverse=True)
    score_milli = min(SCORE_MILLI_MAX, sum(rule.score_milli for rule in found))
    decision = Decision.DECLINE if score_milli > rules.decline_above_milli else Decision.APPROVE
    return Verdict(decision, score_milli, tuple(found), degraded)


def _fired(rules: Rules, limits: Limits, subject: Subject, counters: Counters | None) -> list[FiredRule]:
    """The rules on amounts and counters that fire, in the order of the rule file."""
    amount = subject.amount
    fired: list[FiredRule] = []
    for limit, rule in limits.amounts:
        if amount.amount_minor > limit:
            seen = f"{amount} is more than {Money(limit, amount.currency)}"
            fired.append(FiredRule(rule.name, rule.score_milli, seen))
    if counters is not None:
        for place, limit, velocity in limits.velocities:
            if counters[place] > limit:
                fired.append(_fired_velocity(rules, velocity, counters[place], limit, amount.currency))
        testing = rules.card_testing
        if counters[CARDS_FROM_IP] > testing.cards_above:
            seen = f"small payments with {counters[CARDS_FROM_IP]} cards from this IP address within "
            seen += f"{testing.window_seconds} s, more than {testing.cards_above}"
            fired.append(FiredRule(CARD_TESTING, testing.score_milli, seen))
    elif amount.amount_minor > limits.degraded:
        most = Money(limits.degraded, amount.currency)
        seen = f"{amount} is more than {most}, the limit while velocity is unknown"
        fired.append(FiredRule(DEGRADED_AMOUNT, SCORE_MILLI_MAX, seen))
    return fired


def _foreign(rules: Rules, subject: Subject) -> str:
    """The country of the card when it is known not to be that of the billing address, else empty."""
    if not (subject.card_bin and subject.billing_country):
        return ""
    country = issuer_country(rules.bin_countries, subject.card_bin)
    return country if country != subject.billing_country else ""


def _fired_velocity(rules: Rules, rule: VelocityRule, seen: int, limit: int, currency: str) -> FiredRule:
    seconds = rules.short_seconds if rule.window is Window.SHORT else rules.long_seconds
    if rule.measure is Measure.COUNT:
        found, most = f"{seen} payments", str(limit)
    else:
        found, most = f"{Money(seen, currency)} paid", str(Money(limit, currency))
    what = f"{found} {_WITH[rule.trait]} within {seconds} s, more than {most}"
    return FiredRule(rule.name, rule.score_milli, what)


_CALLED = {
    Trait.CARD: "the card",
    Trait.CUSTOMER: "the customer",
    Trait.EMAIL: "the email address",
    Trait.IP: "the IP address",
}
_WITH = {
    Trait.CARD: "with this card",
    Trait.CUSTOMER: "by this customer",
    Trait.EMAIL: "with this email address",
    Trait.IP: "from this IP address",
}


def issuer_country(bin_countries: Mapping[str, str], card_bin: str) -> str:
    """The country of the card's issuer by the longest known prefix of six to eight digits; empty when
    unknown."""
    for length in (8, 7, 6):
        country = bin_countries.get(card_bin[:length])
        if country:
            return country
    return ""


@lru_cache(maxsize=IP_ADDRESSES_REMEMBERED)
def normal_ip(text: str) -> tuple[str, str]:
    """An IP address in its one form (an IPv4 address that is mapped into IPv6 is an IPv4 address) and the
    network that windows count it under. Raises ValueError."""
    with suppress(OSError):  # a tenth of what the general way costs, for nearly all addresses
        plain = inet_ntop(AF_INET, inet_pton(AF_INET, text))
        return plain, plain
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError("an address with a scope means nothing outside its host")
        if address.ipv4_mapped is None:
            return str(address), str(IPv6Network((address, IPV6_CUSTOMER_PREFIX), strict=False))
        address = address.ipv4_mapped
    return str(address), str(address)
