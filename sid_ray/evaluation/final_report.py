"""The end of a run: teacher and generator side by side, in numbers and as a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.precondition import precision_beside
from sid_ray.device.numerics import set_numerics
from sid_ray.evaluation.judge import Judge, codec_of, seed_blocks
from sid_ray.evaluation.pictures import contact_sheet, save_picture, sheet_samples
from sid_ray.evaluation.samplers import (
    Inputs,
    Sampler,
    generator_sampler,
    seeded_inputs,
)
from sid_ray.evaluation.scored_network import scored_on
from sid_ray.training.assemble import (
    components_of,
    data_of,
    schedule_of,
    solver_of,
    teacher_at_resolution,
)
from sid_ray.weights.folder import load_model

TIMED_BATCH = 64


@dataclass(frozen=True)
class SamplerRow:
    """One way to make images: its scores and its cost."""

    name: str
    evaluations: int
    scores: Mapping[str, float]
    milliseconds: float  # per image, batches of 64, this machine


@dataclass(frozen=True)
class FinalReport:
    """What was measured, and what the numbers mean: ``primary`` is the score that counts first."""

    rows: Sequence[SamplerRow] = ()
    primary: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)


def milliseconds_per_image(sampler: Sampler, inputs: Inputs) -> float:
    """Wall milliseconds an image of one batch, the second of two runs."""
    spent = 0.0
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            sampler(inputs).sum().item()  # waits for a GPU
            spent = time.perf_counter() - start
    return 1000 * spent / TIMED_BATCH


def samplers(
    config: DistillConfig, teacher: nn.Module, generator: nn.Module, null_text: Tensor | None
) -> list[tuple[str, int, Sampler]]:
    """(name, network evaluations, sampler): the teacher in many steps, as the generator, and it."""
    schedule, num_steps = schedule_of(config), config.objective.num_steps
    few = f"{num_steps} evaluation{'s' if num_steps > 1 else ''}"
    return [
        teacher_sampler(config, teacher, null_text),
        (f"teacher, {few}", num_steps, generator_sampler(teacher, schedule, num_steps)),
        (f"generator, {few}", num_steps, generator_sampler(generator, schedule, num_steps)),
    ]


def teacher_sampler(
    config: DistillConfig, teacher: nn.Module, null_text: Tensor | None
) -> tuple[str, int, Sampler]:
    """The teacher as people use it: with its family's own sampler."""
    own = solver_of(config)
    return (
        f"teacher, {own.evaluations} evaluations",
        own.evaluations,
        lambda inputs: own.run(teacher, inputs.latents, inputs.cond, null_text),
    )


def final_report(
    config: DistillConfig,
    teacher_folder: Path,
    generator_folder: Path,
    picture: Path,
    progress: Callable[[str], None],
    device: torch.device,
) -> FinalReport:
    """Measures and draws: the rows in the order of samplers(), the contact sheet at ``picture``.

    All three make the same seeds and conditions. Evaluation streams only, so the numbers are those
    that the training's own evaluations gave.
    """
    set_numerics(config.resources.deterministic)
    teacher, description = teacher_at_resolution(config, load_model(teacher_folder), teacher_folder)
    generator = load_model(generator_folder, base=teacher_folder)[0]
    components = components_of(config, description, teacher_folder)
    data = data_of(config, description, components, device)
    precision = precision_beside(config.training.precision, device)
    vae = config.evaluation.vae or components.vae
    codec = codec_of(description, vae, device, precision)
    judge = Judge(
        config.evaluation, data.source, codec, config.objective.num_steps, device, progress
    )
    columns, chosen = sheet_samples(data.source, judge.resolution)
    rows, panels = [], []
    networks = (
        scored_on(teacher, description, config, device),
        scored_on(generator, description, config, device),
    )
    for name, evaluations, sampler in samplers(config, *networks, data.null_text):
        progress(f"measuring: {name}")
        looks = [judge.look(sampler, seeds) for seeds in seed_blocks(judge.seeds)]
        inputs = seeded_inputs(data.source, range(TIMED_BATCH), judge.num_steps)
        spent = milliseconds_per_image(sampler, inputs.to(device))
        rows.append(SamplerRow(name, evaluations, judge.scores(looks), spent))
        panels.append((name, judge.images(sampler, range(len(chosen)), chosen)))
    save_picture(contact_sheet(panels, columns), picture)
    return FinalReport(rows, judge.primary, judge.protocol(judge.seeds))
