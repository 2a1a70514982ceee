"""SiD-DiT on flow-matching transformers (apple-aiml-research/ml-sid-dit): SANA, SD3, SD3.5, FLUX.

Prompts are the user's; the published runs had those of midjourney-v6-llava. Of scores, lengths and
sizes the repository names what stands here; where it names none, the row says "not published".
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
from sid_ray.recipes.published import MILLION, ON_GPUS, Published, Recipe, lsg_objective, unscored

KAPPA = 4.5  # all four scales
STEPS = 4
SETTINGS = "the repository's README gives this teacher the settings of all others"
NO_LENGTH = "length of the run and batch size not published: those of SANA 0.6B"


class FlowRun(NamedTuple):
    """One distillation. ``lr`` of both networks; ``teacher_shift`` of the teacher's own sampler,
    in ``teacher_steps``, guided by ``teacher_guidance``.
    """

    name: str
    title: str
    source: str
    lr: float
    kind: str = "flow"
    images: int = 2 * MILLION
    group_size: int = 16
    teacher_shift: float = 3.0
    teacher_steps: int = 28
    teacher_guidance: float = 4.5
    note: str = f"{SETTINGS}; {NO_LENGTH}"


RUNS = (
    FlowRun("sana-600m-512", "SANA 0.6B at 512 pixels",
        "hf://Efficient-Large-Model/Sana_600M_512px_diffusers", 5e-6, teacher_steps=20,
        note="the shipped script stops after 1,000,000 images and has 8 images a pass"),
    FlowRun("sana-1600m-512", "SANA 1.6B at 512 pixels",
        "hf://Efficient-Large-Model/Sana_1600M_512px_diffusers", 1e-6, teacher_steps=20),
    FlowRun("sana-1600m-1024", "SANA 1.6B at 1024 pixels",
        "hf://Efficient-Large-Model/Sana_1600M_1024px_diffusers", 1e-6, teacher_steps=20),
    FlowRun("sd3-medium", "Stable Diffusion 3 Medium",
        "hf://stabilityai/stable-diffusion-3-medium-diffusers", 1e-6, teacher_guidance=7.0),
    FlowRun("sd35-medium", "Stable Diffusion 3.5 Medium",
        "hf://stabilityai/stable-diffusion-3.5-medium", 1e-6),
    FlowRun("sd35-large", "Stable Diffusion 3.5 Large",
        "hf://stabilityai/stable-diffusion-3.5-large", 1e-6),
    # The shift of 512 pixels: exp of what its scheduler puts on 1,024 tokens, 0.63.
    FlowRun("flux-dev-512", "FLUX.1-dev at 512 pixels",
        "hf://black-forest-labs/FLUX.1-dev", 1e-6, kind="guided-flow", teacher_shift=1.88,
        teacher_guidance=3.5,
        note=f"{SETTINGS} but says that 1024 pixels do not fit 8 x 80 GB; {NO_LENGTH}"),
)  # fmt: skip


def flow_recipe(run: FlowRun) -> Recipe:
    name = f"{run.name}-dit"
    config = DistillConfig(
        recipe=name,
        teacher=TeacherConfig(source=run.source),
        objective=lsg_objective(KAPPA, 100.0, text_dropout=0.0, num_steps=STEPS),
        schedule=ScheduleConfig(kind=run.kind, teacher_shift=run.teacher_shift),
        data=DataConfig(name="prompts"),
        training=TrainingConfig(
            images=run.images,
            batch_size=256,
            group_size=run.group_size,
            fake_score_lr=run.lr,
            generator_lr=run.lr,
            epsilon=1e-8,
            ema_half_life=0,
            precision="bfloat16",
        ),
        resources=ON_GPUS,
        evaluation=unscored(run.teacher_steps, run.teacher_guidance),
        output=OutputConfig(checkpoint_every=20_000, report_every=2_048),
    )
    published = Published(method="SiD-DiT", duration=run.images, notes=run.note)
    summary = f"SiD-DiT on {run.title}: {STEPS} steps, guidance {KAPPA:g}"
    return Recipe(config, published, summary, "sid_flow.py")


FLOW = tuple(flow_recipe(run) for run in RUNS)
