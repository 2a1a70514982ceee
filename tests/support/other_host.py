"""Another host with a disk of its own: what is done there finds other files at the same paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sid_ray.storage.store import Store


def on_host(disk: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> Any:
    """Does it as a host whose stores lie below ``disk``."""
    real = Store.path
    with monkeypatch.context() as patched:
        patched.setattr(Store, "path", lambda store, name="": f"{disk}{real(store, name)}")
        return work()
