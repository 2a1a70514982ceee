"""sid_ray.json: how an exported folder was made, and which files are its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD, FORMAT = "sid_ray.json", 1


def write_export_record(folder: Path, facts: Mapping[str, Any]) -> None:
    """The last file of an export: it lists all others. Raises OSError."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = sorted([RECORD, *(path.relative_to(folder).as_posix() for path in paths)])
    (folder / RECORD).write_text(json.dumps({"format": FORMAT, **facts, "files": files}, indent=1))


def record_in(data: bytes) -> dict[str, Any] | None:
    """What a record says; None for what is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    is_one = isinstance(found, dict) and found.get("format") == FORMAT
    return found if is_one and isinstance(found.get("files", []), list) else None
