"""Builds guard.cpp once a version of torch, and loads it before torch."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
CACHE = Path(__file__).parents[3] / ".cache" / "fake_cuda"


def torch_folder() -> Path:
    """Where torch is installed, without loading it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def build_guard() -> Path:
    """The library, compiled where it is not there yet: 4 s with g++, which it needs.

    Raises RuntimeError with the compiler's words.
    """
    key = hashlib.sha256(
        SOURCE.read_bytes() + importlib.metadata.version("torch").encode() + sys.version.encode()
    )
    library = CACHE / f"guard-{key.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    CACHE.mkdir(parents=True, exist_ok=True)
    torch, own = torch_folder(), library.with_suffix(f".{os.getpid()}")
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(own)]
    command += [f"-I{torch}/include", f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib"]
    command += ["-lc10", "-ltorch_cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError("the rehearsal needs g++ and found none: install it") from None
    if done.returncode:
        raise RuntimeError(f"g++ cannot build {SOURCE}:\n{done.stderr[-2000:]}")
    own.replace(library)  # several processes may build it at once
    return library


def load_guard() -> None:
    """Registers the device. Raises RuntimeError where torch is loaded already."""
    if "torch" in sys.modules:
        raise RuntimeError("the guard of the fake device must be loaded before torch")
    ctypes.CDLL(str(build_guard()), mode=ctypes.RTLD_GLOBAL)
