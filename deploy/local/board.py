"""What `paymesh up` shows: one table of what runs where, kept up to date."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.local.keeper import Keeper, State
from deploy.local.supervisor import Mesh

COLOURS = {State.READY: "green", State.RESTARTING: "yellow", State.FAILED: "red", State.STOPPED: "dim"}


class Board:
    """On a terminal one table that changes in place; elsewhere the table once, then a line a change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._mesh: Mesh | None = None
        self._table_shown = False

    def show(self, mesh: Mesh) -> None:
        """The mesh to show; called again when all of it serves."""
        self._mesh = mesh
        if self._live:
            self._live.update(self._table(mesh), refresh=True)
        elif all(keeper.state is State.READY for keeper in mesh.keepers.values()) and mesh.keepers:
            self._console.print(self._table(mesh))
            self._table_shown = True

    def changed(self, keeper: Keeper) -> None:
        """One process changed its state."""
        if self._mesh is None:
            return
        if self._live:
            self._live.update(self._table(self._mesh), refresh=True)
        elif self._table_shown and keeper.state is not State.STARTING:
            self._console.print(_sentence(keeper), highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """A line of text above the table."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def _table(self, mesh: Mesh) -> Table:
        table = Table(title=f"paymesh on {mesh.folder.path}", caption=f"logs in {mesh.folder.logs}")
        for heading in ("name", "address", "pid", "state", "restarts", "database", "log"):
            right = heading in ("pid", "restarts")
            table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "database")
        databases = {instance.name: instance.service.name for instance in mesh.plan.instances}
        for name, where in mesh.stores.external.items():
            table.add_row(name, where, "", "yours", "", "", "")
        for name, keeper in mesh.keepers.items():
            state = Text(keeper.state, style=COLOURS.get(keeper.state, ""))
            pid = str(keeper.program.pid or "")
            log = keeper.program.log.name
            database = databases.get(name, "")
            table.add_row(name, keeper.program.address, pid, state, str(keeper.restarts), database, log)
        return table


def _sentence(keeper: Keeper) -> str:
    if keeper.state is State.READY:
        where = f"at {keeper.program.address}, pid {keeper.program.pid}"
        return f"{keeper.name} serves again {where}, restart {keeper.restarts}"
    if keeper.state is State.RESTARTING:
        return f"{keeper.name} ended ({keeper.last_end}); starting it again"
    return f"{keeper.name} {keeper.state}"
