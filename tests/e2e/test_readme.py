"""The README is true: its commands are run as they stand, in order, and print what it says they print.

A fenced block says in its info string (the words behind ```, which no reader sees) what is to become of it:

    sh run             run by `sh -eu` in the project's folder; it must end with 0
    sh run exit=1      the same, but it must end with 1
    sh elsewhere       not run here: `ELSEWHERE` says of each line why, and what covers it
    text shows         what the block before prints: standard output and standard error as one text
                       `…` within a line stands for anything, a line that is only `…` for any number of lines

Every `sh` block must have such a mark. The blocks are lines typed into one terminal: a variable that is set in one
is there in the next. What changes on the way to the shell: `.venv/bin` becomes the environment that runs this test,
and the ports those of a mesh that was started for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from deploy.local import mesh as layout
from deploy.local.ports import free_base_port
from sandbox.bank.cards import CARDS, Card

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_SECONDS_MAX = 60.0
COMMAND_SECONDS_MAX = 60.0

ELSEWHERE = {
    "make demo": ("has a mesh of its own", "tests/e2e/test_readme.py"),
    "make up": (
        "runs until it is stopped; the mesh of this test is started by its command",
        "tests/e2e/test_local_cli.py",
    ),
    "PAYMESH_PROCESSOR=stripe PAYMESH_STRIPE_KEY=sk_test_… make up": (
        "needs an account at Stripe; tests have a stand-in for it",
        "tests/integration/test_payment_stripe.py",
    ),
    "make bench": ("measures for a minute, and wants the machine for itself", "tests/e2e/test_bench.py"),
    "make test": ("runs this test", ".ci/run"),
    "make verify": ("runs before the tests", ".ci/run"),
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 OTEL_TRACES_SAMPLER_ARG=1 make up": (
        "needs a collector; the file of the next line is fed by the same spans",
        "tests/e2e/test_traces.py",
    ),
    "PAYMESH_TRACE_FILE=$PWD/spans.jsonl OTEL_TRACES_SAMPLER_ARG=1 make up": (
        "the mesh of this test is started with these variables",
        "tests/e2e/test_readme.py",
    ),
}
"""Lines that are not run here: why not, and the file that sees to them."""


@dataclass(frozen=True)
class Block:
    """A fenced block of shell commands."""

    line: int
    """Of the README."""
    mark: str
    """ "run" or "elsewhere"; empty when it has none."""
    commands: str
    exit_code: int
    shows: str | None
    """What it promises to print."""


@cache
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@cache
def blocks() -> tuple[Block, ...]:
    """The shell blocks of the README, in order."""
    found: list[Block] = []
    for token in MarkdownIt("commonmark").parse(readme()):
        if token.type != "fence":
            continue
        language, *words = token.info.split() or [""]
        line = (token.map or [0])[0] + 1
        if language == "sh":
            exit_code = next((int(word.removeprefix("exit=")) for word in words if "=" in word), 0)
            found.append(Block(line, words[0] if words else "", token.content.strip(), exit_code, None))
        elif (language, words) == ("text", ["shows"]):
            before = found.pop()
            assert before.mark == "run", f"line {line}: there is nothing before this that prints it"
            found.append(Block(before.line, before.mark, before.commands, before.exit_code, token.content))
    return tuple(found)


def keeps_promise(shows: str, printed: str) -> bool:
    """Whether a text is what was promised."""
    pattern = ""
    for line in shows.splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("…")) + r" *\n"
    text = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
    return re.fullmatch(pattern, text) is not None


@dataclass(frozen=True)
class LocalMesh:
    """A mesh that `paymesh up` runs."""

    base_port: int
    environment: dict[str, str]
    spans: Path
    terminal: Path
    """Keeps the variables that commands have set, for those that come after."""

    def run(self, commands: str) -> tuple[int, str]:
        """Exit code and output of commands as the README has them."""
        commands = commands.replace(".venv/bin/", f"{BIN}/")
        commands = re.sub(
            r"127\.0\.0\.1:71(\d\d)", lambda port: f"127.0.0.1:{self.base_port + int(port[1])}", commands
        )
        kept = self.terminal
        here = f"set -a; if [ -f {kept} ]; then . {kept}; fi; trap 'export -p >{kept}' EXIT\n"
        ended = subprocess.run(
            ["sh", "-euc", here + commands],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        return ended.returncode, ended.stdout


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of a user who has set nothing."""
    if not (BIN / "paymesh").exists():
        pytest.skip("paymesh is not installed beside this Python: run `make test-e2e`")
    unset = ("PAYMESH_", "OTEL_", "COLUMNS", "FORCE_COLOR")
    return {name: value for name, value in os.environ.items() if not name.startswith(unset)}


