"""The rules as data, and what they look at. Pure; `rule_file` reads them from the rule file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import gt, itemgetter
from typing import TypeAlias

from services.kit.money import AMOUNT_MINOR_MAX, Money, exponent

SCORE_MILLI_MAX = 1_000

BLOCK_LIST = "block_list"
ALLOW_LIST = "allow_list"
CARD_TESTING = "card_testing"
BIN_COUNTRY = "bin_country"
DEGRADED_AMOUNT = "degraded_amount"
BUILT_IN_RULES = frozenset((BLOCK_LIST, ALLOW_LIST, CARD_TESTING, BIN_COUNTRY, DEGRADED_AMOUNT))
"""Names that rules of the rule file may not take."""


class Trait(StrEnum):
    """What a payment is recognized by, in windows and on lists."""

    CARD = "card"
    CUSTOMER = "customer"
    EMAIL = "email"
    IP = "ip"


class Window(StrEnum):
    """The two sliding windows; their lengths stand in the rule file."""

    SHORT = "short"
    LONG = "long"


class Measure(StrEnum):
    """What a window tells about a trait."""

    COUNT = "count"
    SUM = "sum"


TRAITS = tuple(Trait)
Counters: TypeAlias = Sequence[int]
"""What the windows counted for one payment, itself included: one number per `counter_place`, then
CARDS_FROM_IP. Sums are in minor units of the payment's own currency."""
CARDS_FROM_IP = len(Trait) * len(Window) * len(Measure)
COUNTERS = CARDS_FROM_IP + 1


def counter_place(trait: Trait, window: Window, measure: Measure) -> int:
    """Where in `Counters` a number stands."""
    return (TRAITS.index(trait) * 2 + (window is Window.LONG)) * 2 + (measure is Measure.SUM)


@dataclass(frozen=True, slots=True)
class AmountRule:
    """Fires for a single payment above an amount, in reference units."""

    name: str
    above_units: int
    score_milli: int


@dataclass(frozen=True, slots=True)
class VelocityRule:
    """Fires when a window holds more than `above`: payments for a count, reference units for a sum."""

    name: str
    trait: Trait
    window: Window
    measure: Measure
    above: int
    score_milli: int


@dataclass(frozen=True, slots=True)
class CardTestingRule:
    """Fires when one IP address tried more than `cards_above` cards with small payments within the window."""

    cards_above: int
    window_seconds: int
    small_units: int
    score_milli: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of all rules in minor units of one currency."""

    amounts: tuple[tuple[int, AmountRule], ...]
    velocities: tuple[tuple[int, int, VelocityRule], ...]
    small: int
    degraded: int
    amount_quiet: int
    """Largest amount for which no amount rule fires."""
    watched: Callable[[Counters], Sequence[int]]
    """The counters that rules look at, `quiet` beside them."""
    quiet: tuple[int, ...]
    """Their largest values for which no rule fires."""

    def silent(self, amount_minor: int, counters: Counters) -> bool:
        """Whether no rule on amounts or counters fires, as is the case nearly always. One comparison of all at
        once takes half the time of asking rule after rule."""
        return amount_minor <= self.amount_quiet and not any(map(gt, self.watched(counters), self.quiet))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rule file, understood. Amounts are in reference units: one US dollar, or what `worth` says is about
    as much in another currency. They are thresholds, not conversions; no money is ever exchanged by them."""

    decline_above_milli: int
    short_seconds: int
    long_seconds: int
    amounts: tuple[AmountRule, ...]
    velocities: tuple[VelocityRule, ...]
    card_testing: CardTestingRule
    bin_country_score_milli: int
    bin_countries: Mapping[str, str]
    degraded_amount_units: int
    worth: Mapping[str, int]
    _limits: dict[str, Limits] = field(default_factory=dict, init=False, repr=False, compare=False)

    def limits(self, currency: str) -> Limits:
        """All limits in `currency`; worked out once for each currency that occurs."""
        limits = self._limits.get(currency)
        if limits is None:
            unit = self.worth.get(currency, 1) * 10 ** exponent(currency)
            limits = self._limits[currency] = self._limits_of(unit)
        return limits

    def _limits_of(self, unit: int) -> Limits:
        velocities = tuple(
            (
                counter_place(rule.trait, rule.window, rule.measure),
                rule.above * unit if rule.measure is Measure.SUM else rule.above,
                rule,
            )
            for rule in self.velocities
        )
        # Twice: an itemgetter of one place would give a number and not a sequence.
        watched = [(CARDS_FROM_IP, self.card_testing.cards_above)] * 2
        watched += [(place, limit) for place, limit, _ in velocities]
        return Limits(
            amounts=tuple((rule.above_units * unit, rule) for rule in self.amounts),
            velocities=velocities,
            small=self.card_testing.small_units * unit,
            degraded=self.degraded_amount_units * unit,
            amount_quiet=min((rule.above_units * unit for rule in self.amounts), default=AMOUNT_MINOR_MAX),
            watched=itemgetter(*[place for place, _ in watched]),
            quiet=tuple(limit for _, limit in watched),
        )

    def small(self, amount: Money) -> bool:
        """Whether a payment is of the size that card testers use."""
        return amount.amount_minor <= self.limits(amount.currency).small
