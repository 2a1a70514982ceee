"""The search spaces that come with sid_ray, by name: tune_spaces/ of a checkout, and in a wheel."""

from __future__ import annotations

from pathlib import Path

import sid_ray
from sid_ray.errors import UserError, nearest

FOLDER = Path(sid_ray.__file__).parent / "tune_spaces"


def shipped_spaces() -> dict[str, Path]:
    """Their files by name, like digits-sida."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def space_file(named: str) -> Path:
    """A space's file: the path, or the file of a name that no file here has.

    Raises UserError for a plain name that is neither.
    """
    path, shipped = Path(named), shipped_spaces()
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path  # who reads it says what is wrong with it
    if named not in shipped:
        raise UserError(
            f"no search space {named!r}: neither a file here nor one of {', '.join(shipped)}."
            f"{nearest(named, shipped)}"
        )
    return shipped[named]
