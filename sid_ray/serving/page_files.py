"""The page's files, by a list of names: nothing of a request's path comes near the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

INDEX = "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """``tag`` changes with its content."""

    content: bytes
    kind: str
    tag: str

    @property
    def headers(self) -> dict[str, str]:
        """A browser keeps the file, and asks each time whether it is still the same."""
        return {"etag": self.tag, "cache-control": "no-cache", "content-type": self.kind}


def page_files() -> dict[str, PageFile]:
    """All of them that the package has, by name."""
    found = {}
    for file in (resources.files("sid_ray.serving") / "page").iterdir():
        kind = KINDS.get(PurePath(file.name).suffix)
        if kind is not None:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[file.name] = PageFile(content, kind, tag)
    return found
