"""Every recipe by name, the guidance strategies, and what a recipe leaves to its user."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.config.sections import (
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    OutputConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainingConfig,
)
from sid_ray.errors import UserError, nearest
from sid_ray.recipes.edm import EDM
from sid_ray.recipes.edm2 import EDM2
from sid_ray.recipes.flow import FLOW
from sid_ray.recipes.lora import LORA
from sid_ray.recipes.published import Recipe
from sid_ray.recipes.sdxl import UNPUBLISHED
from sid_ray.recipes.stable_diffusion import STABLE_DIFFUSION


class GuidanceStrategy(NamedTuple):
    """kappa1 to kappa4, None for the scale given, and which scales make sense."""

    kappas: tuple[float | None, float | None, float | None, float | None]
    range: str = ""
    holds: Callable[[float], bool] = math.isfinite


# long, short and long-short: SiD-LSG. zero and anti: few-step SiD's Zero-CFG and Anti-CFG.
GUIDANCE = {
    "long": GuidanceStrategy((1.0, 1.0, 1.0, None), "above 1", lambda kappa: kappa > 1),
    "short": GuidanceStrategy((None, 1.0, 1.0, 1.0), "below 1", lambda kappa: kappa < 1),
    "long-short": GuidanceStrategy((None, None, None, None), "above 1", lambda kappa: kappa > 1),
    "zero": GuidanceStrategy((0.0, 0.0, 0.0, 1.0)),
    "anti": GuidanceStrategy((None, None, None, 1.0), "below 0", lambda kappa: kappa < 0),
}


def guidance_strategy(name: str, kappa: float | None = None) -> dict[str, float]:
    """The strategy's kappa1 to kappa4. Raises UserError for a wrong name or scale."""
    if name not in GUIDANCE:
        raise UserError(
            f"no guidance strategy {name!r}; there are: {', '.join(GUIDANCE)}."
            f"{nearest(name, GUIDANCE)}"
        )
    strategy = GUIDANCE[name]
    if not strategy.range:
        if kappa is not None:
            raise UserError(f"guidance {name} takes no scale, found {kappa:g}")
        scale = 0.0  # stands nowhere
    elif kappa is None or not math.isfinite(kappa) or not strategy.holds(kappa):
        found = "none" if kappa is None else f"{kappa:g}"
        raise UserError(f"guidance {name} needs a scale {strategy.range}, found {found}")
    else:
        scale = kappa
    values = (scale if value is None else value for value in strategy.kappas)
    return {f"kappa{number}": value for number, value in enumerate(values, start=1)}


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
    evaluation=EvaluationConfig(feature_space="digits-cnn", every=2_500, num_images=2048),
    output=OutputConfig(checkpoint_every=2_500, report_every=640),
)

# Everything but the objective is digits-sid's, so that the three can be compared. The warm-ups are
# the published ones (100,000 and 200,000 images) in proportion to a run a thousandth as long.
DIGITS_SIDA = replace(
    DIGITS_SID,
    recipe="digits-sida",
    objective__name="sida",
    objective__adversarial_weight=0.01,
    objective__generator_start=1_000,
    objective__adversarial_start=2_000,
)
DIGITS_VSD = replace(DIGITS_SID, recipe="digits-vsd", objective__name="vsd")

# SiD-LSG in small: all four guidance scales alike, as in the published runs, and SiD-LSG's own
# factor of the generator's loss. DDIM with the same guidance stands beside it in the report.
EMOJI_LSG = DistillConfig(
    recipe="emoji-lsg",
    teacher=TeacherConfig(source="builtin:emoji-teacher"),
    data=DataConfig(name="emoji"),
    objective=ObjectiveConfig(
        name="lsg",
        alpha=1.0,
        generator_scale=1.0,
        kappa1=1.5,
        kappa2=1.5,
        kappa3=1.5,
        kappa4=1.5,
    ),
    schedule=ScheduleConfig(kind="vp"),
    training=replace(DIGITS_SID, training__images=20_000).training,
    evaluation=EvaluationConfig(
        feature_space="emoji-cnn",
        every=2_500,
        num_images=2048,
        teacher_steps=25,
        teacher_guidance=1.5,
    ),
    output=OutputConfig(checkpoint_every=2_500, report_every=640),
)

