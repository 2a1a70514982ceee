"""``sid-ray export``: a generator as a folder that opens without sid_ray.

DIR/                     a stock folder of diffusers, a LoRA and a scheduler, a loader, or a graph
DIR/README.md, grid.png  the card and its picture
DIR/sid_ray.json         how it was made and compared; the mark of a folder that may be replaced
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from sid_ray.checkpoint.model_card import plain_label
from sid_ray.commands.export_options import ExportOptions
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.denoisers.adapters import merged_weights
from sid_ray.denoisers.codecs import Codec
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.evaluation.pictures import pixel_scale, save_picture, tile
from sid_ray.evaluation.records import results_in
from sid_ray.evaluation.samplers import Inputs, generator_sampler, seeded_latents, seeded_noises
from sid_ray.evaluation.subject import Subject, find_subject
from sid_ray.exporting.card import GRID, Story, card_of
from sid_ray.exporting.compared import NotTheSameError, largest_difference
from sid_ray.exporting.kinds import Kind, export_kind
from sid_ray.exporting.onnx_file import OnnxGraph
from sid_ray.exporting.record import RECORD, write_export_record
from sid_ray.exporting.stock_folder import INDEX
from sid_ray.metrics.names import plain_scores
from sid_ray.run_folder import EVALUATIONS
from sid_ray.storage.places import expanded, in_words
from sid_ray.storage.schemes import is_path
from sid_ray.storage.scratch import folder_moved_into_place, scratch_folder
from sid_ray.storage.store import Store
from sid_ray.training.assemble import generation_of
from sid_ray.weights.address import HubFile, parse_source, source_label
from sid_ray.weights.components import Named
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.folder import load_model
from sid_ray.weights.licence import CARD, licence_of, repository_of

GRID_COLUMNS = 4


def export(options: ExportOptions) -> int:
    """Writes the folder; returns the exit code: 1 where it does not make the generator's images.

    Raises UserError.
    """
    try:
        said = write_export(options)
    except NotTheSameError as error:
        print(f"sid-ray: {error}; nothing is left in {options.folder}", file=sys.stderr)
        return 1
    print(f"{options.folder}: {said}")
    return 0


def write_export(options: ExportOptions) -> str:
    """Writes the folder; what it is, and what is said of the comparison.

    Raises UserError, NotTheSameError.
    """
    target = options.folder.expanduser().absolute()
    check_in_the_way(target, options.force)
    set_numerics()
    opened = Opened(options)
    try:
        with (
            scratch_folder(target.parent, f".{target.name}.") as scratch,
            folder_moved_into_place(target, scratch) as folder,
        ):
            said = f"{opened.kind.title}. {opened.write(folder, scratch)}"
            check_in_the_way(target, options.force)  # again: others may have been here meanwhile
            return said
    except OSError as error:
        raise UserError(in_words(error)) from None


def check_in_the_way(target: Path, force: bool) -> None:
    """Raises UserError for a place that holds something else than an export to be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / RECORD).is_file():
        raise UserError(f"{target} is there already and is no export: name another folder")
    if not force:
        raise UserError(f"{target} holds an export: name another folder, or give --force")


def check_opens(base: str, merged: bool, advice: str, name: str) -> None:
    """Raises UserError for a base that people cannot open with the card's lines, like one that an
    adapter lies over with a LoRA ``merged`` into it; ``name`` is that of the export's folder.
    """
    why = ""
    if not base:
        why = "the network does not say what its base is"
    elif merged:
        why = f"the base is {plain_label(base)} with a LoRA merged into it"
    elif repository_of(base):
        if HubFile.parse(parse_source(base).location).path:
            why = f"the base, {source_label(base)}, is a part of its repository, not all of it"
    elif not (is_path(base) and (expanded(base) / INDEX).is_file()):
        why = f"the base, {source_label(base)}, is no folder of diffusers with a {INDEX}"
    if why:
        raise UserError(f"{why}, so nobody could open this export as its card says: {advice}")
    if not repository_of(base) and plain_label(base) == name:
        raise UserError(
            f"the export and its base are both called {name}, by which the card's lines open each: "
            "give the export another name"
        )


