"""Traces of activations, kept on this machine: one takes seconds, and every start needs it.

    CACHE/traces/KEY.json

The key is a checksum of all that a trace depends on: the network, what the losses compute, the
precision, what is recomputed or shared out, torch's version, and the code of sid_ray itself. A file
that cannot be read or written costs the seconds, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

import sid_ray
from sid_ray.config.distill_config import DistillConfig
from sid_ray.planning import trace_memory
from sid_ray.planning.spec_networks import plain_base
from sid_ray.planning.trace_memory import Traced
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.durable import replace_file
from sid_ray.weights.folder import ModelDescription

TRACED = (
    "teacher.dropout", "training.precision", "training.group_size", "adapter.rank",
    "adapter.targets", "adapter.roles",
)  # fmt: skip # beside the objective and its noise levels
CODE = (
    "denoisers", "diffusion", "objectives", "planning/spec_networks.py", "planning/trace_memory.py",
    "types.py",
)  # fmt: skip


def kept_trace(
    config: DistillConfig, description: ModelDescription, sizes: Sequence[int]
) -> Traced:
    """As trace_memory's on the meta device; of an earlier process where it was the same."""
    path = cache_folder() / "traces" / f"{trace_key(config, description, sizes)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        points = json.loads(path.read_text())
        return Traced({int(n): {p: int(b) for p, b in one.items()} for n, one in points.items()})
    found = trace_memory.trace(config, description, sizes)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(found.points) + "\n", sync=False)
    return found


def trace_key(config: DistillConfig, description: ModelDescription, sizes: Sequence[int]) -> str:
    """A checksum of what a trace depends on."""
    fields = {
        name: value
        for name, value in config.identity().items()
        if name.startswith(("objective.", "schedule.")) or name in TRACED
    }
    chosen = config.chosen
    parts = [
        description.family, dict(description.network), fields, list(sizes),
        plain_base(config, description.family),
        chosen.activation_checkpointing, chosen.teacher_zero_stage,
        torch.__version__, code_key(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@cache
def code_key() -> str:
    """A checksum of the code that makes a trace: a version's number says less in a checkout."""
    package, found = Path(sid_ray.__file__).parent, hashlib.sha256()
    for name in CODE:
        place = package / name
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()
