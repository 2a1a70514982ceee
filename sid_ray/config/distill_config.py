"""The configuration of a run: frozen dataclasses, validated, JSON in and out.

The fields are in sections.py. The sections ``teacher``, ``adapter``, ``objective``, ``schedule``,
``data`` (but for where it lies) and ``training`` (but for its length) decide what is computed: they
are a run's identity. The others decide where and how often, and may change between two starts of
one run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from sid_ray.config.adapter_section import check_adapter
from sid_ray.config.auto import AUTO
from sid_ray.config.chosen import ChosenResources, chosen_of, plain
from sid_ray.config.confidential import holds_credentials
from sid_ray.config.metric_weights import named_weights, with_places
from sid_ray.config.objective_section import OfItsName, of_its_name, own_fields
from sid_ray.config.ranges import RULES, checked, of_json
from sid_ray.config.registry import METRICS, OBJECTIVES
from sid_ray.config.sections import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    HealthConfig,
    ObjectiveConfig,
    OutputConfig,
    ResourcesConfig,
    ScheduleConfig,
    StorageConfig,
    TeacherConfig,
    TrainingConfig,
)
from sid_ray.errors import UserError, closest, did_you_mean
from sid_ray.groups import GroupPlan
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Everything a run is made of."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = RULES

    recipe: str = ""
    """Name of the recipe this started from."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    objective: Annotated[ObjectiveConfig, OfItsName()] = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        """The objective's section gets the dataclass of its name, with the objective's fields."""
        object.__setattr__(self, "objective", of_its_name(self.objective))

    @property
    def chosen(self) -> ChosenResources:
        """The resources as values, for everything that computes. Raises ValueError before a start
        has chosen what is auto.
        """
        return chosen_of(self.resources)

    def group_plan(self, world_size: int) -> GroupPlan:
        """The split of a batch; group by group where the micro-batch is not chosen yet."""
        training, asked = self.training, self.resources.micro_batch
        micro_batch = training.group_size if asked in (0, AUTO) else asked
        return GroupPlan(training.batch_size, training.group_size, micro_batch, world_size)

    @property
    def run_name(self) -> str:
        return self.output.run or self.recipe

    def check(self) -> DistillConfig:
        """Itself, when every value makes sense. Raises UserError for the first that does not."""
        checked(self)
        for name, value in flatten(self).items():
            if isinstance(value, str):
                check_text(name, value)
        OBJECTIVES.get(self.objective.name)
        if not self.teacher.source:
            raise UserError("teacher.source is empty; name a folder or builtin:NAME")
        check_run_name(self.run_name)
        check_schedule(self.schedule)
        experiment = self.output.experiment
        if not experiment.strip() or len(experiment) > MLFLOW_NAME:
            raise UserError(
                f"output.experiment is {experiment!r:.60}; it must be a name of 1 to {MLFLOW_NAME} "
                "characters"
            )
        model = self.output.register_model
        if model and (not model.strip() or len(model) > MLFLOW_NAME):
            raise UserError(
                f"output.register_model is {model!r:.60}; it must be a name of at most "
                f"{MLFLOW_NAME} characters, or empty for none"
            )
        if set(model) & set("/:'"):  # in a run's last minute it would be too late to hear it
            raise UserError(f"output.register_model is {model!r}; it may not contain / : '")
        if model and not self.output.log_model:
            raise UserError("output.register_model needs the weights in MLflow: --output.log-model")
        for role in ("fake_score", "generator"):
            if self.resources.offload_optimizer is True and self.resources.stage_of(role) == 0:
                raise UserError(
                    f"resources.offload_optimizer needs ZeRO stage 1, 2 or 3, but {role} is at "
                    f"stage 0: set resources.{role}_zero_stage, or --resources.no-offload-optimizer"
                )
        check_adapter(self.adapter, self.resources)
        check_compile(self.resources)
        check_state(self)
        if self.resources.deterministic and self.resources.attention == "xformers":
            raise UserError(
                "resources.attention is xformers, whose gradients are not the same bits each time: "
                "--resources.attention sdpa, or --resources.no-deterministic"
            )
        evaluation = self.evaluation
        if not evaluation.feature_space and (evaluation.every or evaluation.final_report):
            raise UserError(
                "evaluation.feature_space is empty; name one, or set evaluation.every to 0 and "
                "--evaluation.no-final-report"
            )
        asked_metrics(evaluation.metrics)
        named_weights(evaluation.metric_weights)
        ray_resources(evaluation.resources)
        least, most = self.resources.min_workers, self.resources.num_workers
        if least != AUTO and most != AUTO and least > most:
            raise UserError(f"resources.min_workers is {least}, above num_workers ({most})")
        for workers in (least, most):
            self.group_plan(1 if workers == AUTO else workers)
        return self

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def stored(self) -> str:
        """JSON for a file in a run's folder: without where that lies, as it may be moved."""
        return replace(self, output__folder="").to_json()

    @classmethod
    def from_json(cls, text: str, source: str = "the config") -> DistillConfig:
        """The inverse of to_json. Raises UserError that names the first wrong field."""
        return of_json(cls, text, source, unknown_field)

    def identity(self) -> dict[str, Any]:
        """The dotted fields that decide the numbers; a resumed run must not change them."""
        return {
            name: value
            for name, value in flatten(self).items()
            if name.split(".")[0] in IDENTITY_SECTIONS and name not in MAY_CHANGE
        }


