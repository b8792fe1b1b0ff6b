"""Configuration: whatever is wrong with it is said in one go, by the names of the variables, and nothing starts."""

from __future__ import annotations

import pytest
from pydantic import Field

from services.kit.config import ServiceConfig, load


class ShopConfig(ServiceConfig):
    """A service with knobs of its own."""

    bank_seconds: float = Field(default=2.0, gt=0)
    bank_target: str = Field(min_length=1)


SOUND = {
    "PAYMESH_SHOP_LISTEN": "127.0.0.1:7100",
    "PAYMESH_SHOP_DATABASE_DSN": "postgresql://shop@127.0.0.1/shop",
    "PAYMESH_SHOP_BANK_TARGET": "127.0.0.1:7110",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A sound environment; nothing of the machine's own."""
    for name in ("LISTEN", "DATABASE_DSN", "BANK_TARGET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SOUND.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_what_is_not_set_has_a_default() -> None:
    config = load(ShopConfig, "shop")
    assert config.listen == "127.0.0.1:7100"
    assert config.bank_target == "127.0.0.1:7110"
    assert config.database_pool_size == 12
    assert config.metrics_listen == ""


def test_a_variable_is_the_services_name_and_the_field(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PAYMESH_SHOP_DRAIN_SECONDS", "3.5")
    environment.setenv("PAYMESH_OTHER_BANK_SECONDS", "9")
    environment.setenv("BANK_SECONDS", "8")
    config = load(ShopConfig, "shop")
    assert config.drain_seconds == 3.5
    assert config.bank_seconds == 2.0


def test_every_mistake_is_reported_at_once_by_its_variable(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("PAYMESH_SHOP_LISTEN", "7100")
    environment.delenv("PAYMESH_SHOP_DATABASE_DSN")
    environment.setenv("PAYMESH_SHOP_DATABASE_POOL_SIZE", "many")
    environment.setenv("PAYMESH_SHOP_DRAIN_SECONDS", "-1")
    environment.setenv("PAYMESH_SHOP_LOG_LEVEL", "loud")
    environment.setenv("PAYMESH_SHOP_BANK_SECONDS", "0")
    environment.setenv("PAYMESH_SHOP_BANK_TARGET", "")
    with pytest.raises(SystemExit) as exit_:
        load(ShopConfig, "shop")
    assert exit_.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("shop: the configuration has 7 mistake(s):\n")
    named = [line.split(":")[0].strip() for line in complaint.splitlines()[1:]]
    assert sorted(named) == sorted(
        f"PAYMESH_SHOP_{field}"
        for field in (
            "LISTEN", "DATABASE_DSN", "DATABASE_POOL_SIZE", "DRAIN_SECONDS", "LOG_LEVEL", "BANK_SECONDS", "BANK_TARGET",
        )
    )  # fmt: skip
    assert "PAYMESH_SHOP_DRAIN_SECONDS: Input should be greater than or equal to 0 (it is '-1')" in complaint
    assert "PAYMESH_SHOP_DATABASE_DSN: Field required\n" in complaint


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LISTEN", "localhost"),
        ("LISTEN", "local host:1"),
        ("METRICS_LISTEN", "9100"),
        ("DATABASE_POOL_SIZE", "3"),
        ("DATABASE_POOL_SIZE", "1.5"),
        ("CONCURRENT_RPCS_MAX", "0"),
        ("DRAIN_SECONDS", "301"),
        ("DRAIN_SECONDS", "nan"),
    ],
)
def test_a_value_out_of_bounds_starts_nothing(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    environment.setenv(f"PAYMESH_SHOP_{variable}", value)
    with pytest.raises(SystemExit) as exit_:
        load(ShopConfig, "shop")
    assert exit_.value.code == 2
    assert f"PAYMESH_SHOP_{variable}: " in capsys.readouterr().err
