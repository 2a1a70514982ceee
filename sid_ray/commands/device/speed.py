"""Images a second: of training steps of EDM2's S and XXL, and of a generator with its decoder.

Weights are random, which changes no time. Steps are measured as `sid-ray bench` does, at the
largest micro-batch that fits by the plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from sid_ray.commands.benching.made_up import random_teacher
from sid_ray.commands.benching.rank import ceiling
from sid_ray.commands.benching.search import NotMeasuredError
from sid_ray.commands.benching.turns import FULL, Turns
from sid_ray.commands.device.random_nets import Sized, without_dropout
from sid_ray.commands.device.rows import (
    FAILED,
    MEASURED,
    DeviceRow,
    Rig,
    cut_short,
    guarded,
    not_looked_at,
)
from sid_ray.commands.device.timing import seconds_of
from sid_ray.commands.device.vectors import read_cases
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.convolution import freeze
from sid_ray.denoisers.precondition import set_memory_format, set_precision
from sid_ray.denoisers.registry import family_of
from sid_ray.evaluation.samplers import Inputs, generator_sampler
from sid_ray.planning.fit import micro_batch_of
from sid_ray.planning.flops import iteration_flops
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.training.assemble import schedule_of
from sid_ray.types import Condition
from sid_ray.weights.description import ModelDescription

SMALLEST, LARGEST = Sized("img512-s-sid"), Sized("img512-xxl-sid")
PART_S = {SMALLEST: 45.0, LARGEST: 70.0}  # that a step takes at least, its plan's tracing included
END_S = 5.0  # to end what was measured
TERA = 1e12
DECODED = 64  # images at once
# The auto-encoder's published shape.
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SMALL_VAE = VAE | {
    "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4,
}  # fmt: skip


def verify_speed(rig: Rig) -> Iterator[DeviceRow]:
    """Rows of steps on one GPU and on all, then of a generator with its decoder."""
    yield from guarded("one-step generator", lambda: generated(rig))
    yield from step_rows(SMALLEST, 1, rig)
    if rig.world > 1:
        yield from step_rows(SMALLEST, rig.world, rig)
    if not rig.small:
        yield from step_rows(LARGEST, rig.world, rig)


def step_rows(sized: Sized, workers: int, rig: Rig) -> Iterator[DeviceRow]:
    """A recipe's step on so many GPUs, or why it was not measured."""
    name = f"{sized.recipe}, a step on {workers} GPU{'s'[: workers != 1]}"
    if rig.small:
        name = f"{sized.small}, a step in {workers} process{'es' * (workers != 1)} of a CPU"
    cut = list(cut_short(name, rig, PART_S[sized]))
    yield from cut or guarded(name, lambda: step_measured(name, sized, workers, rig))


def step_measured(name: str, sized: Sized, workers: int, rig: Rig) -> Iterator[DeviceRow]:
    """At what a run chooses by itself; where memory does not do for it, at half a micro-batch."""
    config = sized.chosen(rig, workers)
    description = teacher_of(config)
    while True:
        micro_batch = micro_batch_of(config)
        left = rig.left_s - END_S
        ends = time.monotonic() + left
        with Turns(description, workers, not rig.small, ends) as turns:
            try:
                found = turns.measure(config, name, 2)  # a third of what is left, at most
                break
            except NotMeasuredError as error:
                full = any(word in str(error) for word in FULL) and micro_batch > 1
                more = ": the plan said that it fits; half as many are tried" * full
                at = f"{name}, {micro_batch} images a pass"
                if error.late:  # want of time is no fault of the machine
                    yield not_looked_at(at, f"no iteration ended within the {left:.0f} s left")
                    return
                yield DeviceRow(at, f"{error}{more}", verdict=FAILED)
                if not full:
                    return
        config = replace(config, resources__micro_batch=half_of(config, micro_batch))
    top = max(turns.ceiling.values(), default=0.0)
    images_s = config.training.batch_size / found.seconds
    rate = iteration_flops(config, description) * images_s
    share = f", {rate / top:.0%} of the {top / TERA:.4g} of a bare product" if top else ""
    stage = f", ZeRO {config.chosen.zero_stage}" * (workers > 1)
    yield DeviceRow(
        name,
        f"{images_s:.4g} images/s, {micro_batch} a pass, {config.training.precision}{stage}, "
        f"{rate / TERA:.4g} TFLOP/s{share}; {found.peak_gib:.1f} GiB",
        "",
        MEASURED,
        {
            "images_per_s": images_s,
            "micro_batch": micro_batch,
            "computes_in": config.training.precision,
            "zero_stage": config.chosen.zero_stage,
            "tflop_per_s": rate / TERA,
            "ceiling_tflop_per_s": top / TERA,
            "peak_gib": found.peak_gib,
            "gpus": workers,
        },
    )


