"""Text of a report that strangers will read: no folders, addresses or tokens of this machine."""

from __future__ import annotations

import re

# A path's folders, up to its last part; not of numbers such as 3/4, nor of and/or.
FOLDERS = re.compile(r"(?<![\w.])~?/(?:[^\s/:'\"()<>,;|]+/)+")
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\[[\w:%]*::[\w:%]*\](?::\d+)?")
LONG_WORD = re.compile(r"\b[A-Za-z0-9_\-]{32,}\b")  # as keys and tokens are


def without_places(text: str) -> str:
    """The text with the last parts of paths alone, and without addresses and long words."""
    for pattern, instead in ((FOLDERS, ".../"), (ADDRESS, "ADDRESS"), (LONG_WORD, "...")):
        text = pattern.sub(instead, text)
    return text
