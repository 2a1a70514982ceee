"""What a choice of resources is made of, on CPUs and on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sid_ray.config.distill_config import DistillConfig
from sid_ray.planning.memory import Network
from sid_ray.planning.profile import Profile
from sid_ray.planning.sizes import Sizes
from sid_ray.training.adapter_settings import base_precision

ON_ANY_SIZE = ("compile", "memory_format", "attention", "overlap_comm")  # of a profile


@dataclass(frozen=True)
class ResourceChoice:
    """A config in which nothing is auto, and the line that says what was chosen and why.

    ``sizes``: what another number of workers takes instead.
    """

    config: DistillConfig
    line: str
    sizes: Sizes = ()


@dataclass(frozen=True)
class Workers:
    """How many there are now, may be at most, and shall be at least, 0 for as few as fit."""

    now: int
    most: int
    least: int


def people(workers: Workers, kind: str) -> str:
    """'2 workers, a CPU each'."""
    if workers.now == workers.most:
        several = f"{workers.most} workers, a {kind} each"
        return several if workers.most > 1 else f"1 worker on a {kind}"
    return f"{workers.now} of up to {workers.most:,} workers, a {kind} each"


def networks_in_words(config: DistillConfig, network: Network, family: str) -> str:
    """'three networks of 701,857 parameters': what a run trains, and beside what."""
    if not config.adapter.rank:
        return f"three networks of {network.parameters:,} parameters"
    each = next(iter(network.adapters.values()))
    kind = f"of rank {config.adapter.rank} with {each:,} parameters"
    over = f"the teacher's {network.parameters:,}, held once in {base_precision(config, family)}"
    if config.adapter.roles == "both":
        return f"two adapters {kind} each over {over}"
    roles = ("fake score", "generator")
    adapted, whole = roles if config.adapter.roles == "fake" else roles[::-1]
    return f"the {adapted} as an adapter {kind} over {over}, the {whole} whole"


def by(profile: Profile | None) -> str:
    return "; as sid-ray bench measured here" if profile else ""


def measured_fields(profile: Profile, workers: int) -> dict[str, Any]:
    """What of a profile holds for so many workers: all where they were as many."""
    same = profile.gpus == workers
    return {n: value for n, value in profile.settings.items() if same or n in ON_ANY_SIZE}