@pytest.fixture(scope="module")
def local_mesh(environment: dict[str, str]) -> Iterator[LocalMesh]:
    """`make up` in the other terminal, with tracing, on a folder and ports of its own."""
    # Not under pytest's own folder: another run would take PostgreSQL's access away.
    folder = Path(tempfile.mkdtemp(prefix="paymesh-readme-"))
    base_port = free_base_port(layout.plan())
    spans = folder / "spans.jsonl"
    environment = {
        **environment,
        "PAYMESH_DATA": str(folder / "data"),
        **{
            f"PAYMESH_{name}TARGET": f"127.0.0.1:{base_port + offset}"
            for name, offset in (
                ("", 0),
                ("PAYMENT_", 1),
                ("INVENTORY_", 2),
                ("FRAUD_", 4),
                ("RECONCILER_", 5),
                ("BANK_", 10),
            )
        },
    }
    traced = {"PAYMESH_TRACE_FILE": str(spans), "OTEL_TRACES_SAMPLER_ARG": "1"}
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "paymesh", "up", "--base-port", str(base_port)],
            cwd=ROOT,
            env=environment | traced,
            stdout=output,
            stderr=output,
        )
    try:
        give_up_at = time.monotonic() + START_SECONDS_MAX
        while "everything serves" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < give_up_at, log.read_text(errors="replace")
            time.sleep(0.1)
        yield LocalMesh(base_port, environment, spans, folder / "terminal")
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(300)
def test_every_command_prints_what_the_readme_says(local_mesh: LocalMesh) -> None:
    for block in (block for block in blocks() if block.mark == "run"):
        exit_code, printed = local_mesh.run(block.commands)
        where = f"README.md:{block.line}\n{block.commands}\nended with {exit_code} and printed\n{printed}"
        assert exit_code == block.exit_code, where
        assert block.shows is None or keeps_promise(block.shows, printed), (
            f"{where}\ninstead of\n{block.shows}"
        )

    # By now the last block has stopped the mesh, so every span is written.
    spans = [json.loads(line) for line in local_mesh.spans.read_text(encoding="utf-8").splitlines()]
    services: dict[str, set[str]] = {}
    for span in spans:
        services.setdefault(span["context"]["trace_id"], set()).add(
            span["resource"]["attributes"]["service.name"]
        )
    # The reconciler comes by night: it has no part in an order.
    everybody = {service.name for service in layout.SERVICES if service is not layout.RECONCILER}
    assert everybody in services.values(), "no trace shows an order in every service"


@pytest.mark.timeout(300)
def test_the_demonstration_ends_well(environment: dict[str, str]) -> None:
    ended = subprocess.run(
        [BIN / "paymesh", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("kill -9") == 2
    assert "400 orders in" in ended.stdout
    assert "VIOLATED" not in ended.stdout


def test_every_shell_block_is_run_or_accounted_for() -> None:
    assert [block.line for block in blocks() if block.mark not in {"run", "elsewhere"}] == []
    lines = {line for block in blocks() if block.mark == "elsewhere" for line in block.commands.splitlines()}
    assert lines == ELSEWHERE.keys()
    assert [file for _, file in ELSEWHERE.values() if not (ROOT / file).is_file()] == []


def test_a_target_of_make_is_the_command_that_is_run_here() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("demo", "up", "bench"):
        assert re.search(rf"^{name}:.*\n\t@\$\(BIN\)/paymesh {name}$", makefile, re.MULTILINE), name


def test_the_table_of_test_cards_is_that_of_the_bank() -> None:
    rows = dict(re.findall(r"^\| `(tok_\w+)` \| (.*) \|$", readme(), re.MULTILINE))
    assert rows == {card.token: _what_the_bank_does(card) for card in CARDS}


def _what_the_bank_does(card: Card) -> str:
    later = {
        "increments": card.increment_reason,
        "captures": card.capture_reason,
        "refunds": card.refund_reason,
    }
    said = [card.decline_reason or "approved"]
    said += [f"after {card.delay_ms // 1000} s"] if card.delay_ms else []
    said += [f"{what}: {reason}" for what, reason in later.items() if reason]
    return ", ".join(said)


@pytest.mark.parametrize(
    ("shows", "printed", "kept"),
    [
        ("a\n", "a\n", True),
        ("a …\n", "a b c\n", True),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
        ("a\n…\n", "b\na\n", False),
    ],
)
def test_a_broken_promise_is_seen(shows: str, printed: str, kept: bool) -> None:
    assert keeps_promise(shows, printed) is kept
