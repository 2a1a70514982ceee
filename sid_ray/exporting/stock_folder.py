"""A folder that diffusers' own pipelines open, written of a generator and of its teacher's parts.

    DIR/model_index.json
    DIR/unet or transformer/config.json, diffusion_pytorch_model.safetensors
    DIR/scheduler/scheduler_config.json
    DIR/text_encoder ..., tokenizer ..., vae        the teacher's, in safetensors

Files that are as they should be are linked, or copied to another disk; others are written anew: no
pickle is copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sid_ray.denoisers.component import component_of, require_diffusers, tokenizer_folder
from sid_ray.denoisers.component import tokenizer_part as tokenizer_of
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.stock import StockPipeline, StockScheduler, stock_arguments
from sid_ray.errors import UserError
from sid_ray.storage.durable import link_or_copy
from sid_ray.tensor_files.tensors import json_object, read_component, weight_files
from sid_ray.weights.derived import unshared, write_component
from sid_ray.weights.description import Components, ModelDescription, write_safetensors

INDEX, CONFIG = "model_index.json", "config.json"
SCHEDULER = "scheduler"
STEM = "diffusion_pytorch_model"
LOADED_FROM = ("_name_or_path", "name_or_path")
LORA = "pytorch_lora_weights.safetensors"
TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "spiece.model", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip


class Stock:
    """What diffusers is told of a generator. Raises UserError where it has no pipeline for it.

    Attributes:
        call: all arguments of the pipeline beside prompt and randomness.
    """

    def __init__(self, description: ModelDescription, components: Components):
        require_diffusers()
        assert description.one_step is not None and components.text is not None
        self.family, self.components = family_of(description.family), components
        self.pixels = not self.family.makes_latents(description.network)
        self.shape = self.family.shape(description.network)
        network = description.network
        self.pipeline: StockPipeline = self.family.pipeline(
            network, components.text, self.vae_factor
        )
        self.scheduler: StockScheduler = self.family.noise.exported(description.one_step)

    @cached_property
    def vae_factor(self) -> int:
        if self.pixels:
            return 1
        if self.components.vae is None:
            raise UserError(
                "this generator makes latents and has no VAE beside it: give --vae FOLDER, a "
                "diffusers folder with the vae of its teacher"
            )
        convention = self.family.latent_convention()
        return convention.factor(convention.check(self.components.vae))

    @cached_property
    def call(self) -> dict[str, Any]:
        found = {**self.scheduler.call, **self.pipeline.call}
        if self.shape[1] != self.pipeline.latent_size:
            found |= dict.fromkeys(("height", "width"), self.shape[1] * self.vae_factor)
        return found

    def write_index(self, folder: Path) -> None:
        write_json(folder / INDEX, with_version(self.pipeline.index(self.scheduler)))


class Stored(NamedTuple):
    """How a network's tensors are stored: in a dtype, and once more as a variant, like fp16."""

    dtype: torch.dtype = torch.float32
    variant: str = ""


VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16}


# Writing ------------------------------------------------------------------------------------------


def write_network(
    folder: Path, stock: Stock, tensors: Mapping[str, Tensor], stored: Stored
) -> None:
    """model_index.json, scheduler and network. Raises OSError.

    ``tensors`` have the names of our denoiser.
    """
    pipeline = stock.pipeline
    stock.write_index(folder)
    write_scheduler(folder, stock)
    bare = bare_names(stock.family, tensors)
    config = with_version({"_class_name": pipeline.network_class, **pipeline.network})
    part = folder / pipeline.folder
    write_component(part, config, {n: v.to(stored.dtype) for n, v in bare.items()})
    if stored.variant:
        half = {name: value.to(VARIANTS[stored.variant]) for name, value in bare.items()}
        write_safetensors(part / f"{STEM}.{stored.variant}.safetensors", unshared(half))


def write_scheduler(folder: Path, stock: Stock) -> None:
    (folder / SCHEDULER).mkdir(parents=True, exist_ok=True)
    values = {"_class_name": stock.scheduler.class_name, **stock.scheduler.config}
    write_json(folder / SCHEDULER / "scheduler_config.json", with_version(values))


def write_base_parts(folder: Path, stock: Stock) -> None:
    """Text encoders, tokenizers and VAE: those beside the network. Raises UserError, OSError."""
    text = stock.components.text
    assert text is not None
    for part, of in stock.pipeline.encoders.items():
        if of is not None:
            copy_component(component_of(text, part), folder / part)
            copy_tokenizer(tokenizer_folder(text, part), folder / tokenizer_of(part))
    if stock.pixels:
        from sid_ray.denoisers.pass_through import pass_through_vae

        vae: Any = pass_through_vae(stock.shape[0])
        config = stock_arguments(dict(vae.config))
        named = with_version({"_class_name": stock.pipeline.vae_class, **config})
        write_component(folder / "vae", named, vae.state_dict())
        return
    assert stock.components.vae is not None
    unsaid = {"scaling_factor": stock.family.latent_convention().scale}
    copy_component(component_of(stock.components.vae, "vae"), folder / "vae", unsaid)


def copy_component(source: Path, target: Path, defaults: Mapping[str, Any] = {}) -> None:
    """A component's config and weights, in safetensors without a variant's name.

    ``defaults`` are put into a config that does not say them, where they are not None.
    """
    own = without_origin(json_object(source / CONFIG))
    config = {name: value for name, value in defaults.items() if value is not None} | own
    if "architectures" in config:
        # diffusers opens its own parts in float32 where people name no dtype, transformers in the
        # one that a config names: an encoder in half precision would not fit the network.
        config = {name: config[name] for name in config if name != "torch_dtype"}
        config["dtype"] = "float32"
    files, variant = weight_files(source)
    if variant or any(file.suffix != ".safetensors" for file in files):
        write_component(target, config, read_component(source)[0])
        return
    target.mkdir(parents=True)
    write_json(target / CONFIG, config)
    indices = source.glob("*.safetensors.index.json") if len(files) > 1 else ()
    for file in (*files, *indices):
        link_or_copy(file.resolve(), target / file.name, sync=False)


def copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if name == "tokenizer_config.json" and (source / name).is_file():
            write_json(target / name, without_origin(json_object(source / name)))
        elif (source / name).is_file():
            shutil.copyfile(source / name, target / name)  # people edit them


def without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the place that it was loaded from, which may be a path of this machine."""
    return {name: value for name, value in config.items() if name not in LOADED_FROM}


def bare_names(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of our denoiser under the names that its network has in other programs."""
    return {name.removeprefix(family.bare_prefix): value for name, value in tensors.items()}


def with_version(values: Mapping[str, Any]) -> dict[str, Any]:
    import diffusers

    name, *others = values
    return {name: values[name], "_diffusers_version": diffusers.__version__} | {
        other: values[other] for other in others
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")
