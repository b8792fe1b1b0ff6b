"""Reads a user's column maps, once, at the start."""

from __future__ import annotations

from pathlib import Path

from services.reconciler.statements.columns import BadMap, ColumnMap, parse_map


def read_maps(folder: str) -> tuple[ColumnMap, ...]:
    """The maps in a folder, `*.toml`, by name; none without a folder. Raises BadMap, which names file and key."""
    if not folder:
        return ()
    if not Path(folder).is_dir():
        raise BadMap(f"{folder}: there is no such folder")
    try:
        return tuple(
            parse_map(file.name, file.read_text("utf-8")) for file in sorted(Path(folder).glob("*.toml"))
        )
    except (OSError, UnicodeDecodeError) as error:
        raise BadMap(f"{folder}: {error}") from None
