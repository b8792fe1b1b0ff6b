"""Nothing in the repository names the machine that it was written on or the place it downloads from.

A lock file with an index address in it, or a script with a home folder in it, works for one person only.
"""

from __future__ import annotations

import re

import pytest

from tests.verify.repository import ROOT, name_of, tracked_files

# Each in two parts, so that this file does not find itself.
PACKAGE_HOSTS = [
    name + end
    for name, end in [
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("npmjs", ".org"),
        ("npmjs", ".com"),
        ("yarnpkg", ".com"),
        ("crates", ".io"),
        ("proxy.golang", ".org"),
        ("pkg", ".dev"),
        ("jfrog", ".io"),
    ]
]
HOMES = ["home", "root", "Users", "work", "workspace", "tmp", "opt", "mnt", "private", "var/folders"]

HOST = re.compile("|".join(re.escape(host) for host in PACKAGE_HOSTS), re.IGNORECASE)
# A slash that begins a path: not one inside a relative path, an URL or `</tag>`.
HOME_PATH = re.compile(r"(?<![\w.~*)}\]/<$-])/(?:" + "|".join(HOMES) + r")/[\w.{$-]")


# Whatever its host: the reader's own pip decides where packages come from.
INDEX = re.compile(
    r"^ *(?:-i|-f|--(?:extra-)?index-url|--find-links|--trusted-host)\b.*|\S*(?:://| @ ).*", re.MULTILINE
)


def _findings(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name_of(path)}:{number}: {found.group()}"
        for path in tracked_files()
        for number, line in enumerate(path.read_bytes().decode("utf-8", "ignore").splitlines(), 1)
        for found in pattern.finditer(line)
    ]


def test_no_package_index_is_named() -> None:
    assert _findings(HOST) == []


def test_no_path_of_a_machine_is_named() -> None:
    assert _findings(HOME_PATH) == []


def test_the_lock_names_no_place_to_download_from() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert INDEX.findall(lock) == []


@pytest.mark.parametrize("line", ["--index-url https://a.test/simple", "-f wheels", "a @ file:wheels/a.whl"])
def test_a_place_to_download_from_would_be_seen(line: str) -> None:
    assert INDEX.search(f"a==1 \\\n{line}\n")


@pytest.mark.parametrize("path", ["home/ann/x", "work/main", "tmp/x.log", "Users/ann"])
def test_a_path_of_a_machine_would_be_seen(path: str) -> None:
    assert HOME_PATH.search(f'data = "/{path}"')
    assert not HOME_PATH.search(f"see docs/{path}")
