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

# Tried on two cores, 30,000 images (docs/results.md has the table): batches of 32 to 128, learning
# rates of 3e-5 to 1e-3, alpha 1.0 and 1.2, averages of 1,000 to 10,000 images. The published
# settings do well; what counts here is a longer average with a faster ramp than 0.05, because Adam
# without first moment leaves the generator itself noisy (distances of 6 to 9, its average 3 to 4).
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
