"""The rule file that comes with the reconciler can be read, and every mistake in one is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.reconciler.domain.rules import Shape
from services.reconciler.rule_file import BUILT_IN_RULES, RuleFileMistakes, read_rules

HEAD = "late_after_days = 5\nmissing_after_days = 14\nunknown_after_days = 0\n"
RULE = '[[rule]]\nname = "a"\nshape = "1:1"\nline = "reference"\nitem = "item_id"\ndays_before = 1\ndays_after = 5\n'


def mistakes(tmp_path: Path, text: str) -> str:
    path = tmp_path / "rules.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RuleFileMistakes) as caught:
        read_rules(path)
    return "\n".join(caught.value.mistakes)


def test_the_built_in_rules_know_every_shape() -> None:
    assert {rule.shape for rule in read_rules(BUILT_IN_RULES).rules} == set(Shape)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "late_after_days"),
        (HEAD, "rule: Field required"),
        (HEAD + RULE + RULE, "more than one rule is called a"),
        (HEAD + RULE.replace('item = "item_id"\n', ""), "line and item are both needed"),
        (HEAD + RULE.replace("1:1", "2:2"), "rule.0.shape"),
        (HEAD + RULE.replace("days_after = 5", "days_after = 6"), "late_after_days must be 6 at least"),
        (HEAD.replace("14", "4") + RULE, "missing_after_days must not be less"),
        (HEAD + RULE + "colour = 1\n", "rule.0.colour"),
        (HEAD + '[[rule]]\nname = "b"\nshape = "N:1"\ndays_before = 0\ndays_after = 0\n', "can only be 1:1"),
        (
            HEAD + RULE.replace("days_before = 1", "days_before = -1\ntolerance_minor = 0.5"),
            "tolerance_minor",
        ),
        ("][", "Invalid statement"),
    ],
)
def test_a_mistake_is_named_by_its_place(tmp_path: Path, text: str, said: str) -> None:
    assert said in mistakes(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuleFileMistakes, match=r"none\.toml"):
        read_rules(tmp_path / "none.toml")
