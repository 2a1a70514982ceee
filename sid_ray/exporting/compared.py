"""Whether an exported folder makes the generator's images, in a process without sid_ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sid_ray.tensor_files.tensors import read_safetensors
from sid_ray.weights.description import write_safetensors

OUTSIDE = Path(__file__).with_name("outside.py")
ROUNDING = 1e-5  # of pixels in [0, 1], float32; an 8-bit step is 4e-3


class NotTheSameError(Exception):
    """An exported folder does not run by itself, or makes other images."""


class Exported(NamedTuple):
    """What the other process opens: a pipeline's folder and perhaps a LoRA's, or a ``loader``."""

    folder: Path
    call: Mapping[str, Any]
    prompts: Sequence[str] = ()
    lora: Path | None = None
    loader: str = ""
    left_out: Sequence[str] = ()


def made_outside(exported: Exported, inputs: Mapping[str, Tensor], scratch: Path) -> Tensor:
    """The images [N, C, H, W] that a folder makes: of a pipeline in [0, 1], of a loader as its
    network makes them. ``inputs`` are those of outside.py; ``scratch`` is a folder for its files.

    Raises NotTheSameError with what the process said last, where it fails.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as named:
        place = Path(named)
        write_safetensors(place / "inputs.safetensors", {n: v.cpu() for n, v in inputs.items()})
        asked = {
            "folder": str(exported.folder),
            "lora": "" if exported.lora is None else str(exported.lora),
            "prompts": list(exported.prompts),
            "call": dict(exported.call),
            "loader": exported.loader,
            "left_out": list(exported.left_out),
            "inputs": str(place / "inputs.safetensors"),
            "out": str(place / "out.safetensors"),
        }
        run_outside(OUTSIDE, asked, place)
        return read_safetensors(place / "out.safetensors")["images"]


def run_outside(program: Path, asked: Mapping[str, Any], place: Path) -> None:
    """Runs a program that cannot import sid_ray, with what it is asked in a file of the folder
    ``place``. Raises NotTheSameError with what it said last, where it fails.
    """
    (place / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-I", str(program), str(place / "asked.json")]
    offline = {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotTheSameError(f"the exported folder does not run by itself: {said[-1]:.300}")


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Infinite where shapes differ, or where either is not a number."""
    if one.shape != other.shape:
        return float("inf")
    found = (one.double() - other.double()).abs().max().item()
    return found if found == found else float("inf")
