"""Answers that say no: one shape for all of them, in words, and never longer than a screen."""

from __future__ import annotations

import json
from collections.abc import Mapping

QUOTED_CHARS, MESSAGE_CHARS = 60, 600


class Problem(Exception):  # noqa: N818
    """A request that is not done: ``{"error": {"code", "message", "field"}}`` with ``status``.

    ``code`` is for programs and stays the same, ``message`` is for people, ``field`` names the part
    of the request's body that it is about.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str = "",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.field = status, code, field
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """ASCII JSON: whatever it quotes, it can be written."""
        error = {"code": self.code, "message": clipped(str(self), MESSAGE_CHARS)}
        if self.field:
            error["field"] = clipped(self.field, QUOTED_CHARS)
        return json.dumps({"error": error}).encode()


def clipped(text: str, chars: int = QUOTED_CHARS) -> str:
    """``text`` in one line of at most ``chars`` characters, three dots where it was cut."""
    line = "".join(each if each.isprintable() else " " for each in text[: chars + 1])
    return line if len(text) <= chars else line[: chars - 3] + "..."


def as_found(value: object) -> str:
    """A value of the request as JSON has it, cut short."""
    if isinstance(value, str):
        value = value[: QUOTED_CHARS + 1]  # so that no megabytes are written to be cut again
    if isinstance(value, dict):
        return f"an object of {len(value):,} fields"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    return clipped(json.dumps(value))