def half_of(config: DistillConfig, micro_batch: int) -> int:
    """About half as many, that a group can be packed or split into."""
    group = config.training.group_size
    half = max(micro_batch // 2, 1)
    if half >= group:
        return half // group * group
    return max(part for part in range(1, half + 1) if group % part == 0)


def generated(rig: Rig) -> Iterator[DeviceRow]:
    """A generator of one evaluation, and its latents decoded."""
    device = rig.first
    config = SMALLEST.on(rig)
    description, images = without_dropout(teacher_of(config)), DECODED
    if rig.small:
        description, images = small_latents(), 4
    dtype = torch.float32 if rig.small else torch.bfloat16
    sampler, inputs = random_sampler(config, description, images, device, dtype)
    codec = (
        family_of(description.family)
        .latent_convention()
        .codec(decoder_of(rig.small).to(device, dtype), batch=min(images, 8))
    )

    @torch.no_grad()
    def pictures() -> Tensor:
        return codec.decode_uint8(sampler(inputs))

    alone = seconds_of(torch.no_grad()(lambda: sampler(inputs)), device)
    whole = seconds_of(pictures, device)
    top = max(ceiling(device, dtype).values())
    yield DeviceRow(
        f"one-step generator, {images} images at once, {str(dtype).removeprefix('torch.')}",
        f"{images / alone:.4g} images/s, {images / whole:.4g} with decoding; "
        f"{top / TERA:.4g} TFLOP/s of a bare product",
        "",
        MEASURED,
        {
            "images_per_s": images / alone,
            "images_per_s_decoded": images / whole,
            "ceiling_tflop_per_s": top / TERA,
        },
    )


def random_sampler(
    config: DistillConfig,
    description: ModelDescription,
    images: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Any, Inputs]:
    """A one-step generator with random weights, and what it makes images of."""
    net: nn.Module = random_teacher(description).to(device)
    set_precision(net, str(dtype).removeprefix("torch."))
    set_memory_format(net, config.resources.memory_format)
    freeze(net)
    family, network = family_of(description.family), description.network
    labels = family.label_dim(network)
    one_hot = torch.eye(labels)[torch.arange(images) % labels].to(device) if labels else None
    latents = torch.randn(images, *family.shape(network), device=device)
    return generator_sampler(net, schedule_of(config), 1), Inputs(latents, Condition(one_hot))


def decoder_of(small: bool) -> nn.Module:
    """An auto-encoder of the shape that the latents were made with, with random weights."""
    from sid_ray.denoisers.autoencoder import random_vae

    vae: Any = random_vae(SMALL_VAE if small else VAE)
    vae.to(memory_format=torch.channels_last)
    return cast(nn.Module, vae)


def small_latents() -> ModelDescription:
    """The first tiny network that makes latents."""
    for case in read_cases()[0]:
        family = family_of(case.family)
        if family.makes_latents(case.network) and not family.reads_text:
            return ModelDescription(case.family, dict(case.network))
    raise ValueError("no vector that ships is of a network of latents")
