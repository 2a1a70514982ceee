"""What a run has come to, for Python: its folder, its scores, a generator that samples."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sid_ray.device.choice import device_for
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sid_ray.commands.generate import OneStepNetwork

BATCH = 64  # as of `sid-ray generate`, whose pictures these are


class Generator:
    """A one-step generator, loaded when it first makes images; on the GPU where there is one.

        images = generator(range(16))                        # uint8 [16, C, H, W]
        images = generator(range(16), labels=3)              # of a class; or a class for each seed
        images = generator([0, 1], prompts=["a cat", "a hat"])
        generator.pictures(range(16))[0].save("cat.png")

    A seed gives the image that `sid-ray generate` makes of it, in any call. On a GPU its last bits
    may differ.

    Args:
        source: a run's folder, one of its checkpoints, RUN/best, or a generator's weights: a path,
            https://, s3:// or hf://OWNER/REPO/PATH.
        device: of torch, like "cpu" or "cuda:1"; empty for the GPU where there is one.
        batch: images made at once; every batch is filled up to it.
        text_encoder, vae: diffusers folders with these; empty for the network's own folder, or its
            teacher's.
        base: of an adapter, another base than the teacher that it was distilled from.
    """

    def __init__(
        self,
        source: str,
        device: str = "",
        batch: int = BATCH,
        text_encoder: str = "",
        vae: str = "",
        base: str = "",
    ):
        self.source, self.device, self.batch = source, device, batch
        self.text_encoder, self.vae, self.base = text_encoder, vae, base

    def __repr__(self) -> str:
        return f"Generator({self.source!r})"

    @cached_property
    def network(self) -> OneStepNetwork:
        """The network itself, with its description. Raises UserError where there is none."""
        drawn = random.getstate()
        import torch

        from sid_ray.commands.generate import OneStepNetwork
        from sid_ray.weights.components import Named

        random.setstate(drawn)  # what is imported draws from it
        device = self.device or device_for("auto")
        named = Named(self.text_encoder, self.vae)
        network = OneStepNetwork(self.source, self.batch, named, device, self.base)
        with torch.random.fork_rng(devices=[]):  # new networks draw weights before they read them
            _ = network.codec, network.sampler
        return network

    @property
    def classes(self) -> int:
        """How many it knows; 0 where it reads none."""
        return self.network.label_dim

    @property
    def reads_text(self) -> bool:
        return self.network.family.reads_text

    def __call__(
        self,
        seeds: Sequence[int],
        labels: int | Sequence[int] | None = None,
        prompts: str | Sequence[str] = (),
    ) -> Tensor:
        """The images of seeds: uint8 [N, C, H, W] on the CPU.

        Args:
            labels: the class of all images, or one for each seed; without any, a generator with
                classes draws one by each seed.
            prompts: the text of all images, or one for each seed; a generator that reads text
                needs it.

        Raises UserError where these do not fit the generator, or its weights cannot be loaded.
        """
        import torch

        seeds = [int(seed) for seed in seeds]
        if not seeds or min(seeds) < 0:
            raise UserError("seeds: expected some whole numbers of at least 0, like range(16)")
        chosen = for_each("labels", labels, len(seeds))
        texts = for_each("prompts", prompts or None, len(seeds))
        self._check(chosen, texts)
        parts = []
        for start in range(0, len(seeds), self.batch):
            some = slice(start, start + self.batch)
            part = seeds[some]
            given = chosen is not None or texts is not None
            dealt = self.network.conditions(
                None if chosen is None else [int(label) for label in chosen[some]],
                () if texts is None else texts[some],
            )
            # Classes and prompts are dealt out by number: here by the place in the list.
            cond = dealt(range(len(part)) if given else part)
            parts.append(self.network.paint(part, cond).cpu())
        return torch.cat(parts)

    def pictures(
        self,
        seeds: Sequence[int],
        labels: int | Sequence[int] | None = None,
        prompts: str | Sequence[str] = (),
    ) -> list[Image]:
        """The same as pictures of PIL, grey or RGB."""
        from sid_ray.evaluation.pictures import to_picture

        return [to_picture(image) for image in self(seeds, labels, prompts)]

    def _check(self, labels: Sequence[int] | None, prompts: Sequence[str] | None) -> None:
        """Raises UserError where the generator reads the other kind, or lacks a class."""
        if self.reads_text:
            if labels is not None:
                raise UserError("labels: this generator reads text, no classes; give prompts")
            if prompts is None:
                raise UserError("this generator reads text: give prompts, one or one for each seed")
            return
        if prompts is not None:
            other = "give labels" if self.classes else "leave prompts out"
            raise UserError(f"prompts: this generator reads no text; {other}")
        if labels is not None and not self.classes:
            raise UserError("labels: this generator knows no classes; leave labels out")
        for label in labels or ():
            if not 0 <= label < self.classes:
                raise UserError(
                    f"labels holds {label}; this generator knows 0 to {self.classes - 1}"
                )


def for_each(what: str, given: Any, count: int) -> Sequence[Any] | None:
    """One thing for all of ``count`` seeds, or one for each, as a list. Raises UserError."""
    if given is None:
        return None
    if isinstance(given, str) or not hasattr(given, "__len__"):
        return [given] * count
    if len(given) != count:
        raise UserError(
            f"{what} has {len(given)} entries for {count} seeds: give one, or one for each seed"
        )
    return given


@dataclass(frozen=True)
class Result:
    """A run that has seen its images, or all that were asked for until now.

    Attributes:
        folder: the run's, a path or s3://BUCKET/PREFIX.
        images_seen: by its newest weights.
        summary: what summary.json holds: scores of teacher and generator, seconds, interruptions.
        scores: of the newest weights by their names, like FD-digits-cnn; empty without a final
            report (evaluation.final_report).
        weights: the folder of the best weights, or of the newest where none was scored:
            model.safetensors, model.json and a card; empty where it could not be written.
        best_images_seen, best_scores: of those weights.
        mlflow_run_id: of the run in the tracking store ``mlflow_uri``; empty where that did not
            answer.
        generator: makes images with the best weights.
    """

    folder: str
    images_seen: int
    summary: Mapping[str, Any] = field(repr=False)
    scores: Mapping[str, float]
    weights: str
    best_images_seen: int
    best_scores: Mapping[str, float]
    mlflow_run_id: str
    mlflow_uri: str

    @cached_property
    def generator(self) -> Generator:
        return Generator(self.weights or f"{self.folder}/best")
