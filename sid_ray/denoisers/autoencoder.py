"""The auto-encoder of a pipeline's folder: diffusers' AutoencoderKL or AutoencoderDC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sid_ray.denoisers.component import (
    Renamed,
    as_named,
    component_of,
    filled,
    fitting_tensors,
    laid_out,
    read_config,
    require_diffusers,
)
from sid_ray.errors import UserError
from sid_ray.tensor_files.tensors import json_object

KL, DC = "AutoencoderKL", "AutoencoderDC"
VAE_FILES = ("diffusion_pytorch_model",)
# Names of the VAE's attention in files older than diffusers 0.17.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def lay_out_vae(folder: Path, class_name: str = KL) -> nn.Module:
    """The auto-encoder of a pipeline folder, or of a folder that holds nothing else, without
    memory. Raises UserError for one of another class.
    """
    require_diffusers()
    import diffusers

    own = component_of(folder, "vae")
    config, kind = read_config(own, class_name), getattr(diffusers, class_name)
    return laid_out(lambda: kind.from_config(config), own)


def check_vae(folder: Path, class_name: str = KL) -> Any:
    """Whether load_vae will do, but for damaged numbers; the VAE's config. Raises UserError."""
    vae: Any = lay_out_vae(folder, class_name)
    renamed = RENAMED[class_name]
    fitting_tensors(vae, component_of(folder, "vae"), VAE_FILES, renamed, numbers=False)
    return vae.config


def says_scale(folder: Path) -> bool:
    """Whether a VAE's config says how its latents are scaled; that of one in a file by itself does
    not.
    """
    return "scaling_factor" in json_object(component_of(folder, "vae") / "config.json")


def check_scale(folder: Path) -> None:
    """Raises UserError where it does not."""
    if not says_scale(folder):
        raise UserError(
            f"the VAE in {folder} does not say how its latents are scaled: give a folder with its "
            "config.json, and scaling_factor in that"
        )


def load_vae(folder: Path, class_name: str = KL) -> nn.Module:
    """The VAE of lay_out_vae with its weights."""
    vae, own = lay_out_vae(folder, class_name), component_of(folder, "vae")
    return filled(vae, fitting_tensors(vae, own, VAE_FILES, RENAMED[class_name]))


def random_vae(arguments: Mapping[str, Any]) -> nn.Module:
    """An AutoencoderKL with random weights, frozen: for measuring. Raises UserError."""
    require_diffusers()
    from diffusers import AutoencoderKL

    return AutoencoderKL(**arguments).eval().requires_grad_(False)


def vae_names(found: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a VAE's file under the names of today: attention was of convolutions once."""
    names, expected = {}, {n: v.shape for n, v in model.state_dict().items()}
    for name, value in found.items():
        if name not in expected and ".attentions." in name:
            for before, now in OLD_ATTENTION.items():
                name = name.replace(f".{before}.", f".{now}.")
        if value.ndim == 4 and value.shape[2:] == (1, 1) and len(expected.get(name, ())) == 2:
            value = value[:, :, 0, 0]
        names[name] = value
    return names


RENAMED: dict[str, Renamed] = {KL: vae_names, DC: as_named}
