"""The text that names a source: its kind, its place, its checksum, and how it may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from sid_ray.errors import UserError
from sid_ray.storage.schemes import scheme_of

CHECKSUM = "#sha256="
FILE_SUFFIXES = (".pkl", ".pt", ".pth", ".bin", ".safetensors", ".ckpt")


@dataclass(frozen=True)
class WeightSource:
    """A source taken apart. ``kind`` is path, builtin, or a scheme of storage/schemes.py."""

    kind: str
    location: str
    sha256: str | None = None


def parse_source(text: str) -> WeightSource:
    """Takes a source apart. Raises UserError for a scheme or a checksum that is not one."""
    location, mark, checksum = text.partition(CHECKSUM)
    checksum = checksum.lower()
    if mark and not re.fullmatch("[0-9a-f]{64}", checksum):
        raise UserError(f"{source_label(text)}: a checksum is #sha256= and 64 hexadecimal digits")
    if location.startswith("builtin:"):
        return WeightSource("builtin", location.removeprefix("builtin:"), checksum or None)
    known = scheme_of(location)
    if known.is_path:
        return WeightSource("path", location, checksum or None)
    scheme = known.prefix.removesuffix("://")
    if scheme == "s3":
        parts = location.removeprefix("s3://").rstrip("/").split("/")
        if not all(parts) or ".." in parts:
            raise UserError(f"{source_label(text)}: expected s3://BUCKET/KEY")
    return WeightSource(scheme, location, checksum or None)


@dataclass(frozen=True)
class HubFile:
    """hf://owner/repo[/path][@revision], taken apart; ``path`` may be a folder, or empty."""

    repo: str
    path: str
    revision: str

    @classmethod
    def parse(cls, location: str) -> HubFile:
        """Raises UserError where owner or repository is missing."""
        body, _, revision = location.removeprefix("hf://").partition("@")
        parts = body.rstrip("/").split("/")
        if len(parts) < 2 or not all(parts) or ".." in parts:
            raise UserError(f"{location}: expected hf://owner/repo[/path][@revision]")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or "main")

    def is_file(self) -> bool:
        """By its name: nothing is asked."""
        return PurePosixPath(self.path).suffix in FILE_SUFFIXES


def commit_of(path: Path) -> str:
    """The commit that a path in the hub's cache is of; empty for other paths."""
    parts = path.parts
    if "snapshots" not in parts[:-1]:
        return ""
    at = parts.index("snapshots")
    return parts[at + 1] if parts[at - 1].startswith("models--") else ""


def source_label(text: str) -> str:
    """A source as it may be shown: without a user name, a password or a signed query."""
    location = text.partition(CHECKSUM)[0]
    if "://" not in location:
        return location
    parts = urlsplit(location)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def check_sha256(found: str, expected: str, label: str) -> None:
    """Raises UserError where two checksums differ."""
    if found != expected:
        raise UserError(
            f"{label} has sha256 {found}, expected {expected}: it is another file than the one "
            "named, or a damaged one; fetch it again or correct the checksum"
        )