IDENTITY_SECTIONS = ("teacher", "adapter", "objective", "schedule", "data", "training")
MLFLOW_NAME = 250  # characters that any MLflow takes as a name
MAY_CHANGE = (
    "training.images", "data.source", "teacher.text_encoder", "teacher.vae", "teacher.lora",
)  # fmt: skip
PLACES = (
    "data.source",
    "teacher.text_encoder",
    "teacher.vae",
    "teacher.lora",
    "evaluation.reference",
    "evaluation.feature_weights",
    "evaluation.clip_weights",
    "evaluation.vae",
)
LONGEST_NAME = 200  # a folder's, in bytes of UTF-8
RESERVED = ("mlflow.db", "mlruns", "mlartifacts")  # lie beside the runs


def check_text(name: str, value: str) -> None:
    """Raises UserError for a text that no name or address is, or that may not be stored."""
    if holds_credentials(value):
        raise UserError(
            f"{name} holds a password or a signature, and would be stored in run.json, "
            "checkpoints and MLflow: name it without, and give credentials in the environment "
            "(AWS_*, HF_TOKEN, MLFLOW_TRACKING_USERNAME and _PASSWORD, or all of "
            "MLFLOW_TRACKING_URI)"
        )
    if any(ord(letter) < 32 or letter == "\x7f" for letter in value):
        raise UserError(f"{name} is {value!a:.100}; it holds a line break or a control character")


def check_run_name(name: str) -> None:
    """Raises UserError where a run cannot or should not be called so."""
    wrong = not name or set(name) & set('/\\:*?"<>|') or name[0] in ".-" or name != name.strip()
    if wrong or name in RESERVED or not name.isprintable():
        raise UserError(
            f"output.run is {name!a:.200}; it must be a plain folder name, without . or - in front"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"output.run has {len(name.encode())} bytes; it must have at most {LONGEST_NAME}"
        )


def check_schedule(schedule: ScheduleConfig) -> None:
    """Raises UserError for noise levels that are in no order, of whichever kind they are."""
    if not schedule.sigma_min < schedule.sigma_max:
        raise UserError(
            f"schedule.sigma_min is {schedule.sigma_min}; it must be below schedule.sigma_max "
            f"({schedule.sigma_max})"
        )
    if not 0 < schedule.beta_start <= schedule.beta_end < 1:
        raise UserError(
            f"schedule.beta_start and beta_end are {schedule.beta_start} and {schedule.beta_end}; "
            "0 < beta_start <= beta_end < 1 is expected"
        )
    low, high, count = schedule.timestep_min, schedule.timestep_max, schedule.num_train_timesteps
    if not 0 <= low < high <= count:
        raise UserError(
            f"schedule.timestep_min and timestep_max are {low} and {high}; 0 <= timestep_min < "
            f"timestep_max <= num_train_timesteps ({count}) is expected"
        )
    if not 0 <= schedule.init_timestep < count:
        raise UserError(
            f"schedule.init_timestep is {schedule.init_timestep}; it must be in 0 to {count - 1}"
        )


