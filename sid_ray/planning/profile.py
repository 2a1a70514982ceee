"""What ``sid-ray bench`` found fastest on a kind of machine, kept for later runs there.

    CACHE/profiles/MACHINE-KEY.json

A profile is found again by what it was measured for: the GPU's name and how many of them, the
network, the precision of its body, what the objective computes, and the group size. It also says
which versions of torch, DeepSpeed and sid_ray it was measured with: what is fastest changes with
these, so that a profile of other versions is not used, and that is said.

Every node of a run computes with the driver's choice, so it is the driver's cache that counts;
SID_RAY_CACHE on a disk that machines share lets one measurement serve them all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sid_ray import __version__
from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.ranges import checked, of_json
from sid_ray.config.sections import ResourcesConfig
from sid_ray.errors import UserError
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.durable import locked, replace_file
from sid_ray.weights.description import ModelDescription

KEY_DIGITS = 12
MEASURED_WITH = ("torch", "deepspeed")  # and sid_ray itself
SETTINGS = (
    "micro_batch",
    "zero_stage",
    "overlap_comm",
    "memory_format",
    "attention",
    "activation_checkpointing",
    "compile",
)
"""The fields of the resources section that a profile may set: what bench tries, in its order."""


@dataclass(frozen=True)
class Profile:
    """The fastest settings that were measured for one workload on one kind of machine.

    Args:
        machine: the GPU's name as CUDA says it, or "cpu".
        gpus: how many of them worked together; on a CPU, how many processes.
        network: ``network_key`` of the network's description.
        precision: of the networks' bodies, as in training.precision.
        batch: ``batch_key`` of the config: what an iteration computes, and in which groups.
        settings: fields of the resources section, of ``SETTINGS``.
        seconds: an iteration of the config's batch size, with these settings.
        peak_gib: the most memory that a GPU, or a process, held.
        versions: of the packages that it was measured with.
    """

    machine: str
    gpus: int
    network: str
    precision: str
    batch: str
    settings: dict[str, Any]
    seconds: float
    peak_gib: float
    versions: dict[str, str]

    @property
    def flags(self) -> str:
        """The settings as a person types them."""
        return " ".join(flag_of(name, value) for name, value in self.settings.items())


def flag_of(name: str, value: object) -> str:
    """A field of the resources section as it is typed: --resources.zero-stage 1."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--resources.{words if value else f'no-{words}'}"
    return f"--resources.{words} {value}"


def versions_here() -> dict[str, str]:
    """Of what a profile depends on; nothing of it is loaded."""
    return {name: metadata.version(name) for name in MEASURED_WITH} | {"sid_ray": __version__}


def network_key(description: ModelDescription) -> str:
    """A network's family, and its arguments as a short checksum."""
    arguments = json.dumps(dict(description.network), sort_keys=True)
    return f"{description.family}-{hashlib.sha256(arguments.encode()).hexdigest()[:KEY_DIGITS]}"


def batch_key(config: DistillConfig) -> str:
    """What an iteration computes: the objective, evaluations of the generator, the group size.

    The batch size is not part of it: a larger one has more passes of the same kind.
    """
    objective = config.objective
    group = config.training.group_size
    return f"{objective.name}, {objective.num_steps} steps, groups of {group}"


def profile_path(config: DistillConfig, network: str, machine: str, gpus: int) -> Path:
    """Where the profile of such a run lies, whether or not it is there."""
    measured = (machine, gpus, network, config.training.precision, batch_key(config))
    return profile_file(*measured)


def profile_file(machine: str, gpus: int, network: str, precision: str, batch: str) -> Path:
    parts = json.dumps([machine, gpus, network, precision, batch])
    key = hashlib.sha256(parts.encode()).hexdigest()[:KEY_DIGITS]
    name = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")[:60]
    return cache_folder() / "profiles" / f"{name}-{key}.json"


def write_profile(profile: Profile) -> Path:
    """Keeps a profile, in the place of an earlier one for the same; where it lies now.

    A reader finds the old one or the new one, whoever else writes. Raises OSError.
    """
    path = profile_file(
        profile.machine, profile.gpus, profile.network, profile.precision, profile.batch
    )
    with locked(path):
        replace_file(path, json.dumps(dataclasses.asdict(profile), indent=2) + "\n", folder=True)
    return path


def read_profile(
    config: DistillConfig,
    description: ModelDescription,
    machine: str,
    gpus: int,
    tell: Callable[[str], None] = lambda text: None,
) -> Profile | None:
    """The profile that was measured for this run's workload on this kind of machine, or None.

    ``description`` is the teacher's network. ``tell`` hears, in one line, of a profile that is
    there and cannot be used: of other versions, or damaged. Never raises for what a file holds.
    """
    path = profile_path(config, network_key(description), machine, gpus)
    try:
        profile = profile_of(path.read_text(), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UserError, ValueError) as error:
        tell(f"the profile {path} is not used: {error}; sid-ray bench writes it again")
        return None
    other = other_versions(profile.versions, versions_here())
    if other:
        tell(f"the profile {path} is not used, as it was measured with {other}: sid-ray bench "
             "measures again")  # fmt: skip
        return None
    return profile


def other_versions(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """'torch 2.12 (here 2.13)' for each package that has another version; '' for none."""
    names = sorted(then.keys() | now.keys())
    return ", ".join(
        f"{name} {then.get(name, 'unknown')} (here {now.get(name, 'unknown')})"
        for name in names
        if then.get(name) != now.get(name)
    )


def profile_of(text: str, source: str) -> Profile:
    """A profile from its JSON. Raises UserError for anything else, and for settings that the
    resources section would not take.
    """

    def unknown(name: str) -> UserError:
        return UserError(f"{name} is no part of a profile")

    profile = of_json(Profile, text, source, unknown)
    for name in profile.settings:
        if name not in SETTINGS:
            raise UserError(f"{source}: settings.{name} is not set by a profile")
    checked(dataclasses.replace(ResourcesConfig(), **profile.settings))
    return profile
