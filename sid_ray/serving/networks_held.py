"""What a replica holds: a generator, its teacher where it is asked for, text encoder and VAE.

    held = HeldNetworks("runs/mine", most=64)
    batch = held.paint([WantedImage("generator", seed=0), ...])     uint8 [N, C, H, W] and more
    as_files(batch.images)

An image is a function of its seed, its condition, the steps and the network, as in ``sid-ray
generate``; of the size of the batch that it is in, its last bit may depend.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sid_ray.commands.generate import OneStepNetwork, choose_classes
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.evaluation.pictures import to_picture
from sid_ray.evaluation.samplers import Sampler
from sid_ray.serving.contract import Painted, Role, WantedImage
from sid_ray.serving.teachers import TeacherFound, open_teacher
from sid_ray.training.allocator import keep_freed_memory
from sid_ray.types import Condition

EMBEDDINGS_BYTES = 256 << 20  # of prompts that are kept; the least recently used leave first


def batch_ladder(most: int) -> list[int]:
    """The sizes that batches have: 1, 2, 3, 4, 6, 8, 12 ... ``most``.

    Few, so that a GPU meets few shapes; at most half as large again as what was asked for, so that
    one image does not pay for 64.
    """
    sizes = {each for power in range(11) for each in (1 << power, 3 << power) if each < most}
    return [*sorted(sizes), most]


def padded_size(count: int, most: int) -> int:
    """The smallest of the ladder that so many fit into."""
    return next(size for size in batch_ladder(most) if size >= count)


class PaintedBatch(NamedTuple):
    """``images`` uint8 [N, C, H, W] in CPU memory; ``classes`` N, None without classes."""

    images: Tensor
    network_s: float
    classes: Sequence[int | None]


class HeldNetworks:
    """A generator opened for good; its teacher is opened when it is first asked for.

    Args:
        source: as ``sid-ray generate`` takes it.
        most: images at once.
        threads: of torch on a CPU; 0 leaves them as they are.

    Raises UserError for what ``sid-ray generate`` refuses. For one thread at a time.
    """

    def __init__(
        self, source: str, most: int, device: torch.device | str = "cpu", threads: int = 0
    ):
        set_numerics()
        self.source, self.most = source, most
        self.generator = OneStepNetwork(source, most, device=device)
        keep_freed_memory()
        _ = self.generator.codec, self.generator.sampler
        if self.generator.family.reads_text:
            self._bound_text()
        if threads and self.device.type == "cpu":
            torch.set_num_threads(threads)  # last: what opens a VAE sets another number

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @cached_property
    def teacher(self) -> Sampler:
        """Raises UserError where it cannot be opened."""
        found = TeacherFound.of(self.source, self.generator.description)
        return open_teacher(found, self.generator)

    def _bound_text(self) -> None:
        """As many prompts are kept as fit into EMBEDDINGS_BYTES."""
        text = self.generator.text
        row = text.null()
        text.max_prompts = max(8, EMBEDDINGS_BYTES // (row.numel() * row.element_size()))

    @torch.no_grad()
    def paint(self, wanted: Sequence[WantedImage]) -> PaintedBatch:
        """Images of one role and one number of steps. Raises UserError."""
        role, steps = wanted[0].role, wanted[0].steps
        sampler, num_steps = self._sampler(role, steps)
        began = time.perf_counter()
        classes, cond = self._conditions(wanted)
        seeds = [each.seed for each in wanted]
        size = padded_size(len(wanted), max(self.most, len(wanted)))
        images = self.generator.paint_by(sampler, num_steps, seeds, cond, size).cpu()
        return PaintedBatch(images, time.perf_counter() - began, classes)

    def _sampler(self, role: Role, steps: int | None) -> tuple[Sampler, int]:
        """What makes the images, and how many noises it reads. Raises UserError."""
        if role == "teacher":
            return self.teacher, 1
        sampler, own = self.generator.sampler
        if steps not in (None, own):
            raise UserError(f"steps is {steps}; this generator makes its images in {own}")
        return sampler, own

    def _conditions(self, wanted: Sequence[WantedImage]) -> tuple[Sequence[int | None], Condition]:
        """Classes, drawn by seed where none is named, or the prompts' embeddings."""
        none = [None] * len(wanted)
        if self.generator.family.reads_text:
            text = self.generator.text.embed([each.prompt for each in wanted])
            return none, Condition(text=text)
        label_dim = self.generator.label_dim
        if not label_dim:
            return none, Condition()
        drawn = choose_classes([each.seed for each in wanted], None, label_dim).tolist()
        classes = [
            own if each.class_ is None else each.class_
            for own, each in zip(drawn, wanted, strict=True)
        ]
        if max(classes) >= label_dim:
            raise UserError(f"class {max(classes)}: this generator knows 0-{label_dim - 1}")
        one_hot = torch.nn.functional.one_hot(torch.tensor(classes), label_dim)
        return classes, Condition(one_hot.float())

    def warm_up(self) -> None:
        """Makes a batch of the smallest and of the largest size: no client waits for it."""
        for count in {1, self.most}:
            self.paint([WantedImage("generator", seed=seed) for seed in range(count)])


def as_files(batch: PaintedBatch) -> list[Painted]:
    """The images as files."""
    found = []
    for image, class_ in zip(batch.images, batch.classes, strict=True):
        file = io.BytesIO()
        to_picture(image).save(file, "PNG")
        found.append(Painted(file.getvalue(), batch.network_s, len(batch.images), class_))
    return found
