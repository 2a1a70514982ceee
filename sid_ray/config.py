"""The configuration of a run: frozen dataclasses, validated, JSON in and out.

A field's docstring is its ``--help``. Every interval is in images seen, never in steps. The
sections
``teacher``, ``objective``, ``schedule``, ``data`` and ``training`` (but for its length) decide what
is
computed: they are a run's identity. The others decide where and how often, and may change between
two starts of one run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sid_ray.errors import UserError, closest, did_you_mean
from sid_ray.groups import GroupPlan


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The pretrained network to distil."""

    source: str = ""
    """Folder with model.safetensors and model.json, or builtin:NAME for one that ships."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss."""

    name: Literal["sid"] = "sid"
    """Objective: sid (data-free score identity distillation)."""
    alpha: float = 1.2
    """Weight of the Delta^2 correction in the generator loss; published runs use 1.0 and 1.2."""
    fake_scale: float = 1.0
    """Constant factor of the fake-score loss."""
    generator_scale: float = 100.0
    """Constant factor of the generator loss."""
    generator_dropout: bool = True
    """Dropout in the generator while it is trained, as published."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Noise levels."""

    p_mean: float = -1.2
    """Mean of ln(sigma) in the fake-score phase."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma) in the fake-score phase."""
    sigma_min: float = 0.002
    """Lowest noise level of the rho grid."""
    sigma_max: float = 80.0
    """Highest noise level of the rho grid."""
    rho: float = 7.0
    """Curvature of the rho grid."""
    t_max: float = 0.8
    """Part of the rho grid, from its clean end, that the generator phase draws from."""
    init_sigma: float = 2.5
    """Noise level at which the generator reads its noise."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set: labels for data-free runs."""

    name: Literal["digits"] = "digits"
    """Data set: digits (scikit-learn's, ships with its package)."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation."""

    images: int = 100_000_000
    """Length of the run in images. May be raised later: the run goes on."""
    batch_size: int = 256
    """Images an iteration, over all workers."""
    group_size: int = 16
    """Images a logical group (published: batch-gpu). Workers take whole groups."""
    fake_score_lr: float = 1e-5
    """Adam's learning rate of the fake score."""
    generator_lr: float = 1e-5
    """Adam's learning rate of the generator."""
    beta1: float = 0.0
    """Adam's beta1, both networks."""
    beta2: float = 0.999
    """Adam's beta2, both networks."""
    epsilon: float = 1e-8
    """Adam's epsilon, both networks."""
    ema_half_life: int = 500_000
    """Half-life of the generator's weight average, in images; 0 for none."""
    ema_rampup: float = 0.05
    """The half-life is at most this share of the images seen."""
    seed: int = 0
    """Seed of every random number of the run."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """Where the run computes. Changes speed, never numbers."""

    num_workers: int = 1
    """Ray Train workers; at most batch_size / group_size."""
    use_gpu: bool = False
    """One GPU a worker instead of one CPU."""
    zero_stage: Literal[0, 1, 2] = 2
    """DeepSpeed ZeRO stage of fake score and generator."""
    micro_batch: int = 0
    """Images in one forward pass of a worker; a multiple or divisor of group_size, 0 for
    group_size.
    """
    threads: int = 1
    """CPU threads a worker."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Attention kernels of all networks: torch's own, or xformers on NVIDIA GPUs."""
    max_failures: int = 3
    """Worker failures after which the run gives up; each costs a restart from the last
    checkpoint.
    """


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scores while training, by an actor of its own. Never changes the training."""

    feature_space: str = "digits-cnn"
    """Named feature space of the Frechet distance."""
    every: int = 1_000_000
    """Images between two evaluations of the averaged generator; 0 for none."""
    num_images: int = 2048
    """Generated images an evaluation."""
    final_report: bool = True
    """At the end, measure teacher and generator side by side and draw the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What is written, and how often."""

    folder: str = "runs"
    """Folder of all runs; a run is a folder in it."""
    run: str = ""
    """Name of the run; empty for the recipe's name. The same name resumes."""
    checkpoint_every: int = 1_000_000
    """Images between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    report_every: int = 10_000
    """Images between two progress reports and metrics."""
    tracking_uri: str = ""
    """MLflow store; empty for MLFLOW_TRACKING_URI, else sqlite in the folder of all runs."""
    experiment: str = "sid_ray"
    """MLflow experiment."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Everything a run is made of."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    recipe: str = ""
    """Name of the recipe this started from."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def group_plan(self, world_size: int) -> GroupPlan:
        training = self.training
        micro_batch = self.resources.micro_batch or training.group_size
        return GroupPlan(training.batch_size, training.group_size, micro_batch, world_size)

    @property
    def run_name(self) -> str:
        return self.output.run or self.recipe

    def check(self) -> DistillConfig:
        """Itself, when every value makes sense. Raises UserError for the first that does not."""
        for name, value in flatten(self).items():
            minimum = MINIMUM.get(name)
            if minimum is not None and value < minimum:
                raise UserError(f"{name} is {value}; it must be at least {minimum}")
        for name in POSITIVE:
            value = flatten(self)[name]
            if not value > 0:
                raise UserError(f"{name} is {value}; it must be above 0")
        for name in SHARES:
            value = flatten(self)[name]
            if not 0 <= value < 1:
                raise UserError(f"{name} is {value}; it must be in [0, 1)")
        if not self.teacher.source:
            raise UserError("teacher.source is empty; name a folder or builtin:NAME")
        if not self.run_name or set(self.run_name) & set('/\\:*?"<>|') or self.run_name[0] == ".":
            raise UserError(f"output.run is {self.run_name!r}; it must be a plain folder name")
        self.group_plan(self.resources.num_workers)
        return self

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the config") -> DistillConfig:
        """The inverse of to_json. Raises UserError that names the first wrong field."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "its text"
            raise UserError(
                f"{source}: {where}: {first['msg'].lower()} (found {first.get('input')!r:.60})"
            ) from None

    def identity(self) -> dict[str, Any]:
        """The dotted fields that decide the numbers; a resumed run must not change them."""
        return {
            name: value
            for name, value in flatten(self).items()
            if name.split(".")[0] in IDENTITY_SECTIONS and name not in MAY_CHANGE
        }


