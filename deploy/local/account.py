"""The account PostgreSQL runs under when the mesh is started by root, because it refuses to run as root."""

import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

ACCOUNT_NAME = "paymesh-postgres"
FALLBACK_NAME = "nobody"


@dataclass(frozen=True)
class Account:
    """A system account to run a store under."""

    name: str
    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """The account to switch to, made on first use; None when we are not root and need no other."""
    if os.geteuid() != 0:
        return None
    entry = _find(ACCOUNT_NAME)
    if entry is None and (useradd := shutil.which("useradd")):
        command = [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", ACCOUNT_NAME]
        subprocess.run(command, check=False, capture_output=True)
        entry = _find(ACCOUNT_NAME)
    entry = entry or pwd.getpwnam(FALLBACK_NAME)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def let_pass(path: Path) -> list[Path]:
    """Let other accounts walk through (not list) the folders above `path`; returns those that were changed.

    A clone under root's home would otherwise hide both its data and its own PostgreSQL programs.
    """
    changed = []
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
            changed.append(folder)
    return changed


def let_read(tree: Path) -> None:
    """Let other accounts read a folder of programs, whatever umask installed it."""
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        executable = path.is_dir() or mode & stat.S_IXUSR
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if executable else 0)
        if wanted != mode:
            path.chmod(wanted)


def own(path: Path, account: Account) -> None:
    """Give a folder and all in it to the account; nothing is done when its top already belongs to it."""
    if path.stat().st_uid == account.uid:
        return
    for entry in (*path.rglob("*"), path):
        os.chown(entry, account.uid, account.gid, follow_symlinks=False)


def _find(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
