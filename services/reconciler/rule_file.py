"""Reads the rule file. Every mistake in it is reported at once, by its path in the file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from services.reconciler.domain.rules import ItemKey, LineKey, Rule, Rules, Shape

BUILT_IN_RULES = Path(__file__).with_name("rules.toml")
DAYS_MAX = 366
TOLERANCE_MINOR_MAX = 1_000_000
RULES_MAX = 50


class RuleFileMistakes(ValueError):
    """The rule file cannot be used; one line per mistake."""

    def __init__(self, path: Path, mistakes: list[str]) -> None:
        super().__init__("\n    ".join([f"the rule file {path} has {len(mistakes)} mistake(s):", *mistakes]))
        self.mistakes = mistakes


_Days = Annotated[int, Field(ge=0, le=DAYS_MAX)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Rule(_Table):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    shape: Annotated[Shape, Field(strict=False)]
    line: Annotated[LineKey, Field(strict=False)] = LineKey.NONE
    item: Annotated[ItemKey, Field(strict=False)] = ItemKey.NONE
    net: bool = False
    tolerance_minor: Annotated[int, Field(ge=0, le=TOLERANCE_MINOR_MAX)] = 0
    days_before: _Days
    days_after: _Days

    @model_validator(mode="after")
    def _key_on_both_sides(self) -> _Rule:
        if (self.line is LineKey.NONE) != (self.item is ItemKey.NONE):
            raise ValueError("line and item are both needed, or neither of them")
        if self.line is LineKey.NONE and self.shape is not Shape.ONE_TO_ONE:
            raise ValueError(f"a rule without line and item can only be 1:1, not {self.shape}")
        if self.line is LineKey.NONE and self.tolerance_minor:
            raise ValueError(
                "a rule without line and item has nothing but the amount: it can have no tolerance"
            )
        return self


class _RuleFile(_Table):
    late_after_days: _Days
    missing_after_days: _Days
    unknown_after_days: _Days
    rule: Annotated[list[_Rule], Field(min_length=1, max_length=RULES_MAX)]

    @model_validator(mode="after")
    def _in_order(self) -> _RuleFile:
        if self.missing_after_days < self.late_after_days:
            raise ValueError("missing_after_days must not be less than late_after_days")
        if (longest := max(rule.days_after for rule in self.rule)) > self.late_after_days:
            raise ValueError(f"late_after_days must be {longest} at least: a rule waits so long")
        names = [rule.name for rule in self.rule]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"more than one rule is called {', '.join(twice)}")
        return self


def read_rules(path: Path) -> Rules:
    """The rules in a file. Raises RuleFileMistakes."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        read = _RuleFile.model_validate(content)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RuleFileMistakes(path, [str(error)]) from None
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}" for e in error.errors()]
        raise RuleFileMistakes(path, mistakes) from None
    return Rules(
        rules=tuple(
            Rule(
                name=rule.name,
                shape=rule.shape,
                line=rule.line,
                item=rule.item,
                net=rule.net,
                tolerance_minor=rule.tolerance_minor,
                days_before=rule.days_before,
                days_after=rule.days_after,
            )
            for rule in read.rule
        ),
        late_after_days=read.late_after_days,
        missing_after_days=read.missing_after_days,
        unknown_after_days=read.unknown_after_days,
    )
