"""Loads DeepSpeed without what a run never uses of it: 1.8 CPU seconds a worker.

Its autotuner imports MLflow, and Muon, an optimizer, has functions that torch.compile wraps when
they are defined, for which Inductor is loaded. Checked with 0.19.8; of another version that differs
these lines do nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COMPILER, MUON = "deepspeed.runtime.compiler", "deepspeed.runtime.zero.muon.original_muon"


def import_deepspeed() -> None:
    """Loads DeepSpeed into this process. Raises ImportError where it is not installed."""
    with hidden("mlflow"):
        importlib.import_module("deepspeed")
        if MUON not in sys.modules:
            with plain_functions():
                importlib.import_module(MUON)


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """A module that is not loaded yet cannot be imported for as long as this lasts."""
    ours = module not in sys.modules
    if ours:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if ours:
            del sys.modules[module]


@contextmanager
def plain_functions() -> Iterator[None]:
    """What DeepSpeed would have compiled stays as it is."""
    compiler: Any = importlib.import_module(COMPILER)
    found = compiler.compile
    compiler.compile = lambda *args, **kwargs: unchanged
    try:
        yield
    finally:
        compiler.compile = found


def unchanged(function: Callable) -> Callable:
    return function