def check_compile(resources: ResourcesConfig) -> None:
    """Raises UserError where resources.compile cannot work."""
    if resources.compile in ("off", AUTO):
        return
    stages = {role: resources.stage_of(role) for role in ("fake_score", "generator")}
    for role, stage in (stages | {"teacher": resources.teacher_zero_stage}).items():
        if stage == 3:
            raise UserError(
                f"resources.compile {resources.compile} does not go with ZeRO stage 3, which "
                f"gathers weights inside the networks, but {role} is at stage 3: set "
                f"resources.{role}_zero_stage, or --resources.compile off"
            )
    if resources.compile == "cudagraphs" and resources.use_gpu is False:
        raise UserError(
            "resources.compile cudagraphs needs GPUs: set --resources.use-gpu, or "
            "--resources.compile default"
        )
    if resources.compile == "cudagraphs" and resources.activation_checkpointing is True:
        raise UserError(
            "resources.compile cudagraphs compiles whole networks, in which blocks cannot be "
            "computed again: set --resources.no-activation-checkpointing, or "
            "--resources.compile default"
        )


def stages_for(training: TrainingConfig) -> tuple[int, ...]:
    """The ZeRO stages at which several workers can keep the state that training asks for."""
    blocks = training.optimizer == "adam8bit"  # cut by no rank's part: only stage 0 leaves them
    halves = training.weights == "bfloat16"  # DeepSpeed's stage 1 has another way of its own
    return (0,) if blocks else (2, 3) if halves else (0, 1, 2, 3)


def check_state(config: DistillConfig) -> None:
    """Raises UserError where training.optimizer or training.weights cannot be had."""
    training, resources = config.training, config.resources
    if training.weights == "bfloat16" and training.precision != "bfloat16":
        raise UserError(
            f"training.weights is bfloat16 and training.precision {training.precision}: set "
            "--training.precision bfloat16, or --training.weights float32"
        )
    if training.weights == "bfloat16" and training.optimizer == "adam8bit":
        raise UserError(
            "training.optimizer adam8bit needs ZeRO stage 0 and training.weights bfloat16 stage 2 "
            "or 3: choose one of the two"
        )
    if training.weights == "bfloat16" and config.adapter.rank:
        raise UserError(
            "training.weights bfloat16 is for whole networks, and adapter.rank is "
            f"{config.adapter.rank}: set --training.weights float32 (adapter.base is in "
            "training.precision as it is)"
        )
    if len(fitting := stages_for(training)) == 4:
        return
    what = "optimizer adam8bit" if training.optimizer == "adam8bit" else "weights bfloat16"
    if resources.offload_optimizer is True:
        raise UserError(
            f"training.{what} does not go with resources.offload_optimizer: set "
            "--resources.no-offload-optimizer"
        )
    for role in ("fake_score", "generator"):
        stage = resources.stage_of(role)
        if resources.num_workers != 1 and stage != AUTO and stage not in fitting:
            raise UserError(
                f"training.{what} on several workers needs ZeRO stage "
                f"{' or '.join(map(str, fitting))}, but {role} is at stage {stage}: set "
                "--resources.zero-stage auto"
            )


