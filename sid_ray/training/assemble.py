"""From a config to the objects it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sid_ray.checkpoint.find import find_generator
from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.prepared import PreparedSource, Reading, open_prepared, untold
from sid_ray.data.source import LABELS_ONLY, DataSource, is_prepared, open_source
from sid_ray.denoisers.family import Family, leave_weight
from sid_ray.denoisers.noise import TeacherSampler, levels_of
from sid_ray.denoisers.precondition import precision_beside
from sid_ray.denoisers.registry import family_of, noise_of
from sid_ray.denoisers.text import Tell, TextEmbeddings, say_aside
from sid_ray.distributed.roles import AdamSettings, UpdateRules
from sid_ray.distributed.update_rules import update_rules
from sid_ray.errors import UserError
from sid_ray.objectives.spec import objective_spec, objective_specs
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_elsewhere
from sid_ray.training.adapter_settings import (
    base_precision,
    check_adapted_layers,
    noted_base,
    run_adapter,
)
from sid_ray.types import Objective, Schedule
from sid_ray.weights.address import FILE_SUFFIXES
from sid_ray.weights.base import BASE, base_sha256
from sid_ray.weights.components import Named, find_components, text_encoder_sha256
from sid_ray.weights.description import NO_COMPONENTS, Components
from sid_ray.weights.folder import ModelDescription
from sid_ray.weights.networks import describe, rebuilt
from sid_ray.weights.over_base import check_start, other_base
from sid_ray.weights.resolution import sized, takes_sizes
from sid_ray.weights.same import called, unlike
from sid_ray.weights.sources import resolve_source
from sid_ray.weights.teacher import noted_teacher, resolve_teacher


def schedule_of(config: DistillConfig) -> Schedule:
    """The noise schedule of the config's kind. Raises UserError for an unknown kind."""
    return noise_of(config.schedule.kind).schedule(config.schedule)


def solver_of(config: DistillConfig) -> TeacherSampler:
    """How the teacher makes images: its own sampler, in the config's number of steps."""
    chosen = config.evaluation
    noise = noise_of(config.schedule.kind)
    return noise.sampler(config.schedule, chosen.teacher_steps, chosen.teacher_guidance)


def objective_of(config: DistillConfig, null_text: Tensor | None = None) -> Objective:
    """The losses. ``null_text`` [T, D] is the empty prompt's embedding of a teacher with text."""
    chosen = config.objective
    return objective_spec(chosen.name).build(chosen, schedule_of(config), null_text)


def rules_of(config: DistillConfig, family: str) -> dict[str, UpdateRules]:
    """What happens around the updates of fake score and generator.

    A family's rule on weights (EDM2's forced normalisation) is of whole ones: a layer's W has no
    length that its output depends on, so its length may be set. The output does depend on that of A
    and B, which are W' - W; W' is normalised in the forward pass, and W does not change.
    """
    objective, training = config.objective, config.training
    rules = update_rules(
        objective_spec(objective.name).discriminator,
        family,
        objective.compat,
        training.normalize_weights,
        training.clip_value,
    )
    return {
        role: dataclasses.replace(rule, constrain=leave_weight, constrain_first=False)
        if config.adapter.of(role)
        else rule
        for role, rule in rules.items()
    }


def adam_of(config: DistillConfig, role: str) -> AdamSettings:
    """Adam's settings of ``fake_score`` or ``generator``."""
    values = config.training
    learning_rate, beta1 = getattr(values, f"{role}_lr"), getattr(values, f"{role}_beta1")
    return AdamSettings(
        learning_rate,
        beta1,
        values.beta2,
        values.epsilon,
        eight_bits=values.optimizer == "adam8bit",
        half_weights=values.weights == "bfloat16",
    )


def check_weights(config: DistillConfig, family: str) -> None:
    """Raises UserError where a family's rule on weights needs them in float32."""
    for role, rules in rules_of(config, family).items():
        if adam_of(config, role).half_weights and rules.constrain is not leave_weight:
            raise UserError(
                f"training.weights is bfloat16, but the weights of {called(family)} are normalised "
                "in float32 (training.normalize_weights): set --training.weights float32"
            )


