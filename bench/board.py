"""What is shown while a bench runs: one bar on a terminal, elsewhere a line per phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.phases import Duration, Phase


class Board:
    """Progress over phases that run one after the other, by the seconds that they take."""

    def __init__(self, console: Console, phases: Sequence[Phase], durations: Mapping[str, Duration]) -> None:
        self._console = console
        self._progress = Progress(
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            # Drawing takes processor time that the mesh needs.
            refresh_per_second=2,
            disable=not console.is_terminal,
        )
        self._seconds = [
            durations[phase.name].seconds + durations[phase.name].warm_up_seconds for phase in phases
        ]
        self._titles = [phase.title for phase in phases]
        self._task = self._progress.add_task("", total=sum(self._seconds))
        self._told: tuple[int | None, str] | None = None

    def say(self, what: str) -> None:
        """Something that is no phase."""
        self._progress.update(self._task, description=what)
        self._tell(None, what)

    def show(self, number: int, doing: str, share: float) -> None:
        """How far the phase of that number is, 0 to 1."""
        title = self._titles[number]
        done = sum(self._seconds[:number]) + share * self._seconds[number]
        self._progress.update(self._task, completed=done, description=f"{title}: {doing}")
        self._tell(number, title)

    def _tell(self, number: int | None, what: str) -> None:
        """A line once, where there is no bar."""
        if self._progress.disable and (number, what) != self._told:
            self._told = number, what
            self._console.print(f"{what} ...", highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