IDENTITY_SECTIONS = ("teacher", "objective", "schedule", "data", "training")
MAY_CHANGE = ("training.images",)
POSITIVE = (
    "training.fake_score_lr",
    "training.generator_lr",
    "training.epsilon",
    "schedule.sigma_min",
    "schedule.init_sigma",
    "schedule.p_std",
    "schedule.rho",
    "schedule.t_max",
)
SHARES = ("training.beta1", "training.beta2")
MINIMUM = {
    "training.images": 1,
    "training.batch_size": 1,
    "training.group_size": 1,
    "training.ema_half_life": 0,
    "training.ema_rampup": 0,
    "resources.num_workers": 1,
    "resources.micro_batch": 0,
    "resources.threads": 1,
    "resources.max_failures": 0,
    "evaluation.every": 0,
    "evaluation.num_images": 65,
    "output.checkpoint_every": 1,
    "output.keep_checkpoints": 1,
    "output.report_every": 1,
}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names to values, in order."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def differences(old: DistillConfig, new: DistillConfig) -> Iterator[str]:
    """'training.seed: 0 -> 1' for every identity field that differs."""
    before, after = old.identity(), new.identity()
    for name in before:
        if before[name] != after[name]:
            yield f"{name}: {before[name]!r} -> {after[name]!r}"


def replace(config: DistillConfig, **dotted: Any) -> DistillConfig:
    """A copy with dotted fields replaced, written with __ for the dot: training__seed=1."""
    for name, value in dotted.items():
        section, _, leaf = name.partition("__")
        if not leaf:
            config = dataclasses.replace(config, **{section: value})
        else:
            changed = dataclasses.replace(getattr(config, section), **{leaf: value})
            config = dataclasses.replace(config, **{section: changed})
    return config


def flags(before: DistillConfig, after: DistillConfig) -> list[str]:
    """Command-line flags for the identity fields in which ``after`` differs from ``before``."""
    old, found = before.identity(), []
    for name, value in after.identity().items():
        if value == old[name]:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            section, _, leaf = flag.rpartition(".")
            found.append(f"--{section}.{'' if value else 'no-'}{leaf}")
        else:
            found += [f"--{flag}", str(value)]
    return found


def unknown_field(name: str) -> UserError:
    """The error for a field that no config has, with the nearest dotted names."""
    known = list(flatten(DistillConfig()))
    by_leaf = {field_name.split(".")[-1]: field_name for field_name in known}
    names = closest(name, known) or [by_leaf[leaf] for leaf in closest(name, by_leaf)]
    return UserError(
        f"no field {name!r} in the config.{did_you_mean(names)} "
        "sid-ray distill RECIPE --help lists them all"
    )
