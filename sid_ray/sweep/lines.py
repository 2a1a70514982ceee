"""Files of a sweep's folder to which lines of JSON are only appended; half a line is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sid_ray.storage.text_lines import json_lines


def whole_lines(path: Path) -> list[Any]:
    """The values of the whole lines; none where there is no file."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    return [value for _, value in json_lines(whole, str(path))]


def append_line(path: Path, value: Any) -> None:
    """Adds a line, in the place of half a line that a killed driver left."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
