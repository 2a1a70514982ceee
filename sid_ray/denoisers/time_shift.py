"""The shift of a flow-matching teacher's times, of its scheduler's file: a number, or what the file
makes of the size of images.

Symbols
    n    tokens of an image        mu   linear in n, through two points that the file says
    s    the shift: a time t becomes s t / (1 + (s - 1) t)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.tensor_files.tensors import json_object

POINTS = {  # what is taken where the file says none
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
}
TOKEN_SIDE = 2  # latents of a token's side, of the networks that have such schedulers


def shift_in(path: Path, size: int) -> float | None:
    """Of a scheduler's file, for latents of ``size`` a side; None where it says none.

    Raises UserError for one that makes none.
    """
    values = json_object(path) if path.is_file() else {}
    if values.get("use_dynamic_shifting") is True:
        return shift_of_size(values, size, path)
    shift = values.get("flow_shift", values.get("shift"))
    return float(shift) if isinstance(shift, int | float) and shift > 0 else None


def shift_of_size(values: Mapping[str, Any], size: int, path: Path) -> float:
    """exp(mu), or mu where ``time_shift_type`` is linear. Raises UserError."""
    said = POINTS | {name: values[name] for name in POINTS if values.get(name) is not None}
    try:
        few, low, many, high = said.values()
        mu = low + ((size / TOKEN_SIDE) ** 2 - few) * (high - low) / (many - few)
        shift = mu if values.get("time_shift_type") == "linear" else math.exp(mu)
    except (TypeError, ArithmeticError):
        shift = 0.0
    if not 0 < shift < math.inf:
        raise UserError(f"{path}: no shift of the times follows from {', '.join(POINTS)}")
    return shift