def network_of(config: DistillConfig, description: ModelDescription) -> ModelDescription:
    """The network that is trained: the teacher's, with the config's dropout."""
    if config.teacher.dropout < 0:
        return description
    family = family_of(description.family)
    network = family.with_dropout(description.network, config.teacher.dropout)
    return dataclasses.replace(description, network=network or description.network)


def at_resolution(
    config: DistillConfig,
    teacher: ModelDescription,
    folder: Path,
    found: Components = NO_COMPONENTS,
) -> ModelDescription:
    """The teacher's network at the config's size; ``found`` are its components where they are
    known. Raises UserError for a size that it cannot have.
    """
    if not config.teacher.resolution:
        return teacher
    return sized(config, teacher, components_of(config, teacher, folder, found).vae)


def teacher_at_resolution(
    config: DistillConfig,
    loaded: tuple[nn.Module, ModelDescription],
    folder: Path,
    found: Components = NO_COMPONENTS,
) -> tuple[nn.Module, ModelDescription]:
    """The teacher that a folder holds, loaded, at the config's size. Raises UserError."""
    teacher, own = loaded
    description = at_resolution(config, own, folder, found)
    return (teacher if description == own else rebuilt(teacher, description)), description


def drops_out(config: DistillConfig, description: ModelDescription) -> bool:
    """Whether any dropout mask is drawn in training."""
    network = network_of(config, description).network
    return any(float(network.get(name) or 0) > 0 for name in ("dropout", "label_dropout"))


@dataclass(frozen=True)
class Data:
    """The data set as a run sees it, and the empty prompt's embedding where there is text."""

    source: DataSource
    null_text: Tensor | None = None


def data_of(
    config: DistillConfig,
    teacher: ModelDescription,
    components: Components = NO_COMPONENTS,
    device: torch.device | str = "cpu",
    world_size: int = 1,
    rank: int = 0,
    tell: Tell | None = None,
) -> Data:
    """Opens the data set, and the teacher's text encoder where it reads text.

    ``components`` are the teacher's. A prepared set is read for this rank of ``world_size``;
    ``tell`` hears of its storage, and of prompts that have no room on the disk.
    """
    family = family_of(teacher.family)
    precision = precision_beside(config.training.precision, device)
    text = embed = None
    if family.reads_text:
        text = family.load_text(components.text, device, precision, teacher.network)
        embed = text.embed
    shape, label_dim = family.shape(teacher.network), family.label_dim(teacher.network)
    if not is_prepared(config.data):
        opened = open_source(config.data, shape, embed)
        return Data(
            unlabelled(opened, label_dim), prepared_null(text, opened.prompts or (), 0, tell)
        )
    reading = Reading(
        config.group_plan(world_size),
        rank,
        config.training.seed,
        objective_spec(config.objective.name).reads_images,
        config.data.window,
        config.data.xflip,
        config.resources.data_cache_gib,
        config.training.images,
        tell or untold,
    )
    encoder = (
        None
        if components.text is None
        else partial(text_encoder_sha256, components.text, teacher.family)
    )
    latents = family.latents
    standard = None if latents is None else partial(latents.standard, components.vae)
    source = open_prepared(config.data, shape, embed, encoder, standard, reading)
    more = 0 if source.own_text else len(source)  # its prompts are read as they come
    return Data(unlabelled(source, label_dim), prepared_null(text, (), more, tell))


def prepared_null(
    text: TextEmbeddings | None, prompts: Sequence[str], more: int, tell: Tell | None
) -> Tensor | None:
    """The empty prompt's embedding [T, D], once all these prompts, and ``more``, are prepared.

    Not before: of the processes of a machine that prepare, one loads the encoders; of those that
    ask for an embedding, each does.
    """
    if text is None:
        return None
    text.prepare(prompts, more, tell or say_aside)
    return text.null()


def bare_source(config: DistillConfig, teacher: ModelDescription) -> DataSource:
    """The data set to be looked at: without a text encoder, and nothing is read ahead.

    Raises UserError.
    """
    family, data = family_of(teacher.family), config.data
    shape = family.shape(teacher.network)
    opened = open_prepared(data, shape) if is_prepared(data) else open_source(data, shape)
    return unlabelled(opened, family.label_dim(teacher.network))


