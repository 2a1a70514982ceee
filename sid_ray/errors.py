"""Errors that are the user's to mend: one line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Says what was found, what was expected and what to do next, in one line."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """' Did you mean a, b or c?', or '' where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    if not close:
        return ""
    listed = close[0] if len(close) == 1 else ", ".join(close[:-1]) + " or " + close[-1]
    return f" Did you mean {listed}?"
