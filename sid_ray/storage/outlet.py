"""Output that may lose its other end before the work is done."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


class Outlet:
    """A text file; where it takes nothing more, all that follows goes to another.

    A terminal that is closed, a pipe without a reader, a disk that is full: work is never lost for
    a line about it.

    Args:
        instead: what takes its place, without a word.
        closed_terminal_only: other errors are raised. A pipe without a reader ends a command.
    """

    def __init__(self, file: TextIO, instead: str | Path, closed_terminal_only: bool = False):
        self.file, self.instead = file, instead
        self.closed_terminal_only = closed_terminal_only

    def lasting(self, action: Callable[..., Any], *given: Any) -> Any:
        try:
            return action(*given)
        except OSError as error:
            if self.closed_terminal_only and error.errno != errno.EIO:
                raise
        with Path(self.instead).open("ab") as other:
            os.dup2(other.fileno(), self.file.fileno())
        return self.file.flush()  # what it holds still

    def write(self, text: str) -> int:
        self.lasting(self.file.write, text)
        return len(text)

    def flush(self) -> None:
        self.lasting(self.file.flush)

    def close(self) -> None:
        self.flush()
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
