"""Reads the rule file. Every mistake in it is reported at once, by its path in the file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from services.fraud.rules import (
    BUILT_IN_RULES,
    SCORE_MILLI_MAX,
    AmountRule,
    CardTestingRule,
    Measure,
    Rules,
    Trait,
    VelocityRule,
    Window,
)
from services.kit.money import is_currency

UNITS_MAX = 1_000_000_000
"""Reference units: above the largest amount of one request in any currency."""
WINDOW_SECONDS_MAX = 7 * 24 * 3600
"""Windows are kept in memory; a week is long for what is asked within milliseconds."""


class RuleFileMistakes(ValueError):
    """The rule file cannot be used; one line per mistake."""

    def __init__(self, path: Path, mistakes: list[str]) -> None:
        super().__init__("\n    ".join([f"the rule file {path} has {len(mistakes)} mistake(s):", *mistakes]))
        self.mistakes = mistakes


def _currency(code: str) -> str:
    if not is_currency(code):
        raise ValueError("not an ISO 4217 currency code")
    return code


_Score = Annotated[int, Field(ge=0, le=SCORE_MILLI_MAX)]
_Units = Annotated[int, Field(ge=0, le=UNITS_MAX)]
_Seconds = Annotated[int, Field(ge=1, le=WINDOW_SECONDS_MAX)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_Bin = Annotated[str, StringConstraints(pattern=r"^[0-9]{6,8}$")]
_Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
_Currency = Annotated[str, AfterValidator(_currency)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Windows(_Table):
    short_seconds: _Seconds
    long_seconds: _Seconds

    @model_validator(mode="after")
    def _long_is_longer(self) -> _Windows:
        if self.short_seconds >= self.long_seconds:
            raise ValueError("short_seconds must be less than long_seconds")
        return self


class _Amount(_Table):
    above_units: _Units
    score_milli: _Score


class _Velocity(_Table):
    trait: Annotated[Trait, Field(strict=False)]
    window: Annotated[Window, Field(strict=False)]
    count_above: Annotated[int, Field(ge=0)] | None = None
    sum_above_units: _Units | None = None
    score_milli: _Score

    @model_validator(mode="after")
    def _one_measure(self) -> _Velocity:
        if (self.count_above is None) == (self.sum_above_units is None):
            raise ValueError("exactly one of count_above and sum_above_units is needed")
        return self


class _CardTesting(_Table):
    cards_above: Annotated[int, Field(ge=0)]
    window_seconds: _Seconds
    small_units: _Units
    score_milli: _Score


class _Degraded(_Table):
    amount_above_units: _Units


class _BinCountry(_Table):
    score_milli: _Score
    countries: dict[_Bin, _Country]


class _RuleFile(_Table):
    decline_above_milli: Annotated[int, Field(ge=0, lt=SCORE_MILLI_MAX)]
    windows: _Windows
    amount: dict[_Name, _Amount]
    velocity: dict[_Name, _Velocity]
    card_testing: _CardTesting
    degraded: _Degraded
    bin_country: _BinCountry
    worth: dict[_Currency, Annotated[int, Field(ge=1, le=1_000_000)]]


def read_rules(path: Path, window_members_max: int) -> Rules:
    """The rules of the file at `path`. A window keeps at most `window_members_max` payments, so no rule may
    count beyond that. Raises RuleFileMistakes."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RuleFileMistakes(path, [str(error)]) from error
    mistakes = list(_beyond_the_tables(document, window_members_max))
    try:
        file = _RuleFile.model_validate(document)
    except ValidationError as error:
        found = [f"{_path(e['loc'])}: {e['msg']}" for e in error.errors()]
        raise RuleFileMistakes(path, found + mistakes) from error
    if mistakes:
        raise RuleFileMistakes(path, mistakes)
    return _understood(file)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part != "[key]")


def _beyond_the_tables(document: dict[str, Any], window_members_max: int) -> Iterator[str]:
    """Mistakes that no single table shows, found in the raw file so that they are reported beside all
    others."""
    amounts, velocities = _table(document, "amount"), _table(document, "velocity")
    for section, names in (("amount", amounts), ("velocity", velocities)):
        for name in sorted(names.keys() & BUILT_IN_RULES):
            yield f"{section}.{name}: this name belongs to a built-in rule"
    for name in sorted(amounts.keys() & velocities.keys()):
        yield f"velocity.{name}: another rule in [amount] has this name"
    limits = {
        f"velocity.{name}.count_above": _table(velocities, name).get("count_above") for name in velocities
    }
    limits["card_testing.cards_above"] = _table(document, "card_testing").get("cards_above")
    for path, limit in limits.items():
        if isinstance(limit, int) and limit >= window_members_max:
            yield (
                f"{path}: {limit} can never be exceeded, a window keeps {window_members_max} members; "
                "raise PAYMESH_FRAUD_WINDOW_MEMBERS_MAX"
            )


def _table(parent: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of the raw file; empty when it is missing or something else, which is reported elsewhere."""
    table = parent.get(name)
    return table if isinstance(table, dict) else {}


def _understood(file: _RuleFile) -> Rules:
    return Rules(
        decline_above_milli=file.decline_above_milli,
        short_seconds=file.windows.short_seconds,
        long_seconds=file.windows.long_seconds,
        amounts=tuple(
            AmountRule(name, rule.above_units, rule.score_milli) for name, rule in file.amount.items()
        ),
        velocities=tuple(_velocity(name, rule) for name, rule in file.velocity.items()),
        card_testing=CardTestingRule(
            cards_above=file.card_testing.cards_above,
            window_seconds=file.card_testing.window_seconds,
            small_units=file.card_testing.small_units,
            score_milli=file.card_testing.score_milli,
        ),
        bin_country_score_milli=file.bin_country.score_milli,
        bin_countries=file.bin_country.countries,
        degraded_amount_units=file.degraded.amount_above_units,
        worth=file.worth,
    )


def _velocity(name: str, rule: _Velocity) -> VelocityRule:
    if rule.count_above is not None:
        return VelocityRule(name, rule.trait, rule.window, Measure.COUNT, rule.count_above, rule.score_milli)
    above = rule.sum_above_units or 0  # never None: exactly one of the two is there
    return VelocityRule(name, rule.trait, rule.window, Measure.SUM, above, rule.score_milli)
