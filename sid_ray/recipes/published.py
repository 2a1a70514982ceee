"""What was published of a configuration, and what the published recipes have in common.

The tables are in edm.py, edm2.py, stable_diffusion.py, sdxl.py, flow.py and lora.py: rows hold what
differs between configurations, one function a family turns them into recipes. The numbers are
those of the authors' scripts and READMEs (mingyuanzhou/SiD, branches main and sida;
mingyuanzhou/SiD-LSG; NVlabs/edm; NVlabs/edm2). Errors of the scripts are not repeated;
docs/recipes.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.sections import EvaluationConfig, ObjectiveConfig, ResourcesConfig

Method = Literal["SiD", "SiDA", "SiD2A", "SiD-LSG", "SiD-DiT"]

MILLION = 1_000_000
NVIDIA = "https://nvlabs-fi-cdn.nvidia.com"
SID_HUB = "hf://UT-Austin-PML/SiD"
SIDA_HUB = "hf://UT-Austin-PML/SiDA"
LSG_HUB = "hf://UT-Austin-PML/SiD-LSG"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What its authors published of a configuration; None is what they did not publish."""

    method: Method
    fid: float | None = None
    """Of this configuration's generator, in one step; SiD-LSG: zero-shot on 30,000 of COCO-2014."""
    best_fid: float | None = None
    """The best of all SiDA and SiD2A generators of this teacher: the source gives one number and
    does not say whose it is.
    """
    clip_score: float | None = None
    teacher_fid: float | None = None
    teacher_evaluations: int | None = None
    """Network evaluations an image behind teacher_fid."""
    duration: int | None = None
    """Length of the run, in images, that the scripts ask for."""
    images_seen: int | None = None
    """Images behind the published generator, the run's best snapshot; SiD2A's come after SiD's."""
    checkpoint: str | None = None
    """The published generator, where its address is known for certain."""
    notes: str = ""


@dataclass(frozen=True)
class Recipe:
    """A complete config, what is known of it, one line that says what it is, and the entry script
    that `ray job submit` runs for it.
    """

    config: DistillConfig
    published: Published | None
    summary: str
    script: str = "sid_edm.py"


# On a machine whose GPU cannot be used a published run is refused: on CPUs it would take years. How
# many there are, and how they are used best, is known at the start alone.
ON_GPUS = ResourcesConfig(use_gpu=True)


def unscored(
    teacher_steps: int = EvaluationConfig.teacher_steps,
    teacher_guidance: float = EvaluationConfig.teacher_guidance,
) -> EvaluationConfig:
    """No scores while training: Inception features are not part of this project yet."""
    return EvaluationConfig(
        feature_space="",
        every=0,
        final_report=False,
        teacher_steps=teacher_steps,
        teacher_guidance=teacher_guidance,
    )


def sid_objective(alpha: float, augment: float) -> ObjectiveConfig:
    """SiD, as on all EDM and EDM2 teachers."""
    return ObjectiveConfig(
        name="sid", alpha=alpha, augment=augment, fake_scale=1.0, generator_scale=100.0
    )


def sida_objective(alpha: float, augment: float, discriminator_weight: float) -> ObjectiveConfig:
    """SiDA and SiD2A, as on all EDM and EDM2 teachers."""
    return ObjectiveConfig(
        name="sida",
        alpha=alpha,
        augment=augment,
        fake_scale=1.0,
        generator_scale=100.0,
        adversarial_weight=0.01,
        discriminator_weight=discriminator_weight,
        generator_start=100_000,
        adversarial_start=200_000,
    )


def lsg_objective(
    kappa: float, generator_scale: float, text_dropout: float, num_steps: int = 1
) -> ObjectiveConfig:
    """SiD with all four guidance scales alike: SiD-LSG and SiD-DiT."""
    return ObjectiveConfig(
        name="lsg",
        alpha=1.0,
        fake_scale=1.0,
        generator_scale=generator_scale,
        num_steps=num_steps,
        kappa1=kappa,
        kappa2=kappa,
        kappa3=kappa,
        kappa4=kappa,
        text_dropout=text_dropout,
    )


def remarks(note: str, duration: int, images_seen: int | None) -> str:
    """A row's note, and that its generator saw more images than its script would have run."""
    found = [note] if note else []
    if images_seen is not None and images_seen > duration:
        found.append("the published generator saw more images than the script's duration")
    return "; ".join(found)
