"""The command line: what it loads, what it prints and which exit code it gives. No service is called."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from rich.console import Console

from paymesh.cli import commands
from paymesh.cli.program import run_program
from paymesh.cli.replay_report import line_ranges
from paymesh.cli.story import order_response_tree, order_tree
from paymesh.orchestrator.v1 import orchestrator_pb2

CLIENT = Path(__file__).parents[2] / "clients" / "python"


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source file of a package that adds the commands `greet`, `broken`, `gone`, `group` and `order`."""
    source = tmp_path / "greeting_extension.py"
    source.write_text(
        '"""An extension."""\n'
        "import typer\n"
        "group = typer.Typer()\n"
        "@group.command()\n"
        "def inner() -> None:\n"
        '    print("inside")\n'
        "@group.command()\n"
        "def other() -> None:\n"
        "    pass\n"
        "def greet(name: str, loud: bool = False) -> None:\n"
        '    """Greet somebody.\n\n    At length."""\n'
        "    print(name.upper() if loud else name)\n",
        encoding="utf-8",
    )
    points = [
        EntryPoint(name, value, commands.EXTENSION_GROUP)
        for name, value in (
            ("greet", "greeting_extension:greet"),
            ("group", "greeting_extension:group"),
            ("broken", "greeting_extension:nothing"),
            ("gone", "no_such_package.module:run"),
            ("order", "greeting_extension:greet"),
        )
    ]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(commands, "entry_points", lambda group: points)
    yield source
    sys.modules.pop("greeting_extension", None)