def unlabelled(source: DataSource, label_dim: int) -> DataSource:
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
    teacher = resolve_teacher(config)
    description = at_resolution(config, describe(teacher), teacher)
    if with_data:
        check_teacher(config, description, teacher)
    if adapter := run_adapter(config, description.family):
        base_precision(config, description.family)
        check_adapted_layers(config, description, adapter)
    if adapter and with_data:
        notes = {**description.notes, BASE: base_sha256(teacher)}
        description = dataclasses.replace(description, notes=notes)
    components = components_of(config, description, teacher)
    if with_data:
        check_latents(config, description, components)
    source = config.teacher.initial_generator
    if not source:
        return Start(teacher, description, None, components)
    is_run = is_generator_address(source)
    generator = find_generator(source).absolute() if is_run else resolve_source(source)
    start = describe(generator, like=description)
    check_generator(source, description, start)
    of_generator = adapter if config.adapter.of("generator") else None
    held = noted_base(config, description.family)
    check_start(source, start, of_generator, description, held)
    if of_generator is None and start.adapter is not None and other_base(start, teacher):
        noted_teacher(start, f"teacher.initial_generator {source}")  # is looked for before a start
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
    missing = family_of(teacher.family).reads_text and found.text is None
    if found != NO_COMPONENTS and found.are_here and not missing:
        return found
    chosen = config.teacher
    flags = "--teacher.text-encoder", "--teacher.vae"
    return find_components(teacher, folder, Named(chosen.text_encoder, chosen.vae, *flags))


def check_latents(config: DistillConfig, teacher: ModelDescription, components: Components) -> None:
    """Raises UserError where latents are read, and nothing says how the teacher wants them."""
    latents = family_of(teacher.family).latents
    reads_images = objective_spec(config.objective.name).reads_images
    if reads_images and is_prepared(config.data) and latents is not None:
        source = bare_source(config, teacher)
        if isinstance(source, PreparedSource) and source.manifest.kind == "latents":
            latents.standard(components.vae)


def is_generator_address(source: str) -> bool:
    """Whether it may name a run or a checkpoint: a folder, or s3:// without a weights file."""
    if is_elsewhere(source):
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
    family = family_of(teacher.family)
    if family.noise.kind != config.schedule.kind:
        raise UserError(
            f"schedule.kind is {config.schedule.kind!r}, but teacher {config.teacher.source} is "
            f"{called(teacher.family)}: it needs {family.noise.kind!r}"
        )
    check_network(config, teacher)
    family.noise.check(config.schedule, folder)
    check_data(config, teacher)


def check_network(config: DistillConfig, teacher: ModelDescription) -> None:
    """Raises UserError where the teacher's network lacks what the config asks of it."""
    family, objective = family_of(teacher.family), config.objective
    kappas = {f"kappa{i}": getattr(objective, f"kappa{i}") for i in (1, 2, 3, 4)}
    guided = [name for name, kappa in kappas.items() if kappa != 1]
    needs = objective_spec(objective.name).needs
    if not family.reads_text and (guided or "text" in needs):
        what = f"objective is {objective.name}"
        if guided:
            what = f"objective.{guided[0]} is {kappas[guided[0]]}"
        raise UserError(
            f"{what}, but teacher {config.teacher.source} reads no text to be guided by"
        )
    if config.teacher.dropout >= 0 and family.with_dropout(teacher.network, 0) is None:
        raise UserError(f"teacher.dropout: {config.teacher.source} has no dropout to set")
    what = "objective.logvar" if objective.logvar else f"objective {objective.name}"
    if (objective.logvar or "log-variance head" in needs) and not family.logvar(teacher.network):
        raise UserError(
            f"{what} needs a log-variance head; teacher {config.teacher.source} has none"
        )
    if "several steps" in needs and objective.num_steps < 2:
        raise UserError(
            f"objective {objective.name} needs a generator of several steps: set "
            "--objective.num-steps to 2 or more"
        )
    if objective.augment and not family.augment_dim(teacher.network):
        raise UserError(
            f"objective.augment is {objective.augment}, but teacher {config.teacher.source} reads "
            "no augmentation labels: the generator would learn augmented images"
        )
    if objective_spec(objective.name).discriminator and not family.adversarial_features:
        raise UserError(
            f"objective {objective.name} needs adversarial features; teacher "
            f"{config.teacher.source} is a {teacher.family} network, which gives none"
        )
    if config.training.precision not in family.precisions:
        raise UserError(
            f"training.precision is {config.training.precision}; {teacher.family} networks compute "
            f"in {', '.join(family.precisions)}"
        )