def asked_metrics(text: str) -> tuple[str, ...]:
    """'fd,pr' as names, in their order. Raises UserError for one that is unknown."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        METRICS.get(name)
    if not names:
        raise UserError(f"evaluation.metrics is empty; name some of {', '.join(METRICS.names)}")
    return names


def ray_resources(text: str) -> dict[str, float]:
    """'GPU=1,evaluator=0.5' as Ray's resources. Raises UserError for anything else."""
    found: dict[str, float] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            found[name.strip()] = -1
        if not name.strip() or not 0 < found[name.strip()] < float("inf"):
            raise UserError(
                f"evaluation.resources holds {part!r}; expected NAME=NUMBER, like GPU=1 or "
                "CPU=4,evaluator=1"
            )
    return found


def evaluator_resources(config: DistillConfig) -> dict[str, float]:
    """Ray resources that the evaluator has to itself while a run trains, beside the workers'.

    Empty where it shares the driver's machine, or where nobody asks it for scores.
    """
    return ray_resources(config.evaluation.resources) if config.evaluation.every else {}


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
    for name in before | after:
        was, is_now = (values.get(name, "none") for values in (before, after))
        if was != is_now:
            yield f"{name}: {was!r} -> {is_now!r}"


def replace(config: DistillConfig, **dotted: Any) -> DistillConfig:
    """A copy with dotted fields replaced, written with __ for the dot: training__seed=1."""
    kind = {name: dotted[name] for name in dotted if name == "objective__name"}  # has the others
    for name, value in (kind | dotted).items():
        section, _, leaf = name.partition("__")
        if not leaf:
            config = dataclasses.replace(config, **{section: value})
        else:
            changed = dataclasses.replace(getattr(config, section), **{leaf: value})
            config = dataclasses.replace(config, **{section: changed})
    return config


def with_plain_resources(config: DistillConfig) -> DistillConfig:
    """The config with the plainest value for what is auto: for tools that compute with one and
    choose nothing.
    """
    return replace(config, resources=plain(config.resources))


def located(config: DistillConfig) -> DistillConfig:
    """With absolute paths, but for the teacher's, which is the run's identity: workers have another
    working directory, and the driver says where the teacher is.
    """

    def absolute(place: str) -> str:
        return str(expanded(place).absolute()) if place and is_path(place) else place

    values = flatten(config)
    for name in PLACES:
        config = replace(config, **{name.replace(".", "__"): absolute(str(values[name]))})
    weights = with_places(config.evaluation.metric_weights, absolute)
    return replace(config, evaluation__metric_weights=weights)


def named_places(config: DistillConfig, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(field, place) of the places that these fields hold, and of each metric's network."""
    values = flatten(config)
    yield from ((name, str(values[name])) for name in names)
    weights = named_weights(config.evaluation.metric_weights)
    yield from (("evaluation.metric_weights", place) for place in weights.values())


# Named in a command by flags of their own, or not for a person to set.
NO_FLAG = ("recipe", "output.run", "output.folder", "training.images")


def flags(before: DistillConfig, after: DistillConfig) -> list[str]:
    """Command-line flags for the fields in which ``after`` differs from ``before``."""
    old = flatten(replace(before, objective__name=after.objective.name))
    old["objective.name"], found = before.objective.name, list[str]()
    for name, value in flatten(after).items():
        if value == old[name] or name in NO_FLAG:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            section, _, leaf = flag.rpartition(".")
            found.append(f"--{section}.{'' if value else 'no-'}{leaf}")
        else:
            found += [f"--{flag}", str(value)]
    return found


def known_fields() -> list[str]:
    """The dotted name of every field, those of all known objectives among them."""
    return list(flatten(DistillConfig()) | own_fields())


def unknown_field(name: str) -> UserError:
    """The error for a field that no config has, with the nearest dotted names."""
    if name in own_fields():
        return UserError(
            f"{name}: the objective that objective.name names does not have this field; set "
            "objective.name to the one that has it, or leave the field out"
        )
    known = known_fields()
    by_leaf = {field_name.split(".")[-1]: field_name for field_name in known}
    names = closest(name, known) or [by_leaf[leaf] for leaf in closest(name, by_leaf)]
    return UserError(
        f"no field {name!r} in the config.{did_you_mean(names)} "
        "sid-ray distill RECIPE --help lists them all"
    )
