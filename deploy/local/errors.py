"""What can go wrong in the local run, told so that a person can act on it."""

from pathlib import Path

LAST_LOG_LINES = 15


class LocalRunError(Exception):
    """Something of the local run failed; `str(error)` is the whole story, for a person."""

    exit_code = 1


class UserMistake(LocalRunError):
    """The command cannot do what was asked; says in one line why, and what to do instead."""

    exit_code = 2

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem = problem
        self.remedy = remedy


def last_log_lines(log: Path, count: int = LAST_LOG_LINES) -> str:
    """The end of a log file, indented, or a sentence when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "  (no log was written)"
    return "\n".join(f"  {line}" for line in lines[-count:]) or "  (the log is empty)"
