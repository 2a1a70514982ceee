"""From a config to the objects it describes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_ray.checkpoint.find import find_generator
from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.prepared import PreparedSource, Reading, open_prepared
from sid_ray.data.source import LABELS_ONLY, Source, is_prepared, open_source
from sid_ray.denoisers.spec import spec_of
from sid_ray.diffusion.augment import AugmentPipe
from sid_ray.diffusion.schedules import DiscreteVPSchedule, EDMSchedule, read_scheduler_config
from sid_ray.distributed.roles import AdamSettings, UpdateRules
from sid_ray.distributed.update_rules import update_rules
from sid_ray.errors import UserError
from sid_ray.objectives.lsg import Guidance
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.objectives.vsd import VSD
from sid_ray.storage.errors import is_s3
from sid_ray.storage.places import expanded
from sid_ray.types import Objective
from sid_ray.weights.address import FILE_SUFFIXES
from sid_ray.weights.components import Named, find_components, reads_text, text_encoder_sha256
from sid_ray.weights.description import NO_COMPONENTS, Components
from sid_ray.weights.folder import ModelDescription
from sid_ray.weights.networks import describe
from sid_ray.weights.same import unlike
from sid_ray.weights.sources import resolve_source

Schedule = EDMSchedule | DiscreteVPSchedule
BETAS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type")


def schedule_of(config: DistillConfig) -> Schedule:
    """The noise schedule of the config's kind."""
    chosen = config.schedule
    if chosen.kind == "edm":
        edm = ("p_mean", "p_std", "sigma_min", "sigma_max", "rho", "t_max", "init_sigma")
        return EDMSchedule(**{name: getattr(chosen, name) for name in edm})
    return DiscreteVPSchedule(
        **{name: getattr(chosen, name) for name in BETAS},
        t_min=chosen.timestep_min,
        t_max=chosen.timestep_max,
        init_timestep=chosen.init_timestep,
    )


def objective_of(config: DistillConfig, null_text: Tensor | None = None) -> Objective:
    """The losses. ``null_text`` [T, D] is the empty prompt's embedding of a teacher with text."""
    chosen = config.objective
    guidance = Guidance(
        chosen.kappa1, chosen.kappa2, chosen.kappa3, chosen.kappa4, chosen.text_dropout, null_text
    )
    common: dict[str, Any] = {
        "schedule": schedule_of(config),
        "alpha": chosen.alpha,
        "fake_scale": chosen.fake_scale,
        "generator_scale": chosen.generator_scale,
        "generator_dropout": chosen.generator_dropout,
        "logvar": chosen.logvar,
        "augment": AugmentPipe(chosen.augment) if chosen.augment else None,
        "num_steps": chosen.num_steps,
        "guidance": guidance,
        "official": chosen.compat == "official",
    }
    if chosen.name == "sida":
        return SiDA(
            **common,
            adversarial_weight=chosen.adversarial_weight,
            discriminator_weight=chosen.discriminator_weight,
            generator_start=chosen.generator_start,
            adversarial_start=chosen.adversarial_start,
        )
    return (VSD if chosen.name == "vsd" else SiD)(**common)


def rules_of(config: DistillConfig, family: str) -> dict[str, UpdateRules]:
    """What happens around the updates of fake score and generator."""
    objective, training = config.objective, config.training
    return update_rules(
        objective.name, family, objective.compat, training.normalize_weights, training.clip_value
    )


def adam_of(config: DistillConfig, role: str) -> AdamSettings:
    """Adam's settings of ``fake_score`` or ``generator``."""
    values = config.training
    learning_rate, beta1 = getattr(values, f"{role}_lr"), getattr(values, f"{role}_beta1")
    return AdamSettings(learning_rate, beta1, values.beta2, values.epsilon)


def network_of(config: DistillConfig, description: ModelDescription) -> ModelDescription:
    """The network that is trained: the teacher's, with the config's dropout."""
    if config.teacher.dropout < 0:
        return description
    network = dict(description.network) | {"dropout": config.teacher.dropout}
    return dataclasses.replace(description, network=network)


@dataclass(frozen=True)
class Data:
    """The data set as a run sees it, and the empty prompt's embedding where there is text."""

    source: Source
    null_text: Tensor | None = None


