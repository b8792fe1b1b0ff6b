"""Becomes another program that dies when its parent dies.

Run as `python -I -S tether.py PARENT_PID DEATH_SIGNAL UID GID -- PROGRAM ARG…` (UID and GID may be `-`).

It is a program of its own, not a `preexec_fn`: the parent has gRPC threads, and Python code between fork and
exec in such a process can deadlock. The exec keeps the process id, so the parent waits for and signals the
real program. The death signal is a Linux feature and follows the *thread* that started the process; elsewhere
the program simply runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, death_signal: int) -> None:
    """Ask the kernel for `death_signal` when the parent is gone; exit at once if it is gone already."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: list[str]) -> None:
    parent_pid, death_signal, uid, gid, _, *program = arguments
    if uid != "-":
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    # After setuid: changing identity clears the death signal.
    die_with_parent(int(parent_pid), int(death_signal))
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
