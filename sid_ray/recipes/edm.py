"""SiD, SiDA and SiD2A on NVIDIA's EDM teachers (mingyuanzhou/SiD: run_sid.sh, run_sida.sh,
run_sid_sida.sh). Durations are those the scripts name for the reported results.
"""

from __future__ import annotations

from typing import NamedTuple

from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.sections import (
    DATA_SETS,
    DataConfig,
    OutputConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainingConfig,
)
from sid_ray.recipes.published import (
    MILLION,
    NVIDIA,
    ON_GPUS,
    SID_HUB,
    SIDA_HUB,
    Method,
    Published,
    Recipe,
    remarks,
    sid_objective,
    sida_objective,
    unscored,
)


class EDMTeacher(NamedTuple):
    """A teacher, and what all runs on it share."""

    title: str
    data: DATA_SETS
    file: str
    sid_folder: str  # of SiD's published generators
    sida_prefix: str  # of SiDA's and SiD2A's
    batch_size: int
    sid_group: int
    sida_group: int
    learning_rate: float
    float16: bool
    dropout: float
    augment: float
    ema_half_life: int
    sid_fid: float
    best_fid: float  # of SiDA and SiD2A together
    teacher_fid: float
    teacher_evaluations: int
    teacher_steps: int
    checkpoint_every: int = MILLION


TEACHERS = {
    "cifar10-uncond": EDMTeacher(
        title="CIFAR-10, unconditional", data="cifar10", file="edm-cifar10-32x32-uncond-vp.pkl",
        sid_folder="cifar10-uncond", sida_prefix="cifar10_uncond",
        batch_size=256, sid_group=16, sida_group=32, learning_rate=1e-5, float16=False,
        dropout=0.13, augment=0.12, ema_half_life=500_000, sid_fid=1.923, best_fid=1.499,
        teacher_fid=1.97, teacher_evaluations=35, teacher_steps=18,
    ),
    "cifar10-cond": EDMTeacher(
        title="CIFAR-10, conditional", data="cifar10", file="edm-cifar10-32x32-cond-vp.pkl",
        sid_folder="cifar10-cond", sida_prefix="cifar10_cond",
        batch_size=256, sid_group=16, sida_group=32, learning_rate=1e-5, float16=False,
        dropout=0.13, augment=0.12, ema_half_life=500_000, sid_fid=1.710, best_fid=1.396,
        teacher_fid=1.79, teacher_evaluations=35, teacher_steps=18,
    ),
    # 511 evaluations are those of a stochastic sampler; 40 steps are 79 of Heun's.
    "img64": EDMTeacher(
        title="ImageNet-64", data="imagenet-64", file="edm-imagenet-64x64-cond-adm.pkl",
        sid_folder="imagenet64", sida_prefix="imgnet64",
        batch_size=8192, sid_group=16, sida_group=32, learning_rate=4e-6, float16=True,
        dropout=0.10, augment=0.0, ema_half_life=2_000_000, sid_fid=1.524, best_fid=1.110,
        teacher_fid=1.36, teacher_evaluations=511, teacher_steps=40, checkpoint_every=500_000,
    ),
    "ffhq64": EDMTeacher(
        title="FFHQ-64", data="ffhq-64", file="edm-ffhq-64x64-uncond-vp.pkl",
        sid_folder="ffhq64", sida_prefix="ffhq64",
        batch_size=512, sid_group=32, sida_group=64, learning_rate=1e-5, float16=True,
        dropout=0.05, augment=0.15, ema_half_life=500_000, sid_fid=1.550, best_fid=1.040,
        teacher_fid=2.39, teacher_evaluations=79, teacher_steps=40,
    ),
    # The teacher itself was trained with dropout 0.25; it is distilled with 0.05.
    "afhqv2": EDMTeacher(
        title="AFHQv2-64", data="afhqv2-64", file="edm-afhqv2-64x64-uncond-vp.pkl",
        sid_folder="afhq64", sida_prefix="afhq64-v2",
        batch_size=512, sid_group=32, sida_group=64, learning_rate=5e-6, float16=True,
        dropout=0.05, augment=0.15, ema_half_life=500_000, sid_fid=1.628, best_fid=1.276,
        teacher_fid=1.96, teacher_evaluations=79, teacher_steps=40,
    ),
}  # fmt: skip


class EDMRun(NamedTuple):
    """One distillation."""

    teacher: str
    variant: str  # the recipe's name behind the teacher's
    method: Method
    alpha: float
    millions: int  # images
    kimg: int | None  # thousands of images that the published generator saw
    address_known: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.variant}"


