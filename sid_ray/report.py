"""The end of a run: teacher and generator side by side, in numbers and as a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sid_ray.assemble import data_of, schedule_of
from sid_ray.config import DistillConfig
from sid_ray.data.source import Source
from sid_ray.denoisers.guidance import Guided
from sid_ray.metrics.features import load_feature_space
from sid_ray.pictures import contact_sheet, save_picture
from sid_ray.sampling import (
    Inputs,
    Sampler,
    ddim,
    generator_sampler,
    heun,
    inputs_of,
    sample_in_batches,
    seeded_inputs,
    seeded_uniform,
)
from sid_ray.schedules import EDMSchedule
from sid_ray.types import Denoiser
from sid_ray.weights.folder import load_model

SHEET_ROWS, TEXT_COLUMNS, TIMED_BATCH = 8, 10, 64


@dataclass(frozen=True)
class Row:
    """One way to make images: its Frechet distance and its cost."""

    name: str
    evaluations: int
    frechet_distance: float
    milliseconds: float  # per image, batches of 64, this machine


def milliseconds_per_image(sampler: Sampler, inputs: Inputs) -> float:
    """Wall milliseconds an image of one batch, the second of two runs."""
    spent, batch = 0.0, inputs.take(torch.arange(TIMED_BATCH))
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            sampler(batch)
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
    """The teacher as people use it: Heun, or DDIM with guidance."""
    schedule, chosen = schedule_of(config), config.evaluation
    steps, kappa = chosen.teacher_steps, chosen.teacher_guidance
    if isinstance(schedule, EDMSchedule):
        count = 2 * steps - 1
        return (
            f"teacher, {count} evaluations",
            count,
            lambda inputs: heun(teacher, schedule, inputs.latents, inputs.cond, steps),
        )
    guided: Denoiser = teacher
    if kappa != 1 and null_text is not None:
        guided = Guided(teacher, kappa, null_text)
    count = steps * (1 if guided is teacher else 2)
    return (
        f"teacher, {count} evaluations",
        count,
        lambda inputs: ddim(guided, schedule, inputs.latents, inputs.cond, steps),
    )


def sheet_samples(source: Source) -> tuple[int, Tensor]:
    """(columns, samples) of the contact sheet: a column a class, or as many texts."""
    if source.label_dim:
        classes = source.labels(torch.arange(len(source))).numpy()
        first = torch.from_numpy(np.unique(classes, return_index=True)[1])
        return len(first), first.repeat(SHEET_ROWS)
    return TEXT_COLUMNS, source.index(seeded_uniform(range(SHEET_ROWS * TEXT_COLUMNS)))


def final_report(
    config: DistillConfig,
    teacher_folder: Path,
    generator_folder: Path,
    picture: Path,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measures and draws: the rows in the order of samplers(), the contact sheet at ``picture``.

    All three make the same seeds and conditions. Evaluation streams only, so the numbers are those
    that the training's own evaluations gave.
    """
    teacher, description = load_model(teacher_folder)
    generator = load_model(generator_folder)[0]
    data = data_of(config, description, teacher_folder)
    space = load_feature_space(config.evaluation.feature_space)
    num_steps = config.objective.num_steps
    inputs = seeded_inputs(data.source, range(config.evaluation.num_images), num_steps)
    columns, chosen = sheet_samples(data.source)
    sheet = inputs_of(data.source, range(len(chosen)), chosen, num_steps)
    rows, panels = [], []
    for name, evaluations, sampler in samplers(config, teacher, generator, data.null_text):
        progress(f"measuring: {name}")
        distance = space.frechet_distance(sample_in_batches(sampler, inputs))
        rows.append(Row(name, evaluations, distance, milliseconds_per_image(sampler, inputs)))
        panels.append((name, sample_in_batches(sampler, sheet)))
    save_picture(contact_sheet(panels, columns), picture)
    return rows
