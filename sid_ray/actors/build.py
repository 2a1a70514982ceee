"""What a worker is made of: its three networks as engines, and the way of its checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sid_ray.checkpoint.find import find_generator
from sid_ray.checkpoint.writer import Spool
from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.adapters import hold_as_base, start_adapter, with_adapter
from sid_ray.denoisers.attention import set_attention
from sid_ray.denoisers.compiled import keep_compiled, set_compile
from sid_ray.denoisers.convolution import freeze
from sid_ray.denoisers.precondition import set_memory_format, set_precision
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.distributed.deepspeed_role import (
    DeepSpeedRole,
    init_deepspeed,
    needs_deepspeed,
    shard_frozen,
)
from sid_ray.distributed.fragments import ShardedAverage
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.planning.sizes import Sizes
from sid_ray.storage.fence import OPEN, Fence
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.schemes import scheme_of
from sid_ray.storage.store import Store
from sid_ray.training.adapter_settings import base_precision, run_adapter
from sid_ray.training.allocator import keep_freed_memory
from sid_ray.training.assemble import (
    adam_of,
    is_generator_address,
    network_of,
    rules_of,
    teacher_at_resolution,
)
from sid_ray.weights.base import BASE
from sid_ray.weights.description import NO_COMPONENTS, Components
from sid_ray.weights.folder import ModelDescription, load_model
from sid_ray.weights.networks import rebuilt
from sid_ray.weights.over_base import start_tensors
from sid_ray.weights.sources import resolve_source
from sid_ray.weights.teacher import is_made_here, resolve_teacher

TrainedRole = TorchRole | DeepSpeedRole
GENERATOR = "generator"
TRAINED = (GENERATOR, "fake_score")


@dataclass(frozen=True)
class WorkerSettings:
    """What the driver hands to every worker. All paths are absolute."""

    config: str  # in which nothing of the resources is auto
    run_folder: str  # a path that all nodes see, or s3://
    teacher_folder: str
    initial_generator: str
    local_folder: str  # for checkpoints on each node's own disk; empty for the temporary folder
    run_key: str
    own_scaling: bool
    tracker: Any
    evaluator: Any
    fence: Fence = OPEN  # what of the run counts under the driver's lease
    began_from: str = ""  # another run's checkpoint, where this run has none of its own
    components: Components = NO_COMPONENTS  # of the teacher: its text encoder and VAE
    seat: Any = None  # on a joined cluster the driver's (proof.py)
    contents: Mapping[str, Any] = field(default_factory=dict)  # what the driver's host has
    sizes: Sizes = ()  # resources that other numbers of workers take
    base_sha256: str = ""  # of the teacher, where adapters lie over it


@dataclass(frozen=True)
class BuiltNetworks:
    """The three roles, and what the teacher is."""

    trainee: Trainee
    roles: dict[str, TrainedRole]
    description: ModelDescription


def on_this_node(config: DistillConfig, settings: WorkerSettings) -> WorkerSettings:
    """The settings with networks that are on this node: what the driver fetched may be on its own.

    Makes the run's S3 server the one of this process. Raises UserError.
    """
    set_endpoint(config.storage.endpoint_url, config.storage.region)
    teacher = teacher_here(config, settings.teacher_folder)
    generator = settings.initial_generator
    source = config.teacher.initial_generator
    if generator and scheme_of(source).is_fetched and not Path(generator).exists():
        found = find_generator(source) if is_generator_address(source) else resolve_source(source)
        generator = str(found)
    return dataclasses.replace(settings, teacher_folder=teacher, initial_generator=generator)


def teacher_here(config: DistillConfig, folder: str) -> str:
    """The teacher's folder on this node: fetched, unpacked and merged where only the driver's node
    has it.
    """
    is_made = scheme_of(config.teacher.source).is_fetched or is_made_here(config, folder)
    return str(resolve_teacher(config)) if is_made and not Path(folder).exists() else folder


def build_networks(
    config: DistillConfig,
    settings: WorkerSettings,
    world_size: int,
    device: torch.device,
    loaded: tuple[nn.Module, ModelDescription] | None = None,
) -> BuiltNetworks:
    """Teacher, fake score and generator on this rank, all with the teacher's weights.

    ``loaded`` is a teacher in host memory, in place of that of the settings' folder.
    """
    if device.type == "cpu":
        keep_freed_memory()
    teacher, given, description = teacher_of_run(config, settings, loaded)
    resources = config.chosen
    if resources.compile != "off":
        keep_compiled(local_disk(settings) / "compiled")
    plan, rules = config.group_plan(world_size), rules_of(config, description.family)
    sharing = needs_deepspeed(resources, world_size)
    if sharing:
        init_deepspeed()

    def role(name: str, network: nn.Module) -> TrainedRole:
        network.requires_grad_(True)
        if not sharing:
            network.to(device)
        set_compile(network, resources.compile)
        adam, stage, passes = adam_of(config, name), resources.stage_of(name), plan.passes_a_rank
        offload, overlap = resources.offload_optimizer, resources.overlap_comm
        built: TrainedRole = (
            DeepSpeedRole(network, adam, stage, passes, rules[name], offload, overlap)
            if sharing
            else TorchRole(network, adam, rules[name])
        )
        built.module.requires_grad_(False)  # a phase makes it trainable
        return built

    # Out of host memory and one after the other, the teacher last: a network's copy there is shared
    # by all, and on the device there is one network at most that is not yet as it is kept. Adapters
    # come after it, over what of it is on the device.
    starts = {GENERATOR: teacher, "fake_score": teacher}
    adapters = [name for name in starts if config.adapter.of(name)]
    if GENERATOR not in adapters:
        starts[GENERATOR] = initial_generator(settings, teacher, given)
    whole = [name for name in starts if name not in adapters]
    roles = {name: role(name, copied(starts.pop(name), device)) for name in whole}
    set_compile(teacher, resources.compile)  # a copy of it would not be
    if adapters:
        hold_as_base(teacher, base_precision(config, description.family), device)
        for name in adapters:
            roles[name] = role(name, adapter_network(teacher, config, name, settings, description))
    elif resources.teacher_zero_stage == 3 and world_size > 1:
        teacher = shard_frozen(teacher, config.training.weights == "bfloat16")
    else:
        freeze(teacher, device)
    generator = roles["generator"]
    trainee = Trainee(teacher, roles["fake_score"], generator, ShardedAverage(generator))
    return BuiltNetworks(trainee, roles, description)


def teacher_of_run(
    config: DistillConfig,
    settings: WorkerSettings,
    loaded: tuple[nn.Module, ModelDescription] | None,
) -> tuple[nn.Module, ModelDescription, ModelDescription]:
    """The teacher in host memory, set up to compute as the config says; what its file is of; and
    the network that is trained.
    """
    folder = Path(settings.teacher_folder)
    if loaded is None:
        loaded = teacher_at_resolution(config, load_model(folder), folder, settings.components)
    teacher, given = loaded
    description = network_of(config, given)
    if description != given:
        teacher = rebuilt(teacher, description)
    if settings.base_sha256:
        notes = {**description.notes, BASE: settings.base_sha256}
        description = dataclasses.replace(description, notes=notes)
    set_precision(teacher, config.training.precision)
    set_memory_format(teacher, config.chosen.memory_format)
    set_attention(teacher, config.chosen.attention)
    set_recompute(teacher, config.chosen.activation_checkpointing)
    return teacher, given, description


def adapter_network(
    base: nn.Module,
    config: DistillConfig,
    role: str,
    settings: WorkerSettings,
    description: ModelDescription,
) -> nn.Module:
    """A role's network over the base: its adapter changes nothing yet, or is that of SiD2A's
    one-step generator.
    """
    adapter = run_adapter(config, description.family)
    assert adapter is not None
    network = with_adapter(base, adapter)
    if role == GENERATOR and settings.initial_generator:
        start, teacher = Path(settings.initial_generator), Path(settings.teacher_folder)
        network.load_state_dict(start_tensors(start, description, teacher, adapter=True))
    else:
        start_adapter(network, config.training.seed, TRAINED.index(role))
    return network


def copied(network: nn.Module, device: torch.device) -> nn.Module:
    """The network once more, to be moved to the device: until then its weights are the same memory.

    On a CPU, where nothing is moved, in memory of its own.
    """
    if device.type == "cpu":
        return copy.deepcopy(network)
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, dict[int, Any](shared))


def initial_generator(
    settings: WorkerSettings, teacher: nn.Module, description: ModelDescription
) -> nn.Module:
    """The network the generator starts as: the teacher, or SiD2A's one-step generator."""
    if not settings.initial_generator:
        return teacher
    folders = Path(settings.initial_generator), Path(settings.teacher_folder)
    start = start_tensors(folders[0], description, folders[1], adapter=False)
    network = copy.deepcopy(teacher)
    own = network.state_dict()
    # The two compute the same (assemble.check_generator). What is in one of them alone, or has
    # another size, a generator never uses: the log-variance head, the layer of augmentation labels.
    fitting = {
        name: value
        for name, value in start.items()
        if name in own and own[name].shape == value.shape
    }
    network.load_state_dict(own | fitting)
    return network


def local_disk(settings: WorkerSettings) -> Path:
    """A folder on this node's own disk, for all runs."""
    return Path(settings.local_folder or Path(tempfile.gettempdir()) / "sid_ray")


def build_spool(config: DistillConfig, settings: WorkerSettings, group: Any) -> Spool:
    """This rank's spool. A collective."""
    run, tracker = Store.at(settings.run_folder), settings.tracker
    return Spool(
        local_disk(settings) / settings.run_key,
        run,
        config.output.keep_checkpoints,
        tell=lambda text: tracker.event.remote(text),
        on_stored=lambda images_seen: tracker.stored.remote(images_seen),
        group=group,
        fence=settings.fence,
    )
