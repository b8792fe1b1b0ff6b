"""`paymesh audit verify`, `prove` and `check-proof`, as a person and as a program uses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from audit.cli import commands
from deploy.local.postgres import EmbeddedPostgres
from services.payment.domain import PaymentKey
from services.payment.trail import checkpoint
from tests.trail import MERCHANT, Trail, open_trail


class Shell:
    """A trail with two sealed payments and one that is not, its public key, and the commands."""

    def __init__(self, trail: Trail, keys: list[PaymentKey], folder: Path) -> None:
        self.trail = trail
        self.keys = keys
        self.folder = folder
        self.public = folder / "trail.pub"
        self.public.write_bytes(checkpoint.public_pem(trail.key.public_key()))

    async def run(self, *arguments: str, dsn: str = "") -> Result:
        """One command line."""
        environment = {"PAYMESH_PAYMENT_DATABASE_DSN": dsn or self.trail.dsn}
        return await asyncio.to_thread(CliRunner().invoke, commands, list(arguments), env=environment)

    async def verify(self, *more: str) -> Result:
        """With folder and key."""
        return await self.run(
            "verify", "--checkpoints", str(self.trail.folder.path), "--key", str(self.public), *more
        )

    async def prove(self, payment_id: str) -> Result:
        """With the folder."""
        return await self.run(
            "prove", payment_id, "--merchant", MERCHANT, "--checkpoints", str(self.trail.folder.path)
        )

    async def check(self, proof: Any) -> Result:
        """A proof as JSON, with the key and a database that is not there."""
        file = self.folder / "proof.json"
        file.write_text(proof if isinstance(proof, str) else json.dumps(proof))
        return await self.run(
            "check-proof", str(file), "--key", str(self.public), dsn="postgresql://no@127.0.0.1:1/no"
        )


@pytest.fixture
async def shell(postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Shell]:
    async with open_trail(postgres, tmp_path) as trail:
        keys = await trail.write(2)
        await trail.seal()
        keys += await trail.write(1)
        yield Shell(trail, keys, tmp_path)


async def test_a_history_that_is_whole_ends_with_0(shell: Shell) -> None:
    told = await shell.verify()
    assert told.exit_code == 0, told.output
    assert "3 payments, 12 events, 1 checkpoints with 8 events; 4 are not sealed yet" in told.stdout
    assert "history is as it was written" in told.stdout
    report = json.loads((await shell.verify("--json")).stdout)
    assert report["ok"]
    assert (report["events"], report["sealed"], report["unsealed"]) == (12, 8, 4)


async def test_a_history_that_was_changed_ends_with_1_and_is_named(shell: Shell) -> None:
    id_ = shell.keys[0][1]
    shell.trail.tamper(f"DELETE FROM payment_events WHERE payment_id = '{id_}' AND version = 4")
    told = await shell.verify()
    assert told.exit_code == 1
    assert f"cut off: {MERCHANT} {id_} event 4 is missing: the payment's row is at 4" in told.stdout
    assert f"deleted: {MERCHANT} {id_} event 4 was sealed by checkpoint 1 and is gone" in told.stdout
    assert "HISTORY WAS CHANGED: 1 cut off, 1 deleted" in told.stdout
    told = await shell.verify("--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["kinds"] == {"cut off": 1, "deleted": 1}


async def test_what_cannot_be_read_ends_with_2(shell: Shell) -> None:
    told = await shell.run("verify", "--key", str(shell.folder / "none.pub"))
    assert (told.exit_code, told.stdout) == (2, "")
    assert "none.pub cannot be read" in told.stderr
    told = await shell.run("verify", "--key", str(shell.public), dsn="postgresql://no@127.0.0.1:1/no")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith("error: the database of payment does not answer")


async def test_options_before_the_command_are_refused_and_not_ignored(shell: Shell) -> None:
    told = await shell.run("--data", "elsewhere", "verify")
    assert told.exit_code == 2
    assert "go behind it" in told.output


async def test_a_proof_holds_without_database_and_checkpoints(shell: Shell) -> None:
    id_ = shell.keys[0][1]
    proof = await shell.prove(id_)
    assert proof.exit_code == 0, proof.output
    told = await shell.check(proof.stdout)
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith(f"proved: {id_} of {MERCHANT}, 4 events\n  1 PaymentInitiated")


async def test_a_proof_of_anything_else_does_not_hold(shell: Shell) -> None:
    id_ = shell.keys[0][1]
    proof = json.loads((await shell.prove(id_)).stdout)
    first, last = proof["events"][0], proof["events"][-1]
    lies: list[dict[str, Any]] = [
        {**proof, "merchant_id": "mer_other"},
        {**proof, "payment_id": shell.keys[1][1]},
        {**proof, "events": proof["events"][1:]},
        {**proof, "events": []},
        {**proof, "events": [{**first, "data": first["data"].replace("USD", "EUR")}, *proof["events"][1:]]},
        {**proof, "events": [*proof["events"][:-1], {**last, "type": "PaymentCaptureRefused"}]},
        {**proof, "events": [*proof["events"][:-1], {**last, "recorded_us": last["recorded_us"] + 1}]},
        {**proof, "events": [*proof["events"][:-1], {**last, "path": last["path"][:-1]}]},
        {**proof, "events": [*proof["events"][:-1], {**last, "place": last["place"] ^ 1}]},
        {**proof, "checkpoints": {"1": proof["checkpoints"]["1"].replace('"events":8', '"events":9')}},
        {**proof, "checkpoints": {}},
        {**proof, "format": "another"},
        {"format": proof["format"]},
    ]
    for lie in lies:
        told = await shell.check(lie)
        assert told.exit_code == 1, lie
        assert told.stdout.startswith("not proved: ")
    assert (await shell.check("no json")).exit_code == 2
    assert (await shell.check("[]")).exit_code == 1


async def test_a_proof_leaves_out_what_is_not_sealed_yet(shell: Shell) -> None:
    told = await shell.prove(shell.keys[2][1])
    assert told.exit_code == 2
    assert "is sealed yet" in told.stderr
    told = await shell.prove("pay_none")
    assert told.stderr == f"error: merchant {MERCHANT} has no payment pay_none\n"
    await shell.trail.seal()
    proof = json.loads((await shell.prove(shell.keys[2][1])).stdout)
    assert list(proof["checkpoints"]) == ["2"]
    assert (await shell.check(proof)).exit_code == 0


async def test_a_proof_by_another_key_does_not_hold(shell: Shell) -> None:
    proof = (await shell.prove(shell.keys[0][1])).stdout
    stranger = checkpoint.read_private_key(checkpoint.new_private_key())
    shell.public.write_bytes(checkpoint.public_pem(stranger.public_key()))
    told = await shell.check(proof)
    assert told.exit_code == 1
    assert "none of those that were given" in told.stdout
