"""Payment as a process: what it appends while it works is a chain, and its sealer seals it beside the work, kills
included. Without a key it does not start.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.trail.report import TrailReport
from audit.trail.verify import verify
from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from services.payment.trail import checkpoint
from services.payment.trail.folder import CheckpointFolder
from tests.conftest import Services
from tests.payment_mesh import PaymentMesh, Shop, until

ORDERS = 40


@pytest.fixture
def sealing(tmp_path: Path) -> dict[str, str]:
    """Settings of a payment that seals all the time."""
    key = tmp_path / "key.pem"
    key.write_bytes(checkpoint.new_private_key())
    folder = tmp_path / "checkpoints"
    return {
        "seal_folder": str(folder),
        "seal_key_file": str(key),
        "seal_seconds": "0.1",
        "seal_settle_seconds": "0.1",
    }


@pytest.fixture
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path: Path, sealing: dict[str, str]
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path)
    mesh = PaymentMesh.start(services, valkey.url, {}, **sealing)
    yield mesh
    mesh.close()
    services.stop()


async def _verify(mesh: PaymentMesh, sealing: dict[str, str]) -> TrailReport:
    public = checkpoint.read_public_key(Path(sealing["seal_key_file"]).read_bytes())
    keys = {checkpoint.key_id_of(public): public}
    return await verify(mesh.payment_dsn, Path(sealing["seal_folder"]), keys)


async def test_everything_is_sealed_beside_the_work_by_two_processes_of_which_one_is_killed(
    mesh: PaymentMesh, sealing: dict[str, str]
) -> None:
    other = mesh.another_payment(database_dsn=mesh.payment_dsn, **sealing)
    beside: list[TrailReport] = []
    async with Shop(mesh, "sealed") as shop, Shop(mesh, "sealed-too", other.target) as second:

        async def trade(number: int, customer: Shop) -> None:
            order = f"o{number}"
            payment = await customer.authorize(f"a{number}", customer.wish(order))
            await customer.void(f"v{number}", payment.payment_id)

        trading = asyncio.gather(*(trade(n, (shop, second)[n % 2]) for n in range(ORDERS)))
        while not trading.done():
            beside.append(await _verify(mesh, sealing))
            await asyncio.sleep(0.05)
        await trading
        other.kill(signal.SIGKILL)
        await shop.authorize("last", shop.wish("last"))

        async def all_sealed() -> TrailReport | None:
            report = await _verify(mesh, sealing)
            return report if not report.ok or not report.unsealed else None

        report = await until(all_sealed)
    assert report.ok, report.first
    assert [one.first for one in beside if not one.ok] == [], "a verification beside work accuses nobody"
    assert report.events == report.sealed == 4 * ORDERS + 2
    assert report.unhashed == 0
    assert CheckpointFolder(Path(sealing["seal_folder"])).numbers()


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (None, "there is a SEAL_FOLDER and no SEAL_KEY_FILE"),
        ("", "No such file"),
        ("no key\n", "cannot be used"),
    ],
)
def test_without_a_key_payment_does_not_start(
    services: Services, tmp_path: Path, key: str | None, told: str
) -> None:
    file = tmp_path / "some.pem"
    if key:
        file.write_text(key)
    settings = {
        "seal_folder": str(tmp_path / "checkpoints"),
        "seal_key_file": "" if key is None else str(file),
    }
    with pytest.raises(AssertionError, match=f"ended with 1:(.|\n)*{told}"):
        services.start("payment", fraud_target="127.0.0.1:1", bank_target="127.0.0.1:1", **settings)
    assert not (tmp_path / "checkpoints").exists()