@pytest.mark.usefixtures("extension")
def test_extension_is_listed_by_the_first_line_of_its_docstring_without_being_imported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_program(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Greet somebody." in out
    assert "cannot be loaded: there is no module no_such_package" in " ".join(out.split())
    assert "greeting_extension" not in sys.modules


@pytest.mark.usefixtures("extension")
def test_extension_runs_with_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["greet", "you", "--loud"]) == 0
    assert run_program(["group", "inner"]) == 0
    assert capsys.readouterr().out == "YOU\ninside\n"


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", ["broken", "gone"])
def test_extension_that_cannot_be_loaded_gives_one_clear_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program([name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: the command `{name}` of the package")
    assert "cannot be loaded" in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("extension")
def test_extension_cannot_replace_a_built_in_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["order", "--help"]) == 0
    assert "replay" in capsys.readouterr().out


def test_help_does_not_wait_for_grpc() -> None:
    code = (
        "import sys; from paymesh.cli import program; program.run_program(['--help']);"
        "sys.exit(int(any(name.split('.')[0] in ('grpc', 'google') for name in sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(CLIENT)}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("command", [[], *([name] for name in commands.BUILT_IN)])
def test_every_command_explains_itself_with_an_example(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program([*command, "--help"]) == 0
    assert "Usage: paymesh" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "case approve",
        "case assign",
        "case list",
        "case propose",
        "case reject",
        "case show",
        "order place",
        "order get",
        "order dispatch",
        "order cancel",
        "order return",
        "order watch",
        "order replay",
        "ledger balance",
        "ledger entries",
        "payment capture",
        "payment get",
        "payment increment",
        "payment refund",
        "payment void",
        "product add",
        "product get",
        "product list",
        "saga list",
        "saga show",
        "settlement items",
        "settlement list",
        "settlement run",
        "settlement show",
    ],
)
def test_every_leaf_command_has_an_example_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"paymesh {command}" in " ".join(out.split("Example")[-1].split())
    assert "--json" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ordr"], "No such command 'ordr'"),
        (["order", "place", "--nosuch"], "No such option: --nosuch"),
        (["order", "place"], "an order needs --line SKU=PIECES and --amount, or --file"),
        (["order", "place", "--line", "a", "--amount", "1"], "--line a: expected SKU=PIECES"),
        (["order", "place", "--line", "a=-1", "--amount", "1"], "--line a=-1: expected SKU=PIECES"),
        (["order", "place", "--line", "a=1", "--amount", "1.234"], "--amount 1.234 --currency GBP"),
        (["order", "place", "--line", "a=1", "--amount", "1e3"], "is not a decimal number"),
        (["order", "place", "--line", "a=1", "--amount", "9" * 30], "no such amount can be charged"),
        (["order", "place", "--line", "a=1", "--amount", "1", "--currency", "EURO"], "not an ISO 4217"),
        (["order", "place", "--line", "a=1", "--amount", "1", "--key", "ä"], "--key: an idempotency key"),
        (["order", "place", "--file", "/no/such/file"], "No such file"),
        (["order", "replay", "/no/such/file"], "No such file"),
        (["order", "replay", "/no/such/file", "--country", "Jersey"], "expected NAME=CODE"),
        (["saga", "list", "--state", "lost"], "there is no such state"),
        (["settlement", "run", "--date", "tomorrow"], "--date tomorrow: expected a day such as 2026-11-25"),
        (["settlement", "list", "--to", "2026-02-30"], "--to 2026-02-30: expected a day"),
        (["settlement", "items", "--unsettled", "--from", "today"], "goes without --from and --to"),
        (["order", "get"], "Missing argument"),
        (["order", "return", "ord_1", "--line", "a=1"], "give both --line and --amount for a part"),
        (["order", "return", "ord_1", "--amount", "1"], "give both --line and --amount for a part"),
        (["order", "return", "ord_1", "--line", "a", "--amount", "1"], "--line a: expected SKU=PIECES"),
        (["order", "cancel"], "Missing argument"),
    ],
)
def test_mistake_of_the_user_gives_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ('{"nosuch": 1}', 'no field named "nosuch"'),
        ('{"amount": {"amount_minor": 1.5}}', "1.5 is not a whole number"),
        ('{"amount": {"amount_minor": "many"}}', "amount"),
        ("[1]", "expected an object"),
    ],
)
def test_order_file_that_is_no_order_is_refused_in_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "order.json"
    file.write_text(text, encoding="utf-8")
    assert run_program(["order", "place", "--file", str(file)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_nobody_at_the_target_gives_exit_code_3_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_program(["order", "get", "ord_1", "--target", "127.0.0.1:1", "--json"]) == 3
    captured = capsys.readouterr()
    assert "`paymesh up`" in captured.err
    assert json.loads(captured.out)["error"]["reason"] == "UNREACHABLE"


def test_story_of_an_order_shows_steps_and_undos_in_lanes_of_their_own() -> None:
    done, refused = orchestrator_pb2.ATTEMPT_OUTCOME_DONE, orchestrator_pb2.ATTEMPT_OUTCOME_REFUSED
    forward, back = orchestrator_pb2.DIRECTION_DO, orchestrator_pb2.DIRECTION_UNDO
    saga = orchestrator_pb2.Saga(
        saga_id="saga_1", kind="place", state=orchestrator_pb2.SAGA_STATE_COMPENSATED
    )
    saga.created_at.FromMilliseconds(1_000_000)
    saga.ended_at.FromMilliseconds(1_000_020)
    for at, (step, direction, outcome, reason) in enumerate(
        [
            ("reserve", forward, done, ""),
            ("authorize", forward, refused, "INSUFFICIENT_FUNDS"),
            ("reserve", back, done, ""),
        ]
    ):
        attempt = saga.history.add(step=step, direction=direction, attempt=1, outcome=outcome, reason=reason)
        attempt.started_at.FromMilliseconds(1_000_000 + 5 * at)
        attempt.ended_at.FromMilliseconds(1_000_003 + 5 * at)
    order = orchestrator_pb2.Order(
        order_id="ord_1", order_reference="[bold]536365", state=orchestrator_pb2.SAGA_STATE_COMPENSATED
    )
    order.reason.step, order.reason.code = "authorize", "INSUFFICIENT_FUNDS"
    order.amount.amount_minor, order.amount.currency = 1530, "GBP"
    out = Console(width=160, color_system=None)
    with out.capture() as captured:
        out.print(order_tree(order, saga))
    text = captured.get()
    assert "order ord_1 ([bold]536365) COMPENSATED  15.30 GBP  INSUFFICIENT_FUNDS at authorize" in text
    steps, undos = text.split("undos")
    assert "saga saga_1 (place) COMPENSATED in 20.0 ms" in steps
    assert "authorize    REFUSED   at +5.0 ms, took 3.0 ms  INSUFFICIENT_FUNDS" in steps
    assert "reserve      DONE      at +10.0 ms, took 3.0 ms" in undos


def test_an_order_shows_its_money_what_came_back_and_every_story() -> None:
    found = orchestrator_pb2.GetOrderResponse()
    order = found.order
    order.order_id, order.payment_id = "ord_1", "pay_1"
    order.state = orchestrator_pb2.SAGA_STATE_COMPLETED
    order.order_state = orchestrator_pb2.ORDER_STATE_PARTIALLY_RETURNED
    order.lines.add(sku="mug", quantity=2)
    order.returned_lines.add(sku="mug", quantity=1)
    for money, minor in (
        (order.amount, 1800),
        (order.returned_amount, 500),
        (found.payment.captured, 1800),
        (found.payment.refunded, 500),
        (found.payment.held, 0),
    ):
        money.amount_minor, money.currency = minor, "GBP"
    for kind in ("place", "dispatch", "return"):
        found.sagas.add(saga_id=f"saga_{kind}", kind=kind, state=orchestrator_pb2.SAGA_STATE_COMPLETED)
    out = Console(width=160, color_system=None)
    with out.capture() as captured:
        out.print(order_response_tree(found))
    lines = [line.lstrip("├└─│ ") for line in captured.get().splitlines()]
    assert lines == [
        "order ord_1 PARTIALLY_RETURNED  18.00 GBP",
        "sells    2 x mug",
        "returned 1 x mug, for 5.00 GBP",
        "payment  pay_1",
        "money    18.00 GBP captured, 5.00 GBP refunded",
        *(f"saga saga_{kind} ({kind}) COMPLETED" for kind in ("place", "dispatch", "return")),
    ]


@pytest.mark.parametrize(
    ("lines", "shown"), [([], ""), ([7], "7"), ([3, 5, 4, 9], "3-5, 9"), ([1, 2, 4, 5], "1-2, 4-5")]
)
def test_line_numbers_are_shown_as_ranges(lines: list[int], shown: str) -> None:
    assert line_ranges(lines) == shown
