"""Where the databases are: named by the environment, or those of a mesh that runs, or ran, on a data folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from audit.report import AuditError
from audit.snapshot import CALLERS_FIRST, check_complete
from deploy.local.databases import role_dsn
from deploy.local.errors import LocalRunError
from deploy.local.folder import DataFolder, FolderLock
from deploy.local.running import read_running_mesh
from deploy.local.stores import POSTGRES_VARIABLE, EmbeddedPostgres
from deploy.local.supervisor import LOCK_NAME


@contextmanager
def found_dsns(
    data: Path, environment: Mapping[str, str] = os.environ, wanted: Sequence[str] = CALLERS_FIRST
) -> Iterator[dict[str, str]]:
    """The DSN of each database that is wanted, by service. What the environment does not name
    (PAYMESH_<SERVICE>_DATABASE_DSN) is looked for in the data folder of a local mesh. If that mesh is stopped, its
    PostgreSQL is started for as long as the context lasts, and nothing else. Raises AuditError."""
    named = {name: dsn for name in wanted if (dsn := environment.get(f"PAYMESH_{name.upper()}_DATABASE_DSN"))}
    if len(named) == len(wanted):
        yield named
        return
    try:
        with _of_folder(data.expanduser().absolute(), environment) as local:
            dsns = {**local, **named}
            check_complete(dsns, wanted)
            yield dsns
    except LocalRunError as error:
        raise AuditError(str(error)) from error
    except OSError as error:
        raise AuditError(f"the data folder {data} cannot be used: {error}") from error


@contextmanager
def _of_folder(data: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    if FolderLock(data / LOCK_NAME).holder() is not None:
        yield dict(read_running_mesh(data).dsns)
        return
    # Looking must not make anything: a folder is only opened if a mesh has lived there.
    kept = [name for name in CALLERS_FIRST if (data / "secrets" / name).is_file()]
    if external := environment.get(POSTGRES_VARIABLE):
        yield _stopped(DataFolder(data), kept, external) if kept else {}
        return
    if not kept or not (data / "postgres").is_dir():
        variables = "PAYMESH_<SERVICE>_DATABASE_DSN"
        raise AuditError(
            f"no mesh has run on {data}: name its folder with --data FOLDER, or every database with {variables}"
        )
    with EmbeddedPostgres(data) as server:
        yield _stopped(server.folder, kept, server.admin_dsn)


def _stopped(folder: DataFolder, services: list[str], admin_dsn: str) -> dict[str, str]:
    return {name: role_dsn(admin_dsn, name, folder.password(name)) for name in services}
