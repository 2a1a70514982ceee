"""``auto``: what a run takes of the machines that are there. The one place where it is resolved.

    choose_resources(config, description, machine, text, profile) -> ResourceChoice
    choice.config     everything concrete, for the workers that there are now
    choice.sizes      what another number of workers takes instead (sizes.py looks it up)
    choice.line       one line: what was chosen, and why

Pure arithmetic over traced activations: no Ray, no GPU, the same on every machine. What a person
named stays; only what is ``auto`` is chosen:

1. GPUs where there are any, one worker each, as many as there are groups.
2. Of the ZeRO stages, each with the largest micro-batch of whole groups that fits, without and
   with activation checkpointing, what costs least in sending, in passes, and in arithmetic that is
   done again (fit.PASS and fit.AGAIN have the prices); of equals what needs less memory.
3. Offloading only where nothing else fits, activation checkpointing included. It moves 8 bytes of
   each role's parameters over PCIe in each update, and at stages 2 and 3 about 8 more in every
   pass (host_memory.py), which are priced too (fit.PCIE): fewer and larger passes, or stage 1.
4. compile, overlap_comm, memory format and attention as PLAIN has them, until sid-ray bench has
   measured this workload on this kind of GPU: then what it found, micro-batch and stage included.

A run that may shrink and grow is settled for each number of workers by itself: at a stage and a
micro-batch that fill 16 GPUs it would not fit on 8. State is read at any stage, so that this costs
nothing but the look-up. A GPU is filled to MARGIN; only where nothing fits so, to the brim.
"""

from __future__ import annotations

from collections.abc import Callable

from sid_ray.config.auto import AUTO
from sid_ray.config.chosen import PLAIN, left_open
from sid_ray.config.distill_config import DistillConfig, replace, stages_for
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.planning.choice import ResourceChoice, Workers, by, measured_fields, people
from sid_ray.planning.fit import Planner, micro_batch_of
from sid_ray.planning.machine import Machine
from sid_ray.planning.memory import RESERVE_GIB
from sid_ray.planning.on_gpus import OnGpus
from sid_ray.planning.profile import Profile, read_profile
from sid_ray.planning.sizes import with_fields
from sid_ray.recipes.known_networks import text_bytes
from sid_ray.training.assemble import check_weights
from sid_ray.weights.description import ModelDescription

# A CPU's pass: half as many images took 1.3 times the seconds on small networks (docs/speed.md).
# Large images fill a core's caches alone, and their activations its memory.
CPU_IMAGES, CPU_VALUES = 32, 32 * 3 * 16 * 16


def choose_resources(
    config: DistillConfig,
    description: ModelDescription,
    machine: Machine,
    text: int = 0,
    profile: Profile | None = None,
    reserve_gib: float = RESERVE_GIB,
) -> ResourceChoice:
    """What the run takes of a machine.

    Args:
        description: the teacher's network.
        text: bytes of its text encoder.
        profile: what was measured for this run on this kind of machine.
        reserve_gib: of a GPU, for what no tensor is.

    Raises UserError in one line where the run cannot be there, with what does fit.
    """
    check_weights(config, description.family)
    on_gpu = wants_gpus(config, machine)
    config = replace(config, resources__use_gpu=on_gpu)
    if config.resources.deterministic:  # whatever a profile has measured to be faster
        config = replace(config, resources__attention="sdpa")
    workers = worker_numbers(config, machine, on_gpu)
    if on_gpu:
        return OnGpus(config, Planner(description, text), machine, profile, reserve_gib).choose(
            workers
        )
    return on_cpus(config, description, machine, workers, profile)


def choose_measured(
    config: DistillConfig,
    description: ModelDescription,
    machine: Machine,
    tell: Callable[[str], None] = lambda text: None,
    reserve_gib: float = RESERVE_GIB,
) -> ResourceChoice:
    """``choose_resources`` with what bench has measured for this run on such a machine.

    ``tell`` hears of a profile that is there and cannot be used. Raises UserError like it.
    """
    on_gpu = wants_gpus(config, machine)
    name = machine.gpu if on_gpu else "cpu"
    now = worker_numbers(config, machine, on_gpu).now
    profile = read_profile(config, description, name, now, tell) if name else None
    return choose_resources(config, description, machine, text_bytes(config), profile, reserve_gib)


