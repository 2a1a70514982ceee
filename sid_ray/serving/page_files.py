"""The page's files, by a list of names: nothing of a request's path comes near the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

INDEX = "index.html"
KINDS = {
    INDEX: "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
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
    folder = resources.files("sid_ray.serving") / "page"
    found = {}
    for name, kind in KINDS.items():
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[name] = PageFile(content, kind, tag)
    return found
