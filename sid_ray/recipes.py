"""Every recipe as data: a name and a complete DistillConfig."""

from __future__ import annotations

from sid_ray.config import (
    DataConfig,
    DistillConfig,
    EvaluationConfig,
    ObjectiveConfig,
    OutputConfig,
    ResourcesConfig,
    TeacherConfig,
    TrainingConfig,
)
from sid_ray.errors import UserError, nearest

# Tried on two cores (docs/results.md has the table): alpha 1.0 and 1.2, averages with half-lives of
# 1,000 to 10,000 images and three seeds all end between 3 and 4.5 after 30,000 images; learning
# rates of 3e-4 and above end higher. An average is needed: without one, Adam without first moment
# leaves the generator at distances of 6 to 9.
DIGITS_SID = DistillConfig(
    recipe="digits-sid",
    teacher=TeacherConfig(source="builtin:digits-teacher"),
    data=DataConfig(name="digits"),
    objective=ObjectiveConfig(name="sid", alpha=1.0),
    training=TrainingConfig(
        images=30_000,
        batch_size=64,
        group_size=16,
        fake_score_lr=1e-4,
        generator_lr=1e-4,
        ema_half_life=5_000,
        ema_rampup=0.2,
    ),
    resources=ResourcesConfig(num_workers=2, zero_stage=2, micro_batch=32),
    evaluation=EvaluationConfig(feature_space="digits-cnn", every=2_500, num_images=2048),
    output=OutputConfig(checkpoint_every=2_500, report_every=640),
)

RECIPES: dict[str, DistillConfig] = {recipe.recipe: recipe for recipe in (DIGITS_SID,)}


def recipe(name: str) -> DistillConfig:
    """A recipe by name. Raises UserError with the nearest names for an unknown one."""
    if name not in RECIPES:
        hint = nearest(name, RECIPES) or f" Known: {', '.join(RECIPES)}."
        raise UserError(f"no recipe {name!r}.{hint}")
    return RECIPES[name]
