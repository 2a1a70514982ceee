"""Errors that are the user's to mend: one line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Says what was found, what was expected and what to do next, in one line."""


class RunFailedError(UserError):
    """A run that had begun ended early. What was checkpointed stays, and the same call goes on.

    Attributes:
        exit_code: of the command: 1 failed, 3 gave up (the same would happen again), 4 lost its
            lease (another driver may have the run).
        folder: the run's, a path or s3://.
    """

    def __init__(self, text: str, exit_code: int = 1, folder: str = ""):
        super().__init__(text)
        self.exit_code, self.folder = exit_code, folder


def closest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to ``count`` known names like this one, the most alike first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)


def did_you_mean(names: Sequence[str]) -> str:
    """' Did you mean a, b or c?', or '' for none."""
    if not names:
        return ""
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
    return f" Did you mean {listed}?"


def nearest(name: str, known: Iterable[str]) -> str:
    """The question after the closest known names, or '' where nothing is near."""
    return did_you_mean(closest(name, known))