def check_data(config: DistillConfig, teacher: ModelDescription) -> None:
    """Raises UserError where the teacher has other images, classes or text than the data set."""
    family, data = family_of(teacher.family), config.data
    shape, label_dim = family.shape(teacher.network), family.label_dim(teacher.network)
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
            flag = ""
            if what == "pixels a side" and takes_sizes(teacher):
                flag = ", or set --teacher.resolution to the size of its pictures"
            raise UserError(
                f"teacher {config.teacher.source} has {own} {what}, data set "
                f"{data.name!r} has {needed}: choose a teacher of this data{flag}"
            )
    if not family.reads_text and data.name in ("prompts", "emoji"):
        raise UserError(
            f"teacher {config.teacher.source} reads no text, data set {data.name!r} has prompts"
        )
    if family.reads_text and not source.has_prompts:
        raise UserError(
            f"teacher {config.teacher.source} reads text, data set {data.name!r} has none"
        )
    if objective_spec(config.objective.name).reads_images:
        check_pixels(config, teacher, source)


def check_pixels(config: DistillConfig, teacher: ModelDescription, source: DataSource) -> None:
    """Raises UserError where an adversarial run gets no images that its networks can read."""
    data = config.data
    if not source.has_images:
        without = f"use objective.name {' or '.join(without_images(family_of(teacher.family)))}"
        how = f"{without}, or a data set with images (digits, emoji)"
        if data.name in (*LABELS_ONLY, "prepared"):
            how = (
                "sid-ray data prepare SRC DST prepares them, and --data.source DST reads them; "
                f"or {without}"
            )
        raise UserError(
            f"objective {config.objective.name} needs real images; data set {data.name!r} gives "
            f"none here: {how}"
        )
    latents = isinstance(source, PreparedSource) and source.manifest.kind == "latents"
    if latents and family_of(teacher.family).latents is None:
        raise UserError(
            f"data.source {data.source} holds latents; teacher {config.teacher.source} is of pixels"
        )


def without_images(family: Family) -> list[str]:
    """The objectives that such a teacher can be distilled with, and no real images."""
    return [
        spec.name
        for spec in objective_specs()
        if not spec.reads_images and ("text" not in spec.needs or family.reads_text)
    ]


def generator_description(config: DistillConfig, teacher: ModelDescription) -> ModelDescription:
    """What the generator's folder says: the teacher's network, read in one step or a few."""
    notes = {"recipe": config.recipe, "teacher": config.teacher.source, "data": config.data.name}
    for part in ("text_encoder", "vae"):
        if named := getattr(config.teacher, part):
            notes[part] = named
    if commit := teacher.notes.get("commit"):  # of the hub: the address may name a branch
        notes["teacher_commit"] = commit
    if lora := teacher.notes.get("lora"):
        notes["lora"] = lora
    if base := teacher.notes.get(BASE):
        notes[BASE] = base
    one_step = family_of(teacher.family).noise.one_step(config.schedule)
    if config.objective.num_steps > 1:
        one_step["num_steps"] = config.objective.num_steps
    adapter = run_adapter(config, teacher.family) if config.adapter.of("generator") else None
    said = None
    if adapter is not None:
        said = adapter.to_json() | {"base": noted_base(config, teacher.family)}
    return ModelDescription(teacher.family, teacher.network, one_step, notes, said)


def generation_of(generator: ModelDescription) -> tuple[Schedule, int]:
    """(noise levels, number of evaluations) of a generator. Raises UserError."""
    return levels_of(family_of(generator.family).noise, generator.one_step or {})
