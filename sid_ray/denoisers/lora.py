"""Low-rank changes to a network's weights (LoRA), merged into them.

    W' = W + scale * alpha / r * B A

Symbols
    W        a weight [out, in] or [out, in, h, w]
    A, B     down and up: [r, in] and [out, r]; of a convolution [r, in, h, w] and [out, r, 1, 1]
    r        rank; alpha is r where a file does not say it
    PATH     where a weight lies: the part of the pipeline, and the module in it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sid_ray.errors import UserError

Tensors = Mapping[str, Tensor]
Alphas = Mapping[str, float]
DOWN = re.compile(
    r"(\.lora_A|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)(\.default)?\.weight$"
)
UP = re.compile(r"(\.lora_B|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)(\.default)?\.weight$")
ALPHA = ".alpha"
MARKS = ("lora_", ".lora.", "_lora.")
# What other ways of training small changes call their tensors.
OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_B.bias": "a LoRA with biases",
    ".diff": "whole weights",
}
PEFT = "base_model.model."
KOHYA_UNET, KOHYA_TEXT = "lora_unet_", ("lora_te_", "lora_te1_", "lora_te2_")
KOHYA_FLUX = ("lora_unet_double_blocks_", "lora_unet_single_blocks_")
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Change:
    """B A of one weight; ``name`` as the file calls A."""

    name: str
    down: Tensor
    up: Tensor
    alpha: float | None = None

    def delta(self, weight: Tensor) -> Tensor:
        """alpha / r * B A in float64, in the weight's shape. Raises UserError where it has none.

        In float64, so that the sum is the same on every machine but for its last rounding.
        """
        down, up = self.down.to(torch.float64), self.up.to(torch.float64)
        rank = down.shape[0] if down.ndim else 0
        fits = down.ndim >= 2 and up.ndim >= 2 and up.shape[1] == rank > 0
        if fits and up.flatten(1).shape[1] == rank:
            product = (up.flatten(1) @ down.flatten(1)).reshape(-1, *down.shape[1:])
            if product.shape != weight.shape and product.shape[:2] == weight.shape[:2]:
                product = (
                    product.reshape(weight.shape) if _is_pointwise(product, weight) else product
                )
            if product.shape == weight.shape:
                return product * ((rank if self.alpha is None else self.alpha) / rank)
        raise UserError(
            f"{self.name!a} {list(self.down.shape)} and its other half {list(self.up.shape)} make "
            f"no change of a weight {list(weight.shape)}: it is a LoRA of another network"
        )


def _is_pointwise(product: Tensor, weight: Tensor) -> bool:
    """Whether one is a matrix and the other a convolution of one pixel."""
    return product.numel() == weight.numel()


def is_lora(names: Iterable[str]) -> bool:
    return any(mark in name for name in names for mark in (*MARKS, *OTHERS) if mark != ".diff")


def changes(tensors: Tensors, alphas: Alphas) -> dict[str, Change]:
    """The changes of a LoRA by the PATH of the module that each is of.

    Raises UserError for tensors that are no such change, and where a half is missing.
    """
    downs: dict[str, str] = {}
    ups: dict[str, str] = {}
    told = dict(alphas)
    for name, value in tensors.items():
        for mark, kind in OTHERS.items():
            if mark in name:
                raise UserError(f"{name!a} is of {kind}: only plain LoRA is merged")
        if name.endswith(ALPHA):
            if value.numel() != 1:
                raise UserError(f"{name!a} is no number")
            told[module_path(name.removesuffix(ALPHA))] = float(value)
        elif found := DOWN.search(name):
            downs[module_path(name[: found.start()])] = name
        elif found := UP.search(name):
            ups[module_path(name[: found.start()])] = name
        else:
            raise UserError(f"{name!a} is not part of a LoRA")
    if alone := sorted(downs.keys() ^ ups.keys()):
        raise UserError(f"it is not whole: of {alone[0]!a} one half is missing")
    return {
        path: Change(name, tensors[name], tensors[ups[path]], told.get(path))
        for path, name in downs.items()
    }


def module_path(name: str) -> str:
    """A module's path as it is today: once, attention's matrices were in its processor."""
    name = name.removeprefix(PEFT)
    if ".processor." in name:
        name = name.replace(".processor.", ".")
        name = name + ".0" if name.endswith(".to_out") else name
    head, _, last = name.rpartition(".")
    if head.endswith("self_attn") and last in OLD_TEXT:
        return f"{head}.{OLD_TEXT[last]}"
    return name


def with_changes(
    weights: Tensors, of: Mapping[str, Change], names: Mapping[str, str], scale: float
) -> dict[str, Tensor]:
    """The weights with these changes in them; float32 at least where they are changed.

    ``names``: by PATH, how the weight is called here. Raises UserError that names a change whose
    weight is not here, or is of another shape.
    """
    found = dict(weights)
    for path, change in of.items():
        if path not in names:
            raise UserError(
                f"{change.name!a} changes {path!a}, which the network does not have: it is a LoRA "
                "of another network"
            )
        weight = weights[names[path]]
        sum_ = weight.to(torch.float64) + scale * change.delta(weight)
        found[names[path]] = sum_.to(torch.promote_types(weight.dtype, torch.float32))
    return found


# Names of kohya's trainers ------------------------------------------------------------------------


def kohya_unet_names(
    tensors: dict[str, Tensor], network: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A LoRA of a U-Net under diffusers' names, by diffusers' own converter; any other as it is.

    The converter knows the U-Net's blocks under diffusers' names and those of the first code.
    """
    if not any(name.startswith((KOHYA_UNET, *KOHYA_TEXT)) for name in tensors):
        return tensors, {}
    for name in tensors:
        for mark, kind in OTHERS.items():
            if mark in name:
                raise UserError(f"{name!a} is of {kind}: only plain LoRA is merged")
    from diffusers.loaders import lora_conversion_utils as diffusers

    config = SimpleNamespace(layers_per_block=network.get("layers_per_block", 2))
    try:
        named = diffusers._maybe_map_sgm_blocks_to_diffusers(dict(tensors), config)
        named, told = diffusers._convert_non_diffusers_lora_to_diffusers(named)
    except (ValueError, LookupError, AttributeError, RuntimeError) as error:
        line = " ".join(str(error).split())[:160]
        raise UserError(f"its names are not those of a LoRA of such a network: {line}") from None
    alphas = {}
    for name in named:
        if found := DOWN.search(name):
            # The converter cuts names at ".lora." only, so that others keep their ending.
            key = name.split(".lora.")[0] + ALPHA
            if key in told:
                alphas[module_path(name[: found.start()])] = float(told[key])
    return named, alphas


def kohya_flux_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A LoRA of FLUX by kohya's trainer, which knows its blocks under the first code's names, by
    diffusers' own converter; any other as it is. Query, key and value were one matrix there.
    """
    if not any(name.startswith(KOHYA_FLUX) for name in tensors):
        return tensors, {}
    from diffusers.loaders import lora_conversion_utils as diffusers

    try:
        return diffusers._convert_kohya_flux_lora_to_diffusers(dict(tensors)), {}
    except (ValueError, LookupError, AttributeError, RuntimeError) as error:
        line = " ".join(str(error).split())[:160]
        raise UserError(f"its names are not those of a LoRA of such a network: {line}") from None


def plain_kohya_names(names: Mapping[str, str], tensors: Tensors) -> dict[str, Tensor]:
    """A LoRA whose modules' paths are written with underscores, under their dots again.

    ``names``: PATH by what it is called with underscores. Others stay as they are.
    """
    found = {}
    for name, value in tensors.items():
        module, dot, tail = name.partition(".")
        found[names.get(module, module) + dot + tail] = value
    return found
