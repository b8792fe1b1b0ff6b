"""A month of history leaves as an archive that stands for itself: whatever is done to one of its files is named.

Payments are written with ids of a month that is over, sealed, exported and verified without a database.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typer.testing import CliRunner

from audit.archive.export import export
from audit.archive.files import ENTRIES, EVENTS, MANIFEST
from audit.archive.manifest import Manifest, read_manifest
from audit.archive.month import Month, read_month
from audit.archive.verify import verify_archives
from audit.cli import commands
from audit.report import AuditError
from audit.trail.proof import check, prove_from_archive
from audit.trail.report import TrailReport
from deploy.local.postgres import EmbeddedPostgres
from services.payment.domain import PaymentKey
from services.payment.trail import checkpoint
from tests.trail import MERCHANT, Trail, open_trail

MONTH = Month(2026, 9)
PAYMENTS = 6


def ids_of(month: Month) -> Callable[[str], str]:
    """As `new_id` would have given them in a month, one second after the other."""
    first = int(month.first_id.removeprefix("pay_"), 16)
    numbers = count(1)
    return lambda prefix: f"{prefix}_{first + next(numbers) * 1000:012x}7abc8000{next(numbers):012x}"


@dataclass
class Exported:
    """A history of two months, and the archive of one."""

    trail: Trail
    folder: Path
    keys: Mapping[str, Ed25519PublicKey]
    payments: list[PaymentKey]

    @property
    def archive(self) -> Path:
        return self.folder / str(MONTH)

    async def verify(self) -> TrailReport:
        return await verify_archives(self.folder, self.keys)

    def sign_again(self, **changes: Any) -> None:
        """What the exporter himself could do: a manifest that agrees with what was changed."""
        from audit.archive.files import files_of, hash_of

        path = self.archive / MANIFEST
        manifest: Manifest = read_manifest(path.read_bytes(), "")
        files = {name: hash_of(self.archive / name) for name in files_of(self.archive)}
        path.write_bytes(manifest._replace(files=files, **changes).sign(self.trail.key).text())

    def change(self, name: str, of: Callable[[list[dict[str, Any]]], None]) -> None:
        path = self.archive / name
        table = pq.read_table(path)
        rows = table.to_pylist()
        of(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


@pytest.fixture
async def exported(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Exported]:
    async with open_trail(postgres, tmp_path) as trail:
        monkeypatch.setattr("bench.history.new_id", ids_of(Month(2026, 8)))
        await trail.write(2)
        monkeypatch.setattr("bench.history.new_id", ids_of(MONTH))
        payments = await trail.write(PAYMENTS // 2)
        await trail.seal()
        payments += await trail.write(PAYMENTS // 2)
        await trail.seal()
        keys = {checkpoint.key_id_of(trail.key.public_key()): trail.key.public_key()}
        to = tmp_path / "archives"
        await export(trail.dsn, trail.folder.path, trail.key, keys, MONTH, to)
        yield Exported(trail, to, keys, payments)


def _told(report: TrailReport) -> list[str]:
    return [str(one) for one in report.first]


async def test_an_archive_is_verified_without_a_database(exported: Exported) -> None:
    report = await exported.verify()
    assert _told(report) == []
    assert (report.payments, report.events, report.sealed) == (PAYMENTS, 4 * PAYMENTS, 4 * PAYMENTS)
    manifest = read_manifest((exported.archive / MANIFEST).read_bytes(), "")
    assert (manifest.payments, manifest.entries, manifest.checkpoints) == (PAYMENTS, PAYMENTS * 7, [1, 2])


async def test_what_somebody_changes_in_a_file_is_named_by_file_and_row(exported: Exported) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[1]["data"] = rows[1]["data"].replace("A1B2C3", "ZZZZZZ")

    exported.change(EVENTS, change)
    told = _told(await exported.verify())
    assert f"archive: {MONTH}/{EVENTS} is not the file that was written" in told
    assert any(one.startswith(f"changed: {MERCHANT} {exported.payments[0][1]} event 2 ") for one in told)


def _other_currency(rows: list[dict[str, Any]]) -> None:
    rows[0].update(hash=None, data=rows[0]["data"].replace("USD", "EUR"))


def _other_time(rows: list[dict[str, Any]]) -> None:
    rows[1]["recorded_at"] += timedelta(seconds=1)


def _other_amount(rows: list[dict[str, Any]]) -> None:
    rows[0]["amount_minor"] += 1


def _first_last(rows: list[dict[str, Any]]) -> None:
    rows.append(rows.pop(0))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (EVENTS, lambda rows: rows.pop(2), "deleted: {m} {first} event 3 was sealed by checkpoint 1 and is gone"),
        (EVENTS, lambda rows: rows.__delitem__(slice(0, 4)), "deleted: {m} {first} event 1 was sealed by checkpoint 1"),
        (EVENTS, lambda rows: rows.pop(3), "deleted: {m} {first} event 4 was sealed by checkpoint 1 and is gone"),
        (EVENTS, _first_last, "reordered: {m} {first} stands behind others"),
        (EVENTS, lambda rows: rows.insert(0, rows.pop(1)), "deleted: {m} {first} event 1 is missing between others"),
        (EVENTS, _other_currency, "changed: {m} {first}"),
        (EVENTS, _other_time, "changed: {m} {first} event 2 was recorded"),
        (ENTRIES, lambda rows: rows.pop(0), "ledger: {m} {first} line 1 of journal {first}/2 is missing"),
        (ENTRIES, _other_amount, "ledger: {m} {first} line 1 of journal {first}/2 is not what"),
        (ENTRIES, _first_last, "ledger: {m} {first} line 1 of journal {first}/2 belongs to no"),
    ],
)  # fmt: skip
async def test_even_the_exporter_cannot_change_a_row(
    exported: Exported, name: str, change: Callable[[list[dict[str, Any]]], None], told: str
) -> None:
    """The manifest is signed again, so that it agrees; the checkpoints and the events themselves still tell."""
    exported.change(name, change)
    counts = {
        name: pq.read_metadata(exported.archive / f"{name}.parquet").num_rows
        for name in ("events", "entries")
    }
    exported.sign_again(**counts)
    report = await exported.verify()
    wanted = told.format(m=MERCHANT, first=exported.payments[0][1])
    assert any(one.startswith(wanted) for one in _told(report)), _told(report)


async def test_a_payment_that_is_left_out_with_its_checkpoint_is_told_by_the_manifest(
    exported: Exported,
) -> None:
    (exported.archive / "checkpoints" / "00000002.checkpoint").unlink()
    exported.change(EVENTS, lambda rows: rows.__delitem__(slice(4 * PAYMENTS // 2, None)))
    told = _told(await exported.verify())
    assert f"archive: {MONTH}/checkpoints/00000002.checkpoint is missing" in told
    assert f"archive: {MONTH} has {PAYMENTS // 2} payments where its manifest says {PAYMENTS}" in told


@pytest.mark.parametrize("place", ["manifest", "signature", "file", "checkpoint"])
async def test_other_hands_on_the_files_are_seen(exported: Exported, place: str) -> None:
    path = exported.archive / MANIFEST
    match place:
        case "manifest":
            path.write_text(path.read_text().replace(f'"payments": {PAYMENTS}', '"payments": 5'))
        case "signature":
            other = Ed25519PrivateKey.generate()
            path.write_bytes(read_manifest(path.read_bytes(), "").sign(other).text())
        case "file":
            (exported.archive / "more.parquet").write_bytes(b"")
        case "checkpoint":
            file = exported.archive / "checkpoints" / "00000001.checkpoint"
            file.write_bytes(file.read_bytes().replace(MERCHANT.encode(), b"mer_other", 1))
    report = await exported.verify()
    assert set(report.kinds) & {"archive", "checkpoint"}, _told(report)


async def test_a_torn_file_is_one_line(exported: Exported) -> None:
    path = exported.archive / EVENTS
    path.write_bytes(path.read_bytes()[:-100])
    told = _told(await exported.verify())
    assert any("events.parquet cannot be read" in one for one in told)


async def test_one_payment_is_proved_from_its_archive(exported: Exported) -> None:
    merchant_id, payment_id = exported.payments[-1]
    proof = prove_from_archive(exported.folder, merchant_id, payment_id)
    assert check(proof, exported.keys) == []
    assert [event["version"] for event in proof["events"]] == [1, 2, 3, 4]
    proof["events"][3]["data"] = proof["events"][3]["data"].replace("1", "2")
    assert check(proof, exported.keys) != []
    with pytest.raises(AuditError, match="no payment pay_nobody"):
        prove_from_archive(exported.folder, merchant_id, "pay_nobody")


async def test_what_is_not_over_not_sealed_or_not_whole_is_not_exported(
    exported: Exported, tmp_path: Path
) -> None:
    trail, keys = exported.trail, exported.keys
    to = tmp_path / "refused"

    async def refused(month: str, why: str) -> None:
        with pytest.raises(AuditError, match=why):
            await export(trail.dsn, trail.folder.path, trail.key, keys, read_month(month), to)
        assert not list(to.glob("*")), "nothing is left behind"

    await refused("2999-01", "is not over yet")
    await refused("2026-07", "no payment began in 2026-07")
    monkeypatched = ids_of(Month(2026, 7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.history.new_id", monkeypatched)
        await trail.write(1)
    await refused("2026-07", "4 events of 2026-07 are not sealed yet")
    trail.tamper(
        "UPDATE payment_events SET data = '{{}}' WHERE payment_id = '{id}' AND version = 2",
        id=exported.payments[0][1],
    )
    await refused(str(MONTH), "2026-09 is not as it was written")
    with pytest.raises(AuditError, match="is there already"):
        await export(trail.dsn, trail.folder.path, trail.key, keys, MONTH, exported.folder)


async def test_the_commands_export_verify_and_prove(exported: Exported, tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    from cryptography.hazmat.primitives import serialization as form

    private = form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    pem.write_bytes(exported.trail.key.private_bytes(*private))
    shutil.rmtree(exported.archive)
    environment = {"PAYMESH_PAYMENT_DATABASE_DSN": exported.trail.dsn}
    common = ["--key", str(pem)]

    def run(*arguments: str) -> Any:
        import concurrent.futures

        # The commands have a loop of their own.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(
                lambda: CliRunner().invoke(commands, [*arguments, *common], env=environment)
            ).result()

    made = run("export", "--month", "2026-09", "--to", str(exported.folder), "--checkpoints",
               str(exported.trail.folder.path), "--sign-with", str(pem))  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "6 payments, 24 events" in made.stdout
    verified = run("verify", "--archive", str(exported.folder))
    assert verified.exit_code == 0, verified.output
    assert "history is as it was written" in verified.stdout
    assert json.loads(run("verify", "--archive", str(exported.folder), "--json").stdout)["events"] == 24
    merchant_id, payment_id = exported.payments[0]
    proof = tmp_path / "proof.json"
    # `prove` needs no key.
    common.clear()
    made = run(
        "prove",
        payment_id,
        "--merchant",
        merchant_id,
        "--archive",
        str(exported.archive),
        "--out",
        str(proof),
    )
    assert made.exit_code == 0, made.output
    common += ["--key", str(pem)]
    assert run("check-proof", str(proof)).exit_code == 0
    (exported.archive / ENTRIES).write_bytes(b"")
    broken = run("verify", "--archive", str(exported.folder))
    assert broken.exit_code == 1
    assert "HISTORY WAS CHANGED" in broken.stdout
    for arguments, told in (
        (("verify", "--archive", str(tmp_path / "none")), "there is no archive in"),
        (("export", "--month", "September", "--to", str(exported.folder)), "is no month"),
    ):
        wrong = run(*arguments)
        assert (wrong.exit_code, wrong.stdout) == (2, "")
        assert told in wrong.stderr
