"""Where networks come from.

    runs/x/model, teacher.pkl          a folder or a file
    builtin:NAME                       one that ships with the package
    https://host/path/file.pkl         fetched once into the cache (http:// with a checksum)
    s3://bucket/key.pkl                the same; a prefix with a network or diffusers folder too
    hf://owner/repo/path[@revision]    a file of a Hugging Face repository, or a network's folder in
                                       it; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold

``#sha256=HEX`` behind any of them that is a file asks for exactly that file.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sid_ray.errors import UserError, nearest
from sid_ray.weights.folder import DESCRIPTION

ASSETS = Path(__file__).parent.parent / "assets"
REMOTE = ("https", "http", "s3", "hf")
CHECKSUM = "#sha256="


@dataclass(frozen=True)
class Source:
    """A source taken apart. ``kind`` is path, builtin, or a scheme of REMOTE."""

    kind: str
    location: str
    sha256: str | None = None


def builtin_models() -> list[str]:
    """Names of the networks that ship with sid_ray."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{DESCRIPTION}"))


def parse_source(text: str) -> Source:
    """Takes a source apart. Raises UserError for a scheme or a checksum that is not one."""
    location, mark, checksum = text.partition(CHECKSUM)
    checksum = checksum.lower()
    if mark and not re.fullmatch("[0-9a-f]{64}", checksum):
        raise UserError(f"{source_label(text)}: a checksum is #sha256= and 64 hexadecimal digits")
    if location.startswith("builtin:"):
        return Source("builtin", location.removeprefix("builtin:"), checksum or None)
    scheme, separator, _ = location.partition("://")
    if not separator:
        return Source("path", location, checksum or None)
    if scheme not in REMOTE:
        raise UserError(
            f"no source of kind {scheme}://; known: a path, builtin:NAME, "
            + ", ".join(f"{kind}://" for kind in REMOTE)
        )
    return Source(scheme, location, checksum or None)


def source_label(text: str) -> str:
    """A source as it may be shown: without a user name, a password or a signed query."""
    location = text.partition(CHECKSUM)[0]
    if "://" not in location:
        return location
    parts = urlsplit(location)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def resolve_source(source: str) -> Path:
    """The absolute path of a network's file or folder; remote ones are in the cache afterwards.

    Raises UserError that says what is missing and what to do.
    """
    parsed = parse_source(source)
    if parsed.kind == "builtin":
        return _builtin(parsed.location)
    if parsed.kind == "path":
        return _local(parsed)
    from sid_ray.weights.fetch import fetch  # the network's libraries, only where they are needed

    return fetch(parsed, source_label(source))


def _builtin(name: str) -> Path:
    if name not in builtin_models():
        known = ", ".join(builtin_models())
        hint = nearest(name, builtin_models())
        raise UserError(f"no built-in network {name!r}; there are: {known}.{hint}")
    return ASSETS / name


def _local(source: Source) -> Path:
    path = Path(source.location).expanduser().absolute()
    if path.is_file():
        if source.sha256 is not None:
            check_sha256(file_sha256(path), source.sha256, source.location)
        return path
    if source.sha256 is not None:
        raise UserError(f"no file at {source.location}; a checksum needs one")
    known = (DESCRIPTION, "config.json", "unet/config.json")
    if not any((path / name).is_file() for name in known):
        raise UserError(
            f"no network at {source.location}: a folder with {DESCRIPTION}, a diffusers folder or "
            "a weights file is needed"
        )
    return path


def file_sha256(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(found: str, expected: str, label: str) -> None:
    """Raises UserError where two checksums differ."""
    if found != expected:
        raise UserError(
            f"{label} has sha256 {found}, expected {expected}: it is another file than the one "
            "named, or a damaged one; fetch it again or correct the checksum"
        )
