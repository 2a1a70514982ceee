"""The arguments of ``sid-ray distill``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sid_ray.commands.arguments import OfRecipe
from sid_ray.commands.checks import DISTILL, Patient, enforce
from sid_ray.config.distill_config import DistillConfig


@dataclass(frozen=True)
class DistillOptions(OfRecipe):
    """Distils a recipe's teacher into a generator; the same command resumes. digits-sid is the
    recipe to begin with.
    """


def distill_command(config: DistillConfig, options: DistillOptions, flags: Sequence[str]) -> int:
    """What can be told in a moment is, before anything heavy is loaded."""
    enforce(Patient(config, config.output.folder), DISTILL, quick=True)
    from sid_ray.commands.distill import run_distillation

    return run_distillation(config)