def wants_gpus(config: DistillConfig, machine: Machine) -> bool:
    asked = config.resources.use_gpu
    return machine.has_gpus if asked == AUTO else asked


def worker_numbers(config: DistillConfig, machine: Machine, on_gpu: bool) -> Workers:
    """Raises UserError where there is no room for them and none will come."""
    least, named = config.resources.min_workers, config.resources.num_workers
    groups, offered = config.group_plan(1).num_groups, machine.offers(on_gpu)
    kind = "GPU" if on_gpu else "CPU"
    if machine.fixed:
        lacking = offered < (1 if named == AUTO else named) if on_gpu else False
        if lacking:
            raise UserError(no_room(config, machine, offered))
        most = min(groups, max(offered, 1)) if named == AUTO else named
        return Workers(most, most, most)
    can_come = max(machine.can_hold.get(kind, groups), offered, 1)
    most = min(groups, can_come) if named == AUTO else named
    if least != AUTO and least > most:
        raise UserError(
            f"resources.min_workers is {least}, and the cluster has room for {most} workers at "
            f"most, a {kind} each: lower --resources.min-workers"
        )
    return Workers(min(offered, most), most, 0 if least == AUTO else least)


def no_room(config: DistillConfig, machine: Machine, offered: int) -> str:
    """Why a fixed machine cannot hold a run on GPUs."""
    gpus = int(sum(node.gpus for node in machine.nodes))
    if not gpus:
        why = machine.no_gpu or "no GPU is here"
        return (
            f"{config.run_name} asks for GPUs (resources.use_gpu): {why}; join a cluster with "
            "RAY_ADDRESS, or give --resources.no-use-gpu"
        )
    named = config.resources.num_workers
    wanted = 1 if named == AUTO else named
    beside = machine.taken.get("GPU", 0)
    who = f"{wanted} worker{'s' * (wanted != 1)}"
    if beside:
        taken = f"the evaluator (evaluation.resources GPU={beside:g})"
        return (
            f"{who} and {taken} need {wanted + beside:g} GPUs, here are {gpus}: lower "
            "--resources.num-workers, or leave --evaluation.resources empty"
        )
    return f"{who} need {wanted} GPUs, here are {gpus}: lower --resources.num-workers"


# On CPUs ------------------------------------------------------------------------------------------


def cpu_micro_batch(config: DistillConfig, description: ModelDescription) -> int:
    """Images in a pass: whole groups, as many as small images make cheaper; at least one group."""
    size, values = config.training.group_size, 1
    for extent in family_of(description.family).shape(description.network):
        values *= extent
    images = min(CPU_IMAGES, CPU_VALUES // values, config.training.batch_size)
    return size * max(1, images // size)


def cpu_stage(config: DistillConfig) -> int:
    """The stage that CPUs take, or of those that the training's state can have, the least."""
    fitting, plain = stages_for(config.training), PLAIN["zero_stage"]
    return plain if plain in fitting else fitting[0]


def on_cpus(
    config: DistillConfig,
    description: ModelDescription,
    machine: Machine,
    workers: Workers,
    profile: Profile | None,
) -> ResourceChoice:
    """Traces nothing: a start takes no longer than without auto."""
    now = max(workers.now, 1)
    settled = {
        **PLAIN,
        "zero_stage": cpu_stage(config),
        "num_workers": workers.most,
        "min_workers": workers.least or 1,
        "micro_batch": cpu_micro_batch(config, description),
        **(measured_fields(profile, now) if profile else {}),
    }
    chosen = with_fields(config, {name: settled[name] for name in left_open(config.resources)})
    chosen.check()
    micro = micro_batch_of(chosen)
    groups = micro / config.training.group_size
    packed = f"{groups:g} groups in a pass" if groups > 1 else "a group in a pass"
    if groups < 1:
        packed = f"{1 / groups:g} passes a group"
    stage = f", ZeRO-{chosen.resources.zero_stage}" if workers.most > 1 else ""
    line = f"{people(workers, 'CPU')}{stage}, micro-batch {micro} ({packed}){by(profile)}"
    return ResourceChoice(chosen, line)
