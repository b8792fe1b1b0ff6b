"""What other programs may know of a running mesh: a file in its data folder, readable by the owner only."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.local.errors import UserMistake

FILE_NAME = "mesh.json"


@dataclass(frozen=True)
class RunningMesh:
    """Where everything is. `dsns` and `valkey_url` hold passwords."""

    targets: Mapping[str, str]
    """gRPC target by service."""
    dsns: Mapping[str, str]
    """DSN of each service's own role by service."""
    valkey_url: str | None

    def write(self, data_dir: Path) -> None:
        """Leave it in the data folder, whole or not at all."""
        draft = data_dir / f".{FILE_NAME}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file, indent=2)
        draft.rename(data_dir / FILE_NAME)


def read_running_mesh(data_dir: Path) -> RunningMesh:
    """The mesh that runs on that data folder. Raises UserMistake when none does."""
    try:
        return RunningMesh(**json.loads((data_dir / FILE_NAME).read_text()))
    except FileNotFoundError as error:
        raise UserMistake(
            f"no mesh runs on {data_dir}",
            "start one with `paymesh up`, or name its folder with --data FOLDER",
        ) from error


def forget_running_mesh(data_dir: Path) -> None:
    """Take the file away; a missing one is fine."""
    (data_dir / FILE_NAME).unlink(missing_ok=True)
