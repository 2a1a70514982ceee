"""The published classes as families of sid_ray: class name and recorded arguments -> spec.

Stands in for the function of the same name in denoisers/spec.py until that knows every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sid_ray.denoisers.edm import EDMNetwork
from sid_ray.errors import UserError

EDM_CLASSES = ("EDMPrecond", "EDMPrecond_EncoderDecoder")
# Settings of a run, not of the network: they change no tensor and no formula here.
IGNORED = {"use_fp16", "sigma_min", "sigma_max", "force_normalization", "use_gan"}
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


def from_official(class_name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(family, arguments of its network). Raises UserError for a class that is not known."""
    if class_name not in EDM_CLASSES:
        raise UserError(
            f"no family here builds the network class {class_name!a}; known: "
            f"{', '.join(EDM_CLASSES)}"
        )
    known = {field.name for field in fields(EDMNetwork)}
    unknown = sorted(set(arguments) - known - IGNORED)
    if unknown:
        raise UserError(f"{class_name} has the argument {unknown[0]!a}, which no EDM network has")
    network = {name: value for name, value in arguments.items() if name in known}
    model_type = str(network.get("model_type", "SongUNet"))
    network["model_type"] = model_type.removesuffix("_EncoderDecoder")
    return "edm", network
