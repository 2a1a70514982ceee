"""The end of a run: teacher and generator side by side, in numbers and as a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sid_ray.assemble import schedule_of
from sid_ray.config import DistillConfig
from sid_ray.data.source import LabelSource, open_labels
from sid_ray.metrics.features import FeatureSpace, load_feature_space
from sid_ray.pictures import contact_sheet, save_picture
from sid_ray.sampling import Sampler, heun, labelled_seeds, one_step, sample_in_batches
from sid_ray.weights.folder import load_model

SHEET_ROWS, TIMED_BATCH = 8, 64


@dataclass(frozen=True)
class Row:
    """One way to make images: its Frechet distance and its cost."""

    name: str
    evaluations: int
    frechet_distance: float
    milliseconds: float  # per image, batches of 64, this machine


def milliseconds_per_image(sampler: Sampler, source: LabelSource) -> float:
    """Wall milliseconds an image of one batch, the second of two runs."""
    latents, labels = labelled_seeds(source, range(TIMED_BATCH))
    spent = 0.0
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            sampler(latents, labels)
            spent = time.perf_counter() - start
    return 1000 * spent / TIMED_BATCH


def samplers(
    config: DistillConfig, teacher: nn.Module, generator: nn.Module
) -> list[tuple[str, int, Sampler]]:
    """(name, network evaluations, sampler): the teacher twice, then the generator."""
    schedule = schedule_of(config)
    return [
        ("teacher, 35 evaluations", 35, lambda z, c: heun(teacher, schedule, z, c)),
        ("teacher, 1 evaluation", 1, lambda z, c: one_step(teacher, schedule, z, c)),
        ("generator, 1 evaluation", 1, lambda z, c: one_step(generator, schedule, z, c)),
    ]


def final_report(
    config: DistillConfig,
    teacher_folder: Path,
    generator_folder: Path,
    picture: Path,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measures and draws: the rows in the order of samplers(), the contact sheet at ``picture``.

    All three make the same seeds and labels. Evaluation streams only, so the numbers are those
    that the training's own evaluations gave.
    """
    teacher, generator = load_model(teacher_folder)[0], load_model(generator_folder)[0]
    source = open_labels(config.data)
    space: FeatureSpace = load_feature_space(config.evaluation.feature_space)
    latents, labels = labelled_seeds(source, range(config.evaluation.num_images))
    columns = source.label_dim
    sheet_seeds = range(SHEET_ROWS * columns)
    sheet_inputs = labelled_seeds(source, sheet_seeds, range(columns))
    rows, panels = [], []
    for name, evaluations, sampler in samplers(config, teacher, generator):
        progress(f"measuring: {name}")
        distance = space.frechet_distance(sample_in_batches(sampler, latents, labels))
        cost = milliseconds_per_image(sampler, source)
        rows.append(Row(name, evaluations, distance, cost))
        panels.append((name, sample_in_batches(sampler, *sheet_inputs)))
    save_picture(contact_sheet(panels, columns), picture)
    return rows
