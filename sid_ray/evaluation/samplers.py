"""From noise to images with a generator, and the inputs that seeds stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sid_ray.data.source import DataSource
from sid_ray.diffusion.rng import EVALUATION, generator_for
from sid_ray.objectives.generation import generator_step
from sid_ray.types import Condition, Denoiser, Schedule


class Inputs(NamedTuple):
    """What a sampler makes images of.

    ``latents`` [N, C, H, W] N(0,1), ``cond`` for each of them, ``more_noise`` [N, K - 1, C, H, W]
    N(0,1) of a generator's evaluations after the first, or None.
    """

    latents: Tensor
    cond: Condition = Condition()
    more_noise: Tensor | None = None

    def take(self, index: Tensor) -> Inputs:
        """These samples, in this order."""
        return self._each(lambda value: value[index])

    def to(self, device: torch.device) -> Inputs:
        """The same on another device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """With every tensor that is there changed."""

        def part(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        cond = Condition(*(part(value) for value in self.cond))
        return Inputs(change(self.latents), cond, part(self.more_noise))


Sampler = Callable[[Inputs], Tensor]  # -> images [N, C, H, W]


def few_step(
    net: Denoiser,
    schedule: Schedule,
    latents: Tensor,
    cond: Condition,
    num_steps: int = 1,
    noises: Sequence[Tensor] = (),
) -> Tensor:
    """num_steps evaluations, the schedule's step_noise between them. [B, C, H, W] the same.

    From y = 0: x_k = add_noise(y, noise_k, level_k), y = D(x_k; level_k), where noise_0 is
    ``latents`` and ``noises`` holds the other num_steps - 1. No gradient is stopped here.
    """
    if len(noises) != num_steps - 1:
        raise ValueError(f"{num_steps} steps need {num_steps - 1} noises, got {len(noises)}")
    made = None
    for step, noise in enumerate((latents, *noises)):
        made = generator_step(net, schedule, made, noise, latents, step, num_steps, cond)
    assert made is not None
    return made.image


def generator_sampler(net: Denoiser, schedule: Schedule, num_steps: int = 1) -> Sampler:
    """A few-step generator as a sampler."""

    def sample(inputs: Inputs) -> Tensor:
        noises = () if inputs.more_noise is None else inputs.more_noise.unbind(1)
        return few_step(net, schedule, inputs.latents, inputs.cond, num_steps, noises)

    return sample


def seeded_latents(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal latents [len(seeds), *shape], each a function of its seed alone."""
    return torch.stack(
        [torch.randn(*shape, generator=generator_for(seed, EVALUATION)) for seed in seeds]
    )


def seeded_uniform(seeds: Sequence[int]) -> Tensor:
    """One uniform number in [0, 1) a seed, independent of the seed's latents: for labels."""
    return torch.stack(
        [torch.rand((), generator=generator_for(seed, EVALUATION, 1)) for seed in seeds]
    )


def seeded_noises(seeds: Sequence[int], shape: Sequence[int], num_steps: int) -> Tensor | None:
    """[len(seeds), num_steps - 1, *shape] for evaluations after the first; None without any."""
    if num_steps == 1:
        return None
    size = (num_steps - 1, *shape)
    return torch.stack(
        [torch.randn(size, generator=generator_for(seed, EVALUATION, 2)) for seed in seeds]
    )


def seeded_inputs(source: DataSource, seeds: Sequence[int], num_steps: int = 1) -> Inputs:
    """Inputs of seeds with conditions drawn from the data set, each of its seed alone."""
    return inputs_of_seeds(source, seeds, index_of(source, seeds), num_steps)


def index_of(source: DataSource, seeds: Sequence[int]) -> Tensor:
    """The data set's samples whose conditions seeds have: [N], each drawn by its seed alone."""
    return source.index(seeded_uniform(seeds))


def inputs_of_seeds(
    source: DataSource, seeds: Sequence[int], index: Tensor, num_steps: int = 1
) -> Inputs:
    """Inputs of seeds with the conditions of the data set's samples ``index`` [N]."""
    cond = Condition(source.one_hot(source.labels(index)), text=source.text(index))
    noises = seeded_noises(seeds, source.shape, num_steps)
    return Inputs(seeded_latents(seeds, source.shape), cond, noises)


@torch.no_grad()
def sample_in_batches(
    sampler: Sampler, inputs: Inputs, batch: int = 256, pad: bool = False
) -> Tensor:
    """Runs the sampler over batches and joins the images.

    With ``pad`` every batch is full, the last one by repetition: convolutions of another batch size
    round otherwise, and a seed's image should not depend on how many others were asked for.
    """
    parts, total = [], len(inputs.latents)
    for start in range(0, total, batch):
        chosen = torch.arange(start, min(start + batch, total))
        count = len(chosen)
        if pad:
            chosen = torch.cat([chosen, chosen[:1].expand(batch - count)])
        parts.append(sampler(inputs.take(chosen))[:count])
    return torch.cat(parts)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0..255 by truncation of 127.5 x + 128, the published convention."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
