"""What an export can be: a pipeline of diffusers, its network alone, a LoRA, or a loader's files.

kind = export_kind(description, components, asked)     or UserError
kind.write(folder, network)
kind.made_outside(folder, scratch, inputs, prompts)
kind.card(story, name)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from sid_ray.checkpoint.model_card import plain_label
from sid_ray.denoisers.adapters import BASE_LAYER, base_tensors
from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.stock import LOADERS
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import Inputs
from sid_ray.exporting.card import (
    CardText,
    Story,
    base_opened,
    how_evaluated,
    loader_lines,
    pipeline_lines,
    quoted,
)
from sid_ray.exporting.compared import ROUNDING, Exported, made_outside
from sid_ray.exporting.stock_folder import (
    INDEX,
    LORA,
    SCHEDULER,
    Stock,
    Stored,
    write_base_parts,
    write_network,
    write_scheduler,
)
from sid_ray.storage.durable import link_or_copy
from sid_ray.weights.derived import link_parts, unshared
from sid_ray.weights.description import Components, ModelDescription, save_model, save_weights
from sid_ray.weights.networks import layout

LOADER, BASE_FOLDER = "generate.py", "base"


class AskedExport(Protocol):
    """Of the options, what decides the kind."""

    @property
    def dtype(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def only_network(self) -> bool: ...


def export_kind(description: ModelDescription, components: Components, asked: AskedExport) -> Kind:
    """Raises UserError where a generator cannot be exported, or not so."""
    family, stored = (
        family_of(description.family),
        Stored(getattr(torch, asked.dtype), asked.variant),
    )
    if family.folder:
        stock = Stock(description, components)
        if description.adapter is not None:
            return LoRA(description, stock, stored)
        return (
            NetworkAlone(description, stock, stored)
            if asked.only_network
            else Pipeline(description, stock, stored)
        )
    if not family.loader:
        raise UserError(f"family {family.name} does not say how its generators are exported")
    if asked.only_network or asked.variant:
        flag = "only-network" if asked.only_network else "variant"
        raise UserError(
            f"--{flag} is for pipelines of diffusers; this is a {family.name} generator"
        )
    if description.adapter is not None:
        raise UserError(
            f"an adapter of a {family.name} network opens in sid_ray alone: give --fuse"
        )
    return Loader(description, stored)


class Kind(ABC):
    """Attributes:
    title: what the folder is, for a person.
    makes_pixels: whether ``made_outside`` returns pixels, not the network's own samples.
    rounding: by which pixels in [0, 1] may differ from ours.
    without_base: what else to ask for where people cannot open the base as a pipeline of diffusers,
        which the card's lines do; empty where they do not.
    """

    title: ClassVar[str]
    makes_pixels: ClassVar[bool] = True
    rounding: ClassVar[float] = ROUNDING
    without_base: str = ""

    @abstractmethod
    def write(self, folder: Path, network: nn.Module) -> None:
        """The weights, and what opens them. Raises UserError, OSError."""

    @abstractmethod
    def made_outside(
        self, folder: Path, scratch: Path, inputs: Inputs, prompts: Sequence[str]
    ) -> Tensor:
        """Images of a process without sid_ray, [N, C, H, W]. Raises NotTheSameError, OSError."""

    @abstractmethod
    def card(self, story: Story, name: str) -> CardText:
        """The card's own part; ``name`` is the folder's."""


class Pipeline(Kind):
    """A whole folder."""

    title = "a stock folder of diffusers"
    relation: ClassVar[str] = "pipeline"

    def __init__(self, description: ModelDescription, stock: Stock, stored: Stored):
        self.description, self.stock, self.stored = description, stock, stored

    def write(self, folder: Path, network: nn.Module) -> None:
        write_network(folder, self.stock, network.state_dict(), self.stored)
        write_base_parts(folder, self.stock)

    def whole(self, folder: Path, scratch: Path) -> Path:
        """A whole pipeline's folder."""
        return folder

    def lora(self, folder: Path) -> Path | None:
        """That is to be loaded into it."""
        return None

    def made_outside(
        self, folder: Path, scratch: Path, inputs: Inputs, prompts: Sequence[str]
    ) -> Tensor:
        scale = self.stock.scheduler.latents_scale
        given = {"latents": scale * inputs.latents}
        if inputs.more_noise is not None:
            given["noises"] = inputs.more_noise.transpose(0, 1).contiguous()
        whole = self.whole(folder, scratch)
        stock = self.stock
        exported = Exported(
            whole, stock.call, prompts, self.lora(folder), left_out=stock.pipeline.left_out
        )
        return made_outside(exported, given, scratch)

    def base_named(self, story: Story, name: str) -> str:
        """The arguments by which the card's lines open the base."""
        return base_opened(story.base)

    def card(self, story: Story, name: str) -> CardText:
        base = self.base_named(story, name)
        lines = pipeline_lines(name, self.stock, story.prompts[0], self.relation, base)
        told = how_evaluated(self.stock)
        if self.stored.variant:
            told += f' `variant="{self.stored.variant}"` opens the copy in half precision.'
        return CardText(told, lines, self.relation)


