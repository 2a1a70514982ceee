"""One ModelSpec a family: everything that differs between EDM, EDM2 and Stable Diffusion.

A new family is one object here; nothing else in the project branches on a family's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sid_ray.denoisers.codecs import Standard, edm2_standard
from sid_ray.denoisers.edm import SONG_ONLY, EDMDenoiser, EDMNetwork
from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network, forced_normalize, normalize_weights
from sid_ray.denoisers.text import TextEmbeddings
from sid_ray.errors import UserError, nearest

Constrain = Callable[[str, Tensor], Tensor | None]
Adapt = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Mapping[str, Any]]


def leave_weights(module: nn.Module) -> None:
    """after_step of a family without constraints on its weights."""


def leave_weight(name: str, weight: Tensor) -> Tensor | None:
    """constrain of a family without constraints on its weights."""
    return None


def _edm_shape(network: Mapping[str, Any]) -> tuple[int, int, int]:
    size = network["img_resolution"]
    return network["img_channels"], size, size


def _edm_label_dim(network: Mapping[str, Any]) -> int:
    return network.get("label_dim", 0)


def _no_logvar(network: Mapping[str, Any]) -> bool:
    return False


def _edm2_logvar(network: Mapping[str, Any]) -> bool:
    return network.get("logvar", EDM2Network.logvar)


def as_it_is(network: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """adapted of a family whose tensors decide no argument."""
    return network


def _edm_adapted(network: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    return dict(network) | {"augment_dim": _width(tensors, "model.map_augment.weight")}


def _edm2_adapted(network: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    channels = _width(tensors, "logvar_linear.weight")
    own = {"logvar": bool(channels)} | ({"logvar_channels": channels} if channels else {})
    return dict(network) | own


def _width(tensors: Mapping[str, Tensor], name: str) -> int:
    """Inputs of a layer; 0 where it is not there."""
    weight = tensors.get(name)
    return 0 if weight is None or weight.ndim < 2 else weight.shape[1]


@dataclass(frozen=True)
class ModelSpec:
    """A family of denoisers.

    ``build`` makes the network from its JSON arguments, with random weights.
    ``after_step`` runs on a role's weights before training and after each optimizer step, in
    place (EDM2's forced weight normalisation; nothing for EDM). ``constrain`` is the same rule for
    one whole parameter, (name, weight) -> its new value, or None where it stays: for an engine
    whose optimizer keeps master copies apart. ``bare_prefix`` is the attribute under which the
    denoiser holds the network that other programs' files name without it. Of the network's
    arguments, ``shape`` is (C, H, W) of one sample, ``label_dim`` the number of classes, ``logvar``
    whether there is a log-variance head, and ``written_out`` all that say which network it is
    (dropout does not), defaults filled in and each in one way of writing it; ``training_only`` are
    those of them that no generator's image depends on. ``load_text`` opens the text encoder of a
    folder; None for families that read no text. ``standard`` is how the network wants latents of
    its auto-encoder, whose folder it is given; None for families of pixels. ``schedule`` is the
    kind of noise levels in the config. ``adapted`` are the arguments of a network that is another's
    but for what its tensors (by name, with or without bare_prefix) say otherwise.
    """

    family: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    after_step: Callable[[nn.Module], None] = leave_weights
    constrain: Constrain = leave_weight
    bare_prefix: str = ""
    shape: Callable[[Mapping[str, Any]], tuple[int, int, int]] = _edm_shape
    label_dim: Callable[[Mapping[str, Any]], int] = _edm_label_dim
    logvar: Callable[[Mapping[str, Any]], bool] = _no_logvar
    written_out: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    training_only: tuple[str, ...] = ()
    load_text: Callable[..., TextEmbeddings] | None = None
    standard: Callable[[Path | None], Standard] | None = None
    schedule: str = "edm"
    adapted: Adapt = as_it_is


def _build_edm(network: Mapping[str, Any]) -> nn.Module:
    try:
        return EDMDenoiser(EDMNetwork.from_json(dict(network)))
    except (TypeError, ValueError) as error:
        raise UserError(f"not an EDM network's arguments: {error}") from error


def _build_edm2(network: Mapping[str, Any]) -> nn.Module:
    try:
        return EDM2Denoiser(EDM2Network.from_json(dict(network)))
    except (TypeError, ValueError) as error:
        raise UserError(f"not an EDM2 network's arguments: {error}") from error


def _build_stable_diffusion(network: Mapping[str, Any]) -> nn.Module:
    from sid_ray.denoisers.stable_diffusion import build_stable_diffusion

    return build_stable_diffusion(network)


def _edm_written_out(network: Mapping[str, Any]) -> dict[str, Any]:
    return _levels_attended(EDMNetwork.from_json(dict(network)).to_json())


def _edm2_written_out(network: Mapping[str, Any]) -> dict[str, Any]:
    """Widths as they come out; no width of a log-variance head that is not there."""
    net = EDM2Network.from_json(dict(network))
    values = net.to_json() | {
        "channel_mult_noise": net.noise_width // net.model_channels,
        "channel_mult_emb": net.emb_width // net.model_channels,
        "logvar_channels": net.logvar_channels if net.logvar else 0,
    }
    return _levels_attended(values)


def _levels_attended(values: dict[str, Any]) -> dict[str, Any]:
    """Without dropout; of the resolutions with attention those that the network has."""
    levels = [values["img_resolution"] >> level for level in range(len(values["channel_mult"]))]
    attended = [resolution for resolution in levels if resolution in values["attn_resolutions"]]
    del values["dropout"]
    return values | {"attn_resolutions": attended}


def _unet_written_out(network: Mapping[str, Any]) -> dict[str, Any]:
    from sid_ray.denoisers.stable_diffusion import unet_written_out

    return unet_written_out(network)


def _unet_shape(network: Mapping[str, Any]) -> tuple[int, int, int]:
    size = network.get("sample_size", 64)
    return network.get("in_channels", 4), size, size


def _no_labels(network: Mapping[str, Any]) -> int:
    return 0


def _load_text(folder: Path, device: Any = "cpu") -> TextEmbeddings:
    from sid_ray.denoisers.stable_diffusion import load_text

    return load_text(folder, device)


def _edm2_standard(vae: Path | None) -> Standard:
    return edm2_standard()


def _scaling_factor(vae: Path | None) -> Standard:
    """Stable Diffusion's: one number, of its auto-encoder's config."""
    from sid_ray.denoisers.stable_diffusion import component_of

    if vae is None:
        raise UserError(
            "latents are scaled by the teacher's VAE, and it has none beside it: give "
            "--teacher.vae FOLDER, a diffusers folder with that vae"
        )
    path = component_of(vae, "vae") / "config.json"
    try:
        return Standard((float(json.loads(path.read_text()).get("scaling_factor", 0.18215)),))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: no scaling factor of latents ({error})") from None


_FAMILIES = (
    ModelSpec(
        "edm",
        _build_edm,
        written_out=_edm_written_out,
        training_only=("label_dropout", "augment_dim"),
        adapted=_edm_adapted,
    ),
    ModelSpec(
        "edm2",
        _build_edm2,
        normalize_weights,
        forced_normalize,
        logvar=_edm2_logvar,
        written_out=_edm2_written_out,
        training_only=("logvar", "logvar_channels"),
        standard=_edm2_standard,
        adapted=_edm2_adapted,
    ),
    ModelSpec(
        "stable-diffusion",
        _build_stable_diffusion,
        bare_prefix="unet.",
        shape=_unet_shape,
        label_dim=_no_labels,
        written_out=_unet_written_out,
        load_text=_load_text,
        standard=_scaling_factor,
        schedule="vp",
    ),
)
SPECS = {spec.family: spec for spec in _FAMILIES}


def spec_of(family: str) -> ModelSpec:
    """The ModelSpec of a family. Raises UserError for an unknown one."""
    if family not in SPECS:
        known = ", ".join(SPECS)
        raise UserError(
            f"unknown network family {family!r}; known: {known}.{nearest(family, SPECS)}"
        )
    return SPECS[family]


# Arguments of the official classes that change how a network is run or trained, not what it is.
BEHAVIOUR = frozenset(
    ("use_fp16", "force_fp32", "sigma_min", "sigma_max", "force_normalization", "use_gan")
)
# Official defaults of a DhariwalUNet, which its files may leave out. EDMNetwork's are SongUNet's.
ADM_DEFAULTS = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}
# Official class -> the model_type it takes where none is recorded.
EDM_CLASSES = {
    "EDMPrecond": "DhariwalUNet",
    "EDMPrecond_EncoderDecoder": "SongUNet_EncoderDecoder",
}
# Official class -> whether it has the log-variance head.
EDM2_CLASSES = {
    "Precond": True,
    "EDM_2_Precond_EncoderDecoder": True,
    "EDM_2_Precond_Generator": False,
}


# diffusers' class of SD 1.5 and 2.1: in SiD-LSG's files and in diffusers folders.
UNET_CLASS = "UNet2DConditionModel"


def from_official(class_name: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(family, arguments) of a network that an official file records; nothing is built.

    ``class_name`` and ``kwargs`` are the class and keyword arguments of the outermost network:
    EDMPrecond and the like. Every argument is in the result, also where the file left it to a
    default. Raises UserError that names a class or argument not known, or out of range.
    """
    state = {name: value for name, value in kwargs.items() if name not in BEHAVIOUR}
    if class_name in EDM_CLASSES:
        recorded = state.get("model_type", EDM_CLASSES[class_name])
        model_type = str(recorded).removesuffix("_EncoderDecoder")
        dhariwal = model_type == "DhariwalUNet"
        _refuse_unknown(class_name, state, EDMNetwork, SONG_ONLY if dhariwal else ())
        state = (ADM_DEFAULTS if dhariwal else {}) | state | {"model_type": model_type}
        return "edm", _arguments(class_name, EDMNetwork, state)
    if class_name in EDM2_CLASSES:
        _refuse_unknown(class_name, state, EDM2Network, ("logvar",))
        state |= {"logvar": EDM2_CLASSES[class_name]}
        return "edm2", _arguments(class_name, EDM2Network, state)
    if class_name == UNET_CLASS:
        return "stable-diffusion", {"prediction_type": "epsilon"} | dict(kwargs)
    known = (*EDM_CLASSES, *EDM2_CLASSES, UNET_CLASS)
    raise UserError(
        f"unknown network class {class_name!r}; known: {', '.join(known)}."
        f"{nearest(class_name, known)}"
    )


def _refuse_unknown(
    class_name: str,
    state: Mapping[str, Any],
    network: type[EDMNetwork] | type[EDM2Network],
    excluded: tuple[str, ...],
) -> None:
    """Raises UserError that names the arguments the network does not know."""
    known = {field.name for field in fields(network)} - set(excluded)
    unknown = sorted(str(name) for name in state if name not in known)
    if unknown:
        raise UserError(
            f"{class_name} was built with arguments that are not known here: "
            f"{', '.join(unknown)}.{nearest(unknown[0], known)}"
        )


def _arguments(
    class_name: str, network: type[EDMNetwork] | type[EDM2Network], values: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments as plain values, checked."""
    try:
        return network.from_json(dict(values)).to_json()
    except (TypeError, ValueError) as error:
        raise UserError(f"{class_name} records arguments that do not fit: {error}") from error
