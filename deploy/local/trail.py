"""Where a local mesh keeps its audit trail: checkpoints and the key that signs them, in the data folder.

Whoever means to rely on a trail keeps both elsewhere: PAYMESH_PAYMENT_SEAL_FOLDER and …SEAL_KEY_FILE.
"""

from collections.abc import Mapping
from pathlib import Path

from deploy.local.folder import DataFolder

CHECKPOINTS = "checkpoints"
KEY = "checkpoint-key.pem"


def checkpoints_of(data: Path) -> Path:
    """The folder of the checkpoints."""
    return data / CHECKPOINTS


def key_file_of(data: Path) -> Path:
    """The file of the key."""
    return data / "secrets" / KEY


def settings(folder: DataFolder) -> Mapping[str, str]:
    """What payment is told, without the prefix of its variables. The key is made at first use."""
    from services.payment.trail.checkpoint import new_private_key  # cryptography: not for every command

    key_file = folder.secret_file(KEY, new_private_key)
    return {"SEAL_FOLDER": str(checkpoints_of(folder.path)), "SEAL_KEY_FILE": str(key_file)}
