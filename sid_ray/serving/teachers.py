"""A generator's teacher, as its run's final report and ``sid-ray evaluate`` use it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from sid_ray.checkpoint.model_card import plain_label
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.sections import EvaluationConfig, TeacherConfig
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.evaluation.final_report import teacher_sampler
from sid_ray.evaluation.samplers import Sampler
from sid_ray.evaluation.scored_network import scored_on
from sid_ray.evaluation.subject import find_subject, schedule_config
from sid_ray.serving.contract import Teacher
from sid_ray.training.assemble import solver_of, teacher_at_resolution
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.folder import load_model
from sid_ray.weights.teacher import teacher_of_notes


class TeacherFound(NamedTuple):
    """Its config: of its generator's run, or what it says of itself."""

    config: DistillConfig
    description: ModelDescription
    """Of the generator."""

    @classmethod
    def of(cls, source: str, description: ModelDescription) -> TeacherFound:
        """Nothing of it is loaded. Raises UserError for a generator that names none."""
        if not description.notes.get("teacher"):
            raise UserError(f"{plain_label(source)} does not say which teacher it was made of")
        config = find_subject(source).config
        return cls(config or config_of_teacher(description), description)

    def told(self) -> Teacher:
        """For a client. Raises UserError for a teacher that has no sampler."""
        count = solver_of(self.config).evaluations
        return Teacher(evaluations=count, label=f"{count} evaluation{'s' if count > 1 else ''}")


def config_of_teacher(description: ModelDescription) -> DistillConfig:
    """A config for the teacher of a generator of no run: its family's own sampler."""
    source = str(description.notes["teacher"])
    subject = find_subject(source)
    family = family_of(subject.description.family)
    evaluation = dataclasses.replace(
        EvaluationConfig(),
        teacher_steps=family.teacher_steps,
        teacher_guidance=family.teacher_guidance(subject.description.network),
    )
    return DistillConfig(
        teacher=TeacherConfig(source=source),
        schedule=schedule_config(subject),
        evaluation=evaluation,
    )


def open_teacher(found: TeacherFound, generator: OneStepNetwork) -> Sampler:
    """Its own sampler, in the default number of evaluations, on the generator's device.

    Text encoder and VAE are the generator's. Raises UserError where its weights are not there, or
    do not make what the generator makes.
    """
    folder = teacher_of_notes(found.description)
    network, description = teacher_at_resolution(found.config, load_model(folder), folder)
    if generator.family.shape(description.network) != generator.shape:
        raise UserError(
            f"the teacher {plain_label(str(found.description.notes['teacher']))} makes images of "
            "another size than its generator"
        )
    network = scored_on(network, description, found.config, generator.device)
    null: torch.Tensor | None = None
    if generator.family.reads_text:
        null = generator.text.null()
    return teacher_sampler(found.config, network, null)[2]
