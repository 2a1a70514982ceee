"""Arguments that official files record by place, under their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sid_ray.errors import UserError

# The published names of arguments given by place, in order.
POSITIONS = {
    "EDMPrecond": (
        "img_resolution",
        "img_channels",
        "label_dim",
        "use_fp16",
        "sigma_min",
        "sigma_max",
        "sigma_data",
        "model_type",
    ),
    "Precond": (
        "img_resolution",
        "img_channels",
        "label_dim",
        "use_fp16",
        "sigma_data",
        "logvar_channels",
    ),
}


def named_arguments(class_name: str, given: list, named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments given by place under their names. Raises UserError where there are too many."""
    stem = class_name.removesuffix("_EncoderDecoder")
    names = POSITIONS.get(stem, ())
    if len(given) > len(names):
        raise UserError(f"{class_name} was made with arguments by place, which have no names here")
    return dict(zip(names, given, strict=False)) | dict(named)