def data_of(
    config: DistillConfig,
    teacher: ModelDescription,
    components: Components = NO_COMPONENTS,
    device: torch.device | str = "cpu",
    world_size: int = 1,
    rank: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> Data:
    """Opens the data set, and the teacher's text encoder where it reads text.

    ``components`` are the teacher's. A prepared set is read for this rank of ``world_size``;
    ``tell`` hears of its storage.
    """
    spec = spec_of(teacher.family)
    text = None if spec.load_text is None else spec.load_text(components.text, device)
    embed, null_text = (None, None) if text is None else (text.embed, text.null())
    shape, label_dim = spec.shape(teacher.network), spec.label_dim(teacher.network)
    if not is_prepared(config.data):
        return Data(unlabelled(open_source(config.data, shape, embed), label_dim), null_text)
    reading = Reading(
        config.group_plan(world_size),
        rank,
        config.training.seed,
        config.objective.name == "sida",
        config.data.window,
        config.data.xflip,
        config.resources.data_cache_gib,
        config.training.images,
        tell,
    )
    encoder = None if components.text is None else partial(text_encoder_sha256, components.text)
    standard = None if spec.standard is None else partial(spec.standard, components.vae)
    source = open_prepared(config.data, shape, embed, encoder, standard, reading)
    return Data(unlabelled(source, label_dim), null_text)


def bare_source(config: DistillConfig, teacher: ModelDescription) -> Source:
    """The data set to be looked at: without a text encoder, and nothing is read ahead.

    Raises UserError.
    """
    spec, data = spec_of(teacher.family), config.data
    shape = spec.shape(teacher.network)
    opened = open_prepared(data, shape) if is_prepared(data) else open_source(data, shape)
    return unlabelled(opened, spec.label_dim(teacher.network))


def unlabelled(source: Source, label_dim: int) -> Source:
    """The source as a teacher of so many classes sees it: one without any is told no labels."""
    return source if label_dim else dataclasses.replace(source, label_dim=0)


@dataclass(frozen=True)
class Start:
    """The networks a run starts from, on local disk: the teacher with its text encoder and VAE, and
    SiD2A's generator.
    """

    teacher: Path
    description: ModelDescription
    generator: Path | None = None
    components: Components = NO_COMPONENTS


def find_start(config: DistillConfig, with_data: bool = True) -> Start:
    """Fetches what the config names and looks into it as the run will, but for the numbers.

    ``with_data``: held against the data set and the objective, too. Raises UserError where it is
    missing, cannot be loaded or does not fit.
    """
    teacher = resolve_source(config.teacher.source)
    description = describe(teacher)
    if with_data:
        check_teacher(config, description, teacher)
    components = components_of(config, description, teacher)
    if with_data:
        check_latents(config, description, components)
    source = config.teacher.initial_generator
    if not source:
        return Start(teacher, description, None, components)
    is_run = is_generator_address(source)
    generator = find_generator(source).absolute() if is_run else resolve_source(source)
    check_generator(source, description, describe(generator, like=description))
    return Start(teacher, description, generator, components)


def components_of(
    config: DistillConfig,
    teacher: ModelDescription,
    folder: Path,
    found: Components = NO_COMPONENTS,
) -> Components:
    """The teacher's text encoder and VAE: those ``found`` already where this node has them.

    Raises UserError where they are missing or do not suit the teacher.
    """
    missing = reads_text(teacher) and found.text is None
    if found != NO_COMPONENTS and found.are_here and not missing:
        return found
    chosen = config.teacher
    flags = "--teacher.text-encoder", "--teacher.vae"
    return find_components(teacher, folder, Named(chosen.text_encoder, chosen.vae, *flags))


def check_latents(config: DistillConfig, teacher: ModelDescription, components: Components) -> None:
    """Raises UserError where latents are read, and nothing says how the teacher wants them."""
    standard = spec_of(teacher.family).standard
    if config.objective.name == "sida" and is_prepared(config.data) and standard is not None:
        source = bare_source(config, teacher)
        if isinstance(source, PreparedSource) and source.manifest.kind == "latents":
            standard(components.vae)


def is_generator_address(source: str) -> bool:
    """Whether it may name a run or a checkpoint: a folder, or s3:// without a weights file."""
    if is_s3(source):
        return not source.partition("#")[0].endswith(FILE_SUFFIXES)
    return expanded(source).is_dir()


def check_generator(source: str, teacher: ModelDescription, generator: ModelDescription) -> None:
    """Raises UserError where the initial generator is another network than the teacher."""
    found = unlike(generator, teacher)
    if found is not None:
        raise UserError(
            f"teacher.initial_generator {source} is {found[0]}, the teacher {found[1]}: it must "
            "be a generator distilled from a teacher of the same network"
        )


def check_teacher(config: DistillConfig, teacher: ModelDescription, folder: Path) -> None:
    """Raises UserError where teacher, data set and objective do not fit together."""
    spec, objective = spec_of(teacher.family), config.objective
    if spec.schedule != config.schedule.kind:
        raise UserError(
            f"schedule.kind is {config.schedule.kind!r}, but teacher {config.teacher.source} is a "
            f"{teacher.family} network: it needs {spec.schedule!r}"
        )
    kappas = {f"kappa{i}": getattr(objective, f"kappa{i}") for i in (1, 2, 3, 4)}
    guided = [name for name, kappa in kappas.items() if kappa != 1]
    if spec.load_text is None and (guided or objective.name == "lsg"):
        what = f"objective.{guided[0]} is {kappas[guided[0]]}" if guided else "objective is lsg"
        raise UserError(
            f"{what}, but teacher {config.teacher.source} reads no text to be guided by"
        )
    if config.teacher.dropout >= 0 and "dropout" not in teacher.network:
        raise UserError(f"teacher.dropout: {config.teacher.source} has no dropout to set")
    if objective.logvar and not spec.logvar(teacher.network):
        raise UserError(
            f"objective.logvar needs a log-variance head; teacher {config.teacher.source} has none"
        )
    if objective.augment and not teacher.network.get("augment_dim", 0):
        raise UserError(
            f"objective.augment is {objective.augment}, but teacher {config.teacher.source} reads "
            "no augmentation labels: the generator would learn augmented images"
        )
    if config.schedule.kind == "vp":
        check_schedule(config, folder)
    check_data(config, teacher)


def check_data(config: DistillConfig, teacher: ModelDescription) -> None:
    """Raises UserError where the teacher has other images, classes or text than the data set."""
    spec, data = spec_of(teacher.family), config.data
    shape, label_dim = spec.shape(teacher.network), spec.label_dim(teacher.network)
    if data.xflip and not is_prepared(data):
        raise UserError(
            f"data.xflip is for prepared sets of images; data set {data.name!r} is none here"
        )
    source = bare_source(config, teacher)
    channels, resolution, _ = source.shape
    found: dict[str, tuple[int, int]] = {
        "channels": (shape[0], channels),
        "pixels a side": (shape[1], resolution),
        "classes": (label_dim, source.label_dim),
    }
    for what, (own, needed) in found.items():
        if own != needed:
            raise UserError(
                f"teacher {config.teacher.source} has {own} {what}, data set "
                f"{data.name!r} has {needed}: choose a teacher of this data"
            )
    if spec.load_text is None and data.name in ("prompts", "emoji"):
        raise UserError(
            f"teacher {config.teacher.source} reads no text, data set {data.name!r} has prompts"
        )
    if spec.load_text is not None and not source.has_prompts:
        raise UserError(
            f"teacher {config.teacher.source} reads text, data set {data.name!r} has none"
        )
    if config.objective.name == "sida":
        check_pixels(config, teacher, source)


def check_pixels(config: DistillConfig, teacher: ModelDescription, source: Source) -> None:
    """Raises UserError where an adversarial run gets no images that its networks can read."""
    data = config.data
    if not source.has_images:
        how = "use objective.name sid, or a data set with images (digits, emoji)"
        if data.name in (*LABELS_ONLY, "prepared"):
            how = (
                "sid-ray data prepare SRC DST prepares them, and --data.source DST reads them; "
                "or use objective.name sid"
            )
        raise UserError(
            f"objective sida needs real images; data set {data.name!r} gives none here: {how}"
        )
    latents = isinstance(source, PreparedSource) and source.manifest.kind == "latents"
    if latents and spec_of(teacher.family).standard is None:
        raise UserError(
            f"data.source {data.source} holds latents; teacher {config.teacher.source} is of pixels"
        )


def check_schedule(config: DistillConfig, folder: Path) -> None:
    """Raises UserError where the config's betas are not those of the teacher's scheduler."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return
    own = read_scheduler_config(path)
    for name in BETAS:
        has, asked = getattr(own, name), getattr(config.schedule, name)
        if has != asked:
            raise UserError(
                f"schedule.{name} is {asked!r}, but {path} says {has!r}: set it to that"
            )


def generator_description(config: DistillConfig, teacher: ModelDescription) -> ModelDescription:
    """What the generator's folder says: the teacher's network, read in one step or a few."""
    notes = {"recipe": config.recipe, "teacher": config.teacher.source, "data": config.data.name}
    for part in ("text_encoder", "vae"):
        if named := getattr(config.teacher, part):
            notes[part] = named
    if commit := teacher.notes.get("commit"):  # of the hub: the address may name a branch
        notes["teacher_commit"] = commit
    one_step: dict[str, Any] = {"sigma": config.schedule.init_sigma}
    if config.schedule.kind == "vp":
        betas = {name: getattr(config.schedule, name) for name in BETAS}
        one_step = {"timestep": config.schedule.init_timestep} | betas
    if config.objective.num_steps > 1:
        one_step["num_steps"] = config.objective.num_steps
    return ModelDescription(teacher.family, teacher.network, one_step, notes)


def generation_of(one_step: Mapping[str, Any]) -> tuple[Schedule, int]:
    """(schedule, number of evaluations) from a generator's description. Raises UserError."""
    values = dict(one_step)
    num_steps = values.pop("num_steps", 1)
    try:
        if "sigma" in values:
            return EDMSchedule(init_sigma=values["sigma"]), num_steps
        timestep = values.pop("timestep")
        return DiscreteVPSchedule(**values, init_timestep=timestep), num_steps
    except (KeyError, TypeError):
        raise UserError(
            f"one_step of model.json is {json.dumps(dict(one_step))}; expected a sigma, or a "
            "timestep with the betas"
        ) from None