# SiD-DiT in small, on a transformer of flow matching. As published: four evaluations, fresh noise
# between them, all four guidance scales alike, no text left out. An average stands in for the
# published runs' millions of images, as in all recipes here. An iteration trains one evaluation of
# the four, so each has a quarter of the updates: hence the small batches.
EMOJI_FLOW = replace(
    EMOJI_LSG,
    recipe="emoji-flow",
    teacher__source="builtin:emoji-flow",
    objective__generator_scale=100.0,
    objective__num_steps=4,
    objective__text_dropout=0.0,
    objective__kappa1=2.0,
    objective__kappa2=2.0,
    objective__kappa3=2.0,
    objective__kappa4=2.0,
    schedule=ScheduleConfig(kind="flow", teacher_shift=1.5),
    training__images=10_000,
    training__batch_size=32,
    training__ema_half_life=1_000,
    evaluation__teacher_steps=28,
    evaluation__teacher_guidance=2.0,
)
EMOJI_FLOW_1 = replace(
    EMOJI_FLOW,
    recipe="emoji-flow-1",
    objective__num_steps=1,
)
EMOJI_FLOW_SIDA = replace(
    EMOJI_FLOW,
    recipe="emoji-flow-sida",
    objective__name="sida",
    objective__adversarial_weight=1.0,
    objective__generator_start=200,
    objective__adversarial_start=400,
)

# Recipes whose teacher and data come with the package: add to them here.
SHIPPED = (
    Recipe(DIGITS_SID, None, "SiD on the digits that ship, minutes on two CPU cores"),
    Recipe(DIGITS_SIDA, None, "SiDA on the digits that ship, with their 1,797 real images"),
    Recipe(EMOJI_LSG, None, "text to image: SiD-LSG on 16x16 emoji with captions", "sid_lsg_sd.py"),
    Recipe(EMOJI_FLOW, None, "flow matching: SiD-DiT in 4 steps on the same emoji", "sid_flow.py"),
    Recipe(EMOJI_FLOW_1, None, "flow matching: the same in one step", "sid_flow.py"),
    Recipe(EMOJI_FLOW_SIDA, None, "flow matching: 4 steps, with real emoji too", "sid_flow.py"),
    Recipe(DIGITS_VSD, None, "the baseline: variational score distillation on the same digits"),
)

FAMILIES: dict[str, tuple[Recipe, ...]] = {
    "Teachers that ship with sid_ray": SHIPPED,
    "EDM (NVlabs/edm)": EDM,
    "EDM2 (NVlabs/edm2)": EDM2,
    "Stable Diffusion": (*STABLE_DIFFUSION, *UNPUBLISHED),
    "Flow matching (SANA, SD3, FLUX)": FLOW,
    "Adapters on one GPU (LoRA)": LORA,
}
RECIPES: dict[str, Recipe] = {
    entry.config.recipe: entry for family in FAMILIES.values() for entry in family
}


def recipe_entry(name: str) -> Recipe:
    """A recipe by name. Raises UserError with the nearest names for an unknown one."""
    if name not in RECIPES:
        hint = nearest(name, RECIPES) or " sid-ray recipes lists all."
        raise UserError(f"no recipe {name!r}.{hint}")
    return RECIPES[name]


def recipe(name: str) -> DistillConfig:
    """A recipe's config by name. Raises UserError with the nearest names for an unknown one."""
    return recipe_entry(name).config


def check_supplied(config: DistillConfig) -> DistillConfig:
    """Itself, when the user gave what no recipe can hold. Raises UserError otherwise."""
    if config.data.name == "prompts" and not config.data.source:
        raise UserError("data.source is empty; give --data.source a text file, a prompt a line")
    return config
