"""Where networks come from: a folder, or one that ships with the package."""

from __future__ import annotations

from pathlib import Path

from sid_ray.errors import UserError, nearest
from sid_ray.weights.folder import DESCRIPTION

ASSETS = Path(__file__).parent.parent / "assets"


def builtin_models() -> list[str]:
    """Names of the networks that ship with sid_ray."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{DESCRIPTION}"))


def resolve_source(source: str) -> Path:
    """The absolute folder of a network: a path, or ``builtin:NAME``.

    Raises UserError that says what is missing.
    """
    if source.startswith("builtin:"):
        name = source.removeprefix("builtin:")
        if name not in builtin_models():
            known = ", ".join(builtin_models())
            hint = nearest(name, builtin_models())
            raise UserError(f"no built-in network {name!r}; there are: {known}.{hint}")
        return ASSETS / name
    folder = Path(source).expanduser().absolute()
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"no network at {source}: a folder with {DESCRIPTION} is needed")
    return folder
