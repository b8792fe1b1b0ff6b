"""`paymesh up` and `paymesh down` as a user runs them: a process, a terminal, signals, exit codes.

Stand-ins (see test_local_supervisor) take the place of the services.
"""

import codecs
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import mesh as layout
from deploy.local.ports import free_base_port

from .test_local_supervisor import ALPHA, BETA, MODULES, is_alive

PROGRAM = """
import functools, typer
from deploy.local import cli
from tests.e2e.test_local_supervisor import ALPHA, BETA

cli.Mesh = functools.partial(cli.Mesh, services=(ALPHA, BETA))
program = typer.Typer(rich_markup_mode="markdown")
for command in (cli.up, cli.down, cli.demo):
    program.command()(command)
program()
"""


class CommandLine:
    """Runs the commands in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        for name, text in MODULES.items():
            (folder / f"{name}.py").write_text(text)
        path = os.pathsep.join([str(folder), str(layout.ROOT), str(layout.ROOT / "clients" / "python")])
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PAYMESH_")}
        self.environment = kept | {"PYTHONPATH": path, "COLUMNS": "160", "TERM": "xterm", "NO_COLOR": "1"}
        self.folder = folder
        self.base_port = free_base_port(layout.plan((ALPHA, BETA)))
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command and do not wait for it."""
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command to its end: exit code, output, errors."""
        output, errors = self.start(*arguments).communicate(timeout=60)
        return self._started[-1].returncode, output, errors

    def up(self, *arguments: str) -> tuple[subprocess.Popen[str], str]:
        """Start `up` and wait until everything serves; the process and what it printed until then."""
        process = self.start("up", "--base-port", str(self.base_port), *arguments)
        return process, self.read_until(process, "everything serves")

    @staticmethod
    def read_until(process: subprocess.Popen[str], text: str) -> str:
        """What the process prints up to the line that contains `text`."""
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
        pytest.fail(f"{text!r} was not printed, but: {''.join(lines)} {process.communicate()[1]}")

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    commands = CommandLine(tmp_path)
    yield commands
    commands.stop()


def pids_in(table: str) -> dict[str, int]:
    """Process ids by name, read from the table."""
    found = re.findall(r"│ (\S+) +│ 127\.0\.0\.1:\d+ │ +(\d+) │ ready ", table)
    return {name: int(pid) for name, pid in found}


def test_up_shows_what_runs_where_and_ctrl_c_ends_it_with_success(command_line: CommandLine) -> None:
    process, output = command_line.up()
    pids = pids_in(output)
    assert list(pids) == ["postgres", "valkey", "alpha", "beta"]
    assert all(is_alive(pid) for pid in pids.values())
    assert f"127.0.0.1:{command_line.base_port}" in output
    assert "beta.log" in output
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "stopping" in rest
    assert not any(is_alive(pid) for pid in pids.values())


def test_an_impatient_user_ends_everything_at_once_and_loses_nothing(command_line: CommandLine) -> None:
    process, output = command_line.up()
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    assert process.returncode == 0
    assert not any(is_alive(pid) for pid in pids_in(output).values())
    command_line.up()


def test_up_tells_of_a_restart(command_line: CommandLine) -> None:
    process, output = command_line.up()
    os.kill(pids_in(output)["alpha"], signal.SIGKILL)
    story = command_line.read_until(process, "serves again")
    assert "alpha ended (killed by SIGKILL); starting it again" in story
    assert re.search(r"alpha serves again at 127\.0\.0\.1:\d+, pid \d+, restart 1", story)


def test_on_a_terminal_the_table_itself_changes(command_line: CommandLine) -> None:
    terminal, far_end = os.openpty()
    process = command_line.start("up", "--base-port", str(command_line.base_port), stdout=far_end)
    os.close(far_end)
    decoder = codecs.getincrementaldecoder("utf-8")()
    output = ""
    killed = stopped = False
    with contextlib.suppress(OSError):  # a terminal ends with an error once nobody holds its far end
        while part := os.read(terminal, 65536):
            output += decoder.decode(part)
            if "everything serves" in output and not killed:
                killed = True
                os.kill(pids_in(output)["alpha"], signal.SIGKILL)
            if re.search(r"│ alpha .*│ ready +│ +1 │", output) and not stopped:
                stopped = True
                process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert re.search(r"│ alpha .*│ restarting +│ +1 │", output)


def test_down_stops_what_up_started_and_says_when_nothing_runs(command_line: CommandLine) -> None:
    assert command_line.run("down") == (0, "nothing runs on .paymesh\n", "")
    assert not (command_line.folder / ".paymesh").exists(), "looking changes nothing"
    process, output = command_line.up()
    assert command_line.run("down") == (0, f"stopped the mesh on .paymesh (process {process.pid})\n", "")
    assert process.wait(10) == 0
    assert not any(is_alive(pid) for pid in pids_in(output).values())
    assert command_line.run("down") == (0, "nothing runs on .paymesh\n", "")


def test_ctrl_c_while_things_start_leaves_nothing_behind(command_line: CommandLine) -> None:
    command_line.environment["PAYMESH_ALPHA_WARM_UP"] = "30"
    process = command_line.start("up", "--base-port", str(command_line.base_port))
    log = command_line.folder / ".paymesh" / "logs" / "beta.log"
    give_up_at = time.monotonic() + 30
    while not (log.exists() and "serving" in log.read_text()):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert command_line.run("down")[1] == "nothing runs on .paymesh\n"


@pytest.mark.parametrize("kind", ["port", "folder", "twice", "too many"])
def test_a_mistake_is_one_clear_line_and_exit_code_2(command_line: CommandLine, kind: str) -> None:
    base_port = command_line.base_port
    with contextlib.ExitStack() as cleaning:
        if kind == "port":
            cleaning.enter_context(socket.create_server(("127.0.0.1", base_port + 1)))
            arguments, expected = [], f"error: port {base_port + 1}, meant for alpha, is in use"
        elif kind == "folder":
            (command_line.folder / "file").touch()
            arguments, expected = ["--data", "file/data"], "cannot be written"
        elif kind == "twice":
            process, _ = command_line.up()
            arguments, expected = [], f"already (process {process.pid}): stop it with `paymesh down`"
        else:
            arguments, expected = ["--payments", "6"], "less than or equal to 5"
        code, output, errors = command_line.run("up", "--base-port", str(base_port), *arguments)
    assert code == 2
    assert expected in errors
    assert "Traceback" not in output + errors
    if kind != "too many":
        assert errors.count("\n") == 1


def test_data_named_by_the_environment_are_used(command_line: CommandLine) -> None:
    command_line.environment["PAYMESH_DATA"] = "elsewhere"
    command_line.up()
    assert (command_line.folder / "elsewhere" / "postgres" / "PG_VERSION").exists()
    assert command_line.run("down")[0] == 0


@pytest.mark.parametrize("command", ["up", "down", "demo"])
def test_help_shows_examples(command_line: CommandLine, command: str) -> None:
    code, output, _ = command_line.run(command, "--help")
    assert code == 0
    assert "Examples:" in output
    assert f"paymesh {command}" in output.partition("Examples:")[2]