IMG64 = "teacher: FID 2.44 at 79 evaluations without stochastic sampling"
RUNS = (
    # SiD at alpha 1.0 beside 1.2: images of the generators known second-hand, no addresses.
    EDMRun("cifar10-uncond", "sid", "SiD", 1.2, 500, 403_968),
    EDMRun("cifar10-uncond", "sid-alpha1", "SiD", 1.0, 500, 416_768, address_known=False),
    EDMRun("cifar10-uncond", "sida", "SiDA", 1.0, 300, 217_920),
    EDMRun("cifar10-uncond", "sid2a", "SiD2A", 1.0, 100, 28_160),
    EDMRun("cifar10-uncond", "sid2a-alpha1.2", "SiD2A", 1.2, 100, 22_528),
    EDMRun("cifar10-cond", "sid", "SiD", 1.2, 800, 713_312),
    EDMRun("cifar10-cond", "sid-alpha1", "SiD", 1.0, 500, 415_744, address_known=False),
    EDMRun("cifar10-cond", "sida", "SiDA", 1.0, 300, 293_184),
    EDMRun("cifar10-cond", "sid2a", "SiD2A", 1.0, 100, 38_912),
    EDMRun("cifar10-cond", "sid2a-alpha1.2", "SiD2A", 1.2, 100, 53_760),
    EDMRun("img64", "sid", "SiD", 1.2, 1000, 939_176, note=IMG64),
    EDMRun("img64", "sid-alpha1", "SiD", 1.0, 500, 492_836, address_known=False, note=IMG64),
    # Third parties cite an FID of 1.35 for SiDA alone; the authors' README has only the best.
    EDMRun("img64", "sida", "SiDA", 1.0, 300, 249_167, note=IMG64),
    EDMRun("img64", "sid2a", "SiD2A", 1.0, 100, 29_499, note=IMG64),
    EDMRun("img64", "sid2a-alpha1.2", "SiD2A", 1.2, 100, 21_471, note=IMG64),
    EDMRun("ffhq64", "sid", "SiD", 1.2, 500, 498_176),
    EDMRun("ffhq64", "sid-alpha1", "SiD", 1.0, 500, None),
    EDMRun("ffhq64", "sida", "SiDA", 1.0, 200, 185_856),
    EDMRun("ffhq64", "sid2a", "SiD2A", 1.0, 100, 168_960),
    EDMRun("ffhq64", "sid2a-alpha1.2", "SiD2A", 1.2, 100, 80_896),
    # The one data set whose SiD is alpha 1.0.
    EDMRun(
        "afhqv2", "sid", "SiD", 1.0, 500, 371_712,
        note="the README calls this generator alpha 1.2, its address says alpha 1",
    ),
    EDMRun("afhqv2", "sida", "SiDA", 1.0, 200, 127_488),
    EDMRun("afhqv2", "sid2a", "SiD2A", 1.0, 100, 175_104),
    EDMRun(
        "afhqv2", "sid2a-alpha1.2", "SiD2A", 1.2, 100, None,
        note="images seen: 175,104,000 in the README (alpha 1.0's number), 55,808,000 on the hub",
    ),
)  # fmt: skip


def edm_generator(run: EDMRun) -> str | None:
    """Address of the published generator."""
    teacher = TEACHERS[run.teacher]
    if run.kimg is None or not run.address_known:
        return None
    if run.method == "SiD":
        snapshot = f"network-snapshot-{run.alpha:.6f}-{run.kimg:06d}.pkl"
        return f"{SID_HUB}/{teacher.sid_folder}/alpha{run.alpha:g}/{snapshot}"
    name = f"{teacher.sida_prefix}_{run.method.lower()}_alpha{run.alpha:g}-{run.kimg:06d}.pkl"
    return f"{SIDA_HUB}/EDM_distillation/{name}"


# SiD2A starts from the best SiD generator, whatever its own alpha.
STARTS = {run.teacher: edm_generator(run) or "" for run in RUNS if run.variant == "sid"}


def training(run: EDMRun) -> TrainingConfig:
    teacher, sid = TEACHERS[run.teacher], run.method == "SiD"
    return TrainingConfig(
        images=run.millions * MILLION,
        batch_size=teacher.batch_size,
        group_size=teacher.sid_group if sid else teacher.sida_group,
        fake_score_lr=teacher.learning_rate,
        generator_lr=teacher.learning_rate,
        # Of all published runs SiD on FFHQ alone has a first moment; SiDA on FFHQ has none.
        generator_beta1=0.9 if sid and run.teacher == "ffhq64" else 0.0,
        epsilon=1e-6 if teacher.float16 else 1e-8,
        ema_half_life=teacher.ema_half_life,
        clip_value=0.0 if sid else 1.0,
        precision="float16" if teacher.float16 else "float32",
    )


def published_edm(run: EDMRun) -> Published:
    teacher = TEACHERS[run.teacher]
    duration = run.millions * MILLION
    images_seen = None if run.kimg is None else run.kimg * 1000
    return Published(
        method=run.method,
        fid=teacher.sid_fid if run.variant == "sid" else None,
        best_fid=None if run.method == "SiD" else teacher.best_fid,
        teacher_fid=teacher.teacher_fid,
        teacher_evaluations=teacher.teacher_evaluations,
        duration=duration,
        images_seen=images_seen,
        checkpoint=edm_generator(run),
        notes=remarks(run.note, duration, images_seen),
    )


def edm_recipe(run: EDMRun) -> Recipe:
    teacher, sid = TEACHERS[run.teacher], run.method == "SiD"
    settings = training(run)
    config = DistillConfig(
        recipe=run.name,
        teacher=TeacherConfig(
            source=f"{NVIDIA}/edm/pretrained/{teacher.file}",
            initial_generator=STARTS[run.teacher] if run.method == "SiD2A" else "",
            dropout=teacher.dropout,
        ),
        objective=(
            sid_objective(run.alpha, teacher.augment)
            if sid
            else sida_objective(run.alpha, teacher.augment, discriminator_weight=1.0)
        ),
        schedule=ScheduleConfig(kind="edm", p_mean=-1.2, p_std=1.2, t_max=0.8, init_sigma=2.5),
        data=DataConfig(name=teacher.data),
        training=settings,
        resources=ON_GPUS,
        evaluation=unscored(teacher.teacher_steps),
        output=OutputConfig(checkpoint_every=teacher.checkpoint_every, report_every=20_000),
    )
    summary = f"{run.method} on EDM's teacher of {teacher.title}, alpha {run.alpha:g}"
    return Recipe(config, published_edm(run), summary)


EDM = tuple(edm_recipe(run) for run in RUNS)