class NetworkAlone(Pipeline):
    """The network and its scheduler, to be opened with the other parts of the base."""

    title = "a network of diffusers and its scheduler"
    relation = "network"
    without_base = "leave --only-network out"

    def __init__(self, description: ModelDescription, stock: Stock, stored: Stored):
        super().__init__(description, stock, stored)
        if stock.pixels:
            raise UserError(
                "--only-network: the base of this generator makes pixels and has no VAE, which "
                "pipelines of diffusers need: leave the flag out"
            )

    def write(self, folder: Path, network: nn.Module) -> None:
        write_network(folder, self.stock, network.state_dict(), self.stored)
        (folder / INDEX).unlink()  # it is not whole

    def whole(self, folder: Path, scratch: Path) -> Path:
        made = scratch / "whole"
        made.mkdir()
        self.stock.write_index(made)
        part = self.stock.pipeline.folder
        link_parts(made, {name: folder / name for name in (part, SCHEDULER)})
        write_base_parts(made, self.stock)
        return made


class LoRA(Pipeline):
    """An adapter's file and its scheduler, to be loaded into the base. A base of pixels, which no
    pipeline opens as it is, is written beside it as a folder that one does.
    """

    title = "a LoRA for load_lora_weights and its scheduler"
    relation = "adapter"

    def __init__(self, description: ModelDescription, stock: Stock, stored: Stored):
        super().__init__(description, stock, stored)
        self.without_base = "" if stock.pixels else "give --fuse, or name another by --base"
        if stored.variant:
            raise UserError("--variant is for whole networks: give --fuse, or --dtype float16")
        self.base: dict[str, Tensor] = {}

    def write(self, folder: Path, network: nn.Module) -> None:
        adapter = {
            name: value.to(self.stored.dtype) for name, value in network.state_dict().items()
        }
        public = dataclasses.replace(self.description, notes=public_notes(self.description))
        save_weights(folder / LORA, adapter, public)
        write_scheduler(folder, self.stock)
        plain = layout(dataclasses.replace(self.description, adapter=None), "the base").state_dict()
        named = {n.replace(BASE_LAYER, "."): value for n, value in base_tensors(network)}
        self.base = {name: named[name] for name in plain}
        if self.stock.pixels:
            self.write_base(folder / BASE_FOLDER)

    def write_base(self, folder: Path) -> Path:
        folder.mkdir()
        write_network(folder, self.stock, self.base, Stored())
        write_base_parts(folder, self.stock)
        return folder

    def whole(self, folder: Path, scratch: Path) -> Path:
        return folder / BASE_FOLDER if self.stock.pixels else self.write_base(scratch / "whole")

    def base_named(self, story: Story, name: str) -> str:
        if self.stock.pixels:
            return quoted(f"{name}/{BASE_FOLDER}")
        return super().base_named(story, name)

    def card(self, story: Story, name: str) -> CardText:
        text = super().card(story, name)
        if not self.stock.pixels:
            return text
        beside = (
            f"The base, `{plain_label(story.base)}`, lies in `{BASE_FOLDER}/` as a folder that "
            "diffusers opens."
        )
        return text._replace(told=f"{text.told} {beside}")

    def lora(self, folder: Path) -> Path:
        return folder


class Loader(Kind):
    """Weights, and a program of one file that evaluates them with torch alone."""

    title = "safetensors with a loader of its own"
    makes_pixels = False

    def __init__(self, description: ModelDescription, stored: Stored):
        self.description, self.stored = description, stored
        self.family = family_of(description.family)

    def write(self, folder: Path, network: nn.Module) -> None:
        tensors = {n: value.to(self.stored.dtype) for n, value in network.state_dict().items()}
        # Written out: the loader knows no defaults.
        network_of = self.family.written_out(self.description.network) | {"dropout": 0.0}
        public = dataclasses.replace(
            self.description, network=network_of, notes=public_notes(self.description)
        )
        save_model(folder, unshared(tensors), public)
        link_or_copy(LOADERS / self.family.loader, folder / LOADER)

    def made_outside(
        self, folder: Path, scratch: Path, inputs: Inputs, prompts: Sequence[str]
    ) -> Tensor:
        given = {"latents": inputs.latents}
        if inputs.more_noise is not None:
            given["noises"] = inputs.more_noise.transpose(0, 1).contiguous()
        if inputs.cond.labels is not None:
            given["labels"] = inputs.cond.labels
        return made_outside(Exported(folder, {}, loader=LOADER), given, scratch)

    def card(self, story: Story, name: str) -> CardText:
        shape = self.family.shape(self.description.network)
        classes = self.family.label_dim(self.description.network)
        told, lines = loader_lines(name, shape, classes, LOADER, self.description)
        return CardText(told, lines, "loader")


def public_notes(description: ModelDescription) -> Mapping[str, object]:
    """Notes without paths of this machine."""
    notes = dict(description.notes)
    for name in ("teacher", "text_encoder", "vae"):
        if notes.get(name):
            notes[name] = plain_label(str(notes[name]))
    notes.pop("lora", None)
    return notes
