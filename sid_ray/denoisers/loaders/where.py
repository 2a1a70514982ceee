"""Programs that evaluate a family's networks without this package: they are copied into exports."""

from __future__ import annotations

from pathlib import Path


def loader_file(name: str) -> Path:
    return Path(__file__).with_name(name)
