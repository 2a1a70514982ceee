"""From noise to images: one evaluation with a generator, many with a teacher.

Symbols
    sigma_i  noise level of step i       x_i  sample at that level      D  denoiser
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sid_ray.data.source import LabelSource
from sid_ray.rng import EVALUATION, generator_for
from sid_ray.schedules import EDMSchedule
from sid_ray.types import Condition, Denoiser, Schedule

Sampler = Callable[[Tensor, Tensor | None], Tensor]  # (latents, labels) -> images


def one_step(net: Denoiser, schedule: Schedule, latents: Tensor, labels: Tensor | None) -> Tensor:
    """y = D(init_sigma * z; init_sigma): one evaluation. [B, C, H, W] -> [B, C, H, W]."""
    return few_step(net, schedule, latents, Condition(labels))


def few_step(
    net: Denoiser,
    schedule: Schedule,
    latents: Tensor,
    cond: Condition,
    num_steps: int = 1,
    noises: Sequence[Tensor] = (),
) -> Tensor:
    """num_steps evaluations with fresh noise between them. [B, C, H, W] -> [B, C, H, W].

    From y = 0: x_k = add_noise(y, noise_k, level_k), y = D(x_k; level_k), where noise_0 is
    ``latents`` and ``noises`` holds the other num_steps - 1. Levels fall linearly, in sigma for
    EDM2 (SiDA) and in the timestep for Stable Diffusion (SiD-LSG). No gradient is stopped here.
    """
    if len(noises) != num_steps - 1:
        raise ValueError(f"{num_steps} steps need {num_steps - 1} noises, got {len(noises)}")
    image = torch.zeros_like(latents)
    for step, noise in enumerate((latents, *noises)):
        level = schedule.step_level(step, num_steps, len(latents), latents)
        prediction = net(schedule.add_noise(image, noise, level), level, cond).x0
        assert prediction is not None
        image = prediction
    return image


def heun(
    net: Denoiser,
    schedule: EDMSchedule,
    latents: Tensor,
    labels: Tensor | None,
    num_steps: int = 18,
) -> Tensor:
    """EDM's deterministic second-order sampler: 2 * num_steps - 1 evaluations.

    Source: EDM (arXiv:2206.00364), algorithm 1 with S_churn = 0 and the rho grid of equation 5.
    """
    grid = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    sigmas = torch.cat([schedule.sigma_at(grid), torch.zeros(1, dtype=torch.float64)])
    sigmas = sigmas.to(latents.device)

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        level = schedule.level(sigma.to(latents.dtype).expand(len(x)))
        denoised = net(x.to(latents.dtype), level, Condition(labels)).x0
        assert denoised is not None
        return (x - denoised.to(x.dtype)) / sigma

    x = latents.double() * sigmas[0]
    for here, there in itertools.pairwise(sigmas):
        d = slope(x, here)
        x_next = x + (there - here) * d
        if there > 0:
            x_next = x + (there - here) * (d + slope(x_next, there)) / 2
        x = x_next
    return x.to(latents.dtype)


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


def labelled_seeds(
    source: LabelSource, seeds: Sequence[int], classes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """(latents [N, C, H, W], one-hot labels [N, label_dim]) of seeds, each of its seed alone.

    ``classes`` are dealt out by the seed's number; without them a class is drawn for each seed
    with the data set's frequencies.
    """
    latents = seeded_latents(seeds, source.shape)
    if classes is None:
        chosen = source.labels(seeded_uniform(seeds))
    else:
        chosen = torch.tensor([classes[seed % len(classes)] for seed in seeds])
    return latents, source.one_hot(chosen)


@torch.no_grad()
def sample_in_batches(
    sampler: Sampler, latents: Tensor, labels: Tensor | None, batch: int = 256, pad: bool = False
) -> Tensor:
    """Runs the sampler over batches and joins the images.

    With ``pad`` every batch is full, the last one by repetition: convolutions of another batch size
    round otherwise, and a seed's image should not depend on how many others were asked for.
    """
    parts = []
    for start in range(0, len(latents), batch):
        chosen = torch.arange(start, min(start + batch, len(latents)))
        count = len(chosen)
        if pad:
            chosen = torch.cat([chosen, chosen[:1].expand(batch - count)])
        chunk = None if labels is None else labels[chosen]
        parts.append(sampler(latents[chosen], chunk)[:count])
    return torch.cat(parts)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0..255 by truncation of 127.5 x + 128, the published convention."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