class Opened:
    """A generator with what its export is made of. Raises UserError where it cannot be exported."""

    def __init__(self, options: ExportOptions):
        self.options = options
        self.seeds, self.classes = options.numbers()
        named = Named(options.text_encoder, options.vae)
        self.generator = OneStepNetwork(options.source, len(self.seeds), named, "cpu", options.base)
        self.family = self.generator.family
        self.subject = find_subject(options.source, options.base)
        description = self.generator.description
        if options.fuse and description.adapter is None:
            raise UserError(f"--fuse: {options.source} is a whole network, no adapter")
        graph = options.format == "onnx"
        self.fused = description.adapter is not None and (options.fuse or graph)
        self.description: ModelDescription = (
            dataclasses.replace(description, adapter=None) if self.fused else description
        )
        self.prompts = list(options.texts()) if self.family.reads_text else []
        if graph:
            self.kind: Kind = OnnxGraph(self.description, lambda: self.codec, self.embeddings)
        else:
            self.kind = export_kind(self.description, self.generator.components, options)
        self.base = options.base or str(self.description.notes.get("teacher", ""))
        if self.kind.without_base:
            merged = self.description.adapter is not None and self.description.notes.get("lora")
            check_opens(self.base, bool(merged), self.kind.without_base, options.folder.name)

    @cached_property
    def network(self) -> nn.Module:
        """Whole where its adapter is fused."""
        net, _ = load_model(self.generator.folder, base=self.generator.base)
        if not self.fused:
            return net
        plain = self.family.build(self.description.network)
        merged = merged_weights(net)
        plain.load_state_dict({name: merged[name] for name in plain.state_dict()})
        return plain.eval().requires_grad_(False)

    @property
    def codec(self) -> Codec:
        return self.generator.codec

    def embeddings(self) -> Tensor:
        """Of the prompts, each once: [P, T, D]."""
        found: Tensor = self.generator.text.embed(self.prompts)
        return found

    @cached_property
    def inputs(self) -> Inputs:
        cond = self.generator.conditions(self.classes, self.prompts)(self.seeds)
        shape, steps = self.generator.shape, generation_of(self.description)[1]
        noises = seeded_noises(self.seeds, shape, steps)
        return Inputs(seeded_latents(self.seeds, shape), cond, noises)

    @torch.no_grad()
    def samples(self) -> Tensor:
        """[N, C, H, W] of the seeds, as the network makes them."""
        schedule, steps = generation_of(self.description)
        return generator_sampler(self.network, schedule, steps)(self.inputs)

    def pixels(self, samples: Tensor) -> Tensor:
        """In [0, 1], float32."""
        return (self.codec.decode(samples) / 2 + 0.5).clip(0, 1).float()

    def write(self, folder: Path, scratch: Path) -> str:
        """Fills the folder; what is said of the comparison. Raises UserError, NotTheSameError."""
        samples = self.samples()
        exact, moved = self.pixels(samples), ""
        if self.options.dtype != "float32":
            round_in_place(self.network, getattr(torch, self.options.dtype))
            samples = self.samples()
            far = largest_difference(self.pixels(samples), exact)
            moved = (
                f"Weights in {self.options.dtype} move pixels by up to {far:.1e} of their range."
            )
        self.kind.write(folder, self.network)
        said = f"Not compared with sid_ray's own images. {moved}"
        compared: float | None = None
        if self.options.compared:
            compared = self.compare(folder, scratch, samples)
            said = (
                f"Seeds {self.options.seeds} made of this folder without sid_ray differ from "
                f"sid_ray's own images by at most {compared:.1e} of the range of pixels (float32, "
                f"before they are rounded to 8 bits). {moved}"
            )
        pictures = self.codec.decode_uint8(samples)
        grid = tile(
            pictures, min(GRID_COLUMNS, len(pictures)), pixel_scale(pictures.shape[-1], 128)
        )
        save_picture(grid, folder / GRID)
        story = self.story(said.strip())
        (folder / CARD).write_text(card_of(story, self.kind.card(story, self.options.folder.name)))
        facts = {
            "name": self.options.folder.name,
            "command": story.command,
            "weights_sha256": self.subject.sha256,
            "images_seen": self.subject.images_seen,
            "seeds": self.options.seeds,
            "largest_difference": compared,
        }
        write_export_record(folder, facts)
        return said.strip()

    def compare(self, folder: Path, scratch: Path, samples: Tensor) -> float:
        """The largest difference of pixels in [0, 1]. Raises NotTheSameError where it is no
        rounding.
        """
        theirs = self.kind.made_outside(folder, scratch, self.inputs, self.prompts_of_seeds())
        ours = self.pixels(samples)
        theirs = theirs if self.kind.makes_pixels else self.pixels(theirs)
        found = largest_difference(theirs, ours)
        if found > self.kind.rounding:
            raise NotTheSameError(
                f"images made of the export differ from sid_ray's own by {found:.1e} of the range "
                f"of pixels, more than rounding ({self.kind.rounding:g})"
            )
        return found

    def prompts_of_seeds(self) -> list[str]:
        return [self.prompts[s % len(self.prompts)] for s in self.seeds] if self.prompts else []

    def story(self, compared: str) -> Story:
        config, subject = self.subject.config, self.subject
        place = self.generator.base or self.generator.components.text
        label = plain_label(self.options.source)
        run = config.run_name if config else label
        name = label if label == run else f"{run}/{label}"
        return Story(
            name=name,
            teacher=str(self.description.notes.get("teacher", "")),
            base=self.base,
            licence=licence_of(self.base, place),
            command=shown_command(self.options, name),
            prompts=self.prompts,
            description=subject.description,
            config=config,
            images_seen=subject.images_seen or 0,
            scores=scores_to_tell(subject),
            compared=compared,
        )


def round_in_place(network: nn.Module, dtype: torch.dtype) -> None:
    """Gives a network the values that its weights have in a dtype; they stay float32."""
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.to(dtype))


def scores_to_tell(subject: Subject) -> Mapping[str, float]:
    """The last scores of these very weights in their run's records; none where there are none."""
    if not subject.run:
        return {}
    try:
        data = Store.at(subject.run).read_text(EVALUATIONS).encode()
    except (OSError, ValueError):
        return {}
    found = [r for r in results_in(data) if r.get("weights_sha256") == subject.sha256]
    return plain_scores(found[-1]["scores"]) if found else {}


def shown_command(options: ExportOptions, source: str) -> str:
    """The command, without paths of this machine."""
    words = ["sid-ray", "export", source, options.folder.name]
    for flag, value in options.chosen().items():
        private = flag in ("--vae", "--text-encoder", "--base")
        words.append(flag)
        if not isinstance(value, bool):
            words.append(plain_label(value) if private else value)
    return shlex.join(words)
