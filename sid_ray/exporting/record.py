"""sid_ray.json: how an exported folder was made, and which files are its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

RECORD, FORMAT = "sid_ray.json", 1


def write_export_record(folder: Path, facts: Mapping[str, Any]) -> None:
    """The last file of an export: it lists all others. Raises OSError."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = sorted([RECORD, *(path.relative_to(folder).as_posix() for path in paths)])
    (folder / RECORD).write_text(json.dumps({"format": FORMAT, **facts, "files": files}, indent=1))


def record_in(data: bytes) -> dict[str, Any] | None:
    """What a record says; None for what is none. Its ``files`` are names inside its folder."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    files = found.get("files")
    return found if isinstance(files, list) and files and all(map(is_inside, files)) else None


def is_inside(name: Any) -> bool:
    """Whether it names a file in a folder, and not one beside it."""
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    return not path.is_absolute() and bool(path.parts) and ".." not in path.parts
