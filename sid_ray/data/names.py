"""Names of files and classes: their order, which of them are no samples, how they are shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

DIGITS = re.compile(r"[0-9]+")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
# What systems and viewers put beside people's files: not theirs, whatever its suffix says.
HIDDEN = re.compile(
    r"(^|/)(\..*|__MACOSX|@eaDir|\$RECYCLE\.BIN|System Volume Information|lost\+found|"
    r"Thumbs\.db|ehthumbs\.db|desktop\.ini|Icon\r)(/|$)",
    re.IGNORECASE,
)


def natural(name: str) -> str:
    """The key of an order in which numbers stand as numbers: a2 before a10, 2 before 10."""
    return f"{DIGITS.sub(by_value, name)}\0{name}"  # 01 and 1 are of one value


def by_value(digits: re.Match[str]) -> str:
    """A number however long, behind the number of its digits: then text sorts as numbers do."""
    value = digits[0].lstrip("0")
    return f"{len(value):05d}{value}"


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Class names in their order: as numbers where all are numbers, else the natural one."""
    found = list(names)
    if all(NUMBER.fullmatch(name) for name in found):
        return sorted(found, key=lambda name: (float(name), natural(name)))
    return sorted(found, key=natural)


def same_text(name: str) -> str:
    """A name however its accents are stored: macOS takes letters apart, others do not."""
    return unicodedata.normalize("NFC", name)


def shown_name(text: str, length: int = 200) -> str:
    """A name as it may stand in a line: no control characters, no half characters, not too long."""
    plain = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text[: length + 1]
    )
    return plain if len(text) <= length else plain[: length - 1] + "…"


def suffix_of(name: str) -> str:
    """'.png' of 'a/b.PNG', '' without one."""
    base = name.rsplit("/", 1)[-1]
    stem, dot, end = base.rpartition(".")
    return f".{end.lower()}" if dot and stem else ""


def stem_of(name: str) -> str:
    """'a/b.c' of 'a/b.c.png'."""
    return name[: len(name) - len(suffix_of(name))]


def folder_of_name(name: str) -> str:
    """'a/b/' of 'a/b/c.png', '' at the top."""
    return name[: name.rfind("/") + 1]
