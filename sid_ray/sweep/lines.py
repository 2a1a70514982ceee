"""Files of a sweep's folder to which lines of JSON are only appended; half a line is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[Any]:
    """The values of the whole lines; none where there is no file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def append_line(path: Path, value: Any) -> None:
    """Adds a line, in the place of half a line that a killed driver left."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")
