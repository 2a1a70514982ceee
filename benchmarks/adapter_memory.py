"""What adapters take of memory and disk beside whole networks: one table a recipe.

    python -m benchmarks.adapter_memory emoji-lsg --changes adapter.rank=16
    python -m benchmarks.adapter_memory sd15-lsg-kappa2 --changes adapter.rank=64 --on-paper

Counted are the bytes of all tensors that exist after an iteration on one worker of plain torch, in
float32, each memory once: a base that three networks share is the teacher's. Gradients, which an
update gives up, are as many as weights that are trained. A checkpoint is the folder that a run
writes. ``--on-paper``: of a network too large for this machine, from its shapes alone; without the
checkpoint's text.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.adapters import changed
from sid_ray.actors.build import TRAINED, build_networks
from sid_ray.commands.benching.rank import NO_RUN
from sid_ray.config.distill_config import DistillConfig, with_plain_resources
from sid_ray.denoisers.adapters import with_adapter
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.adapter_settings import run_adapter
from sid_ray.training.assemble import (
    adam_of,
    data_of,
    find_start,
    generator_description,
    objective_of,
)
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.weights.networks import layout
from tests.support.checkpoints import write_checkpoint

CPU = torch.device("cpu")
ROWS = (
    "teacher, or base",
    "fake_score weights",
    "fake_score moments",
    "generator weights",
    "generator moments",
    "average",
    "all",
    "checkpoint",
)


class Counter:
    """Bytes of tensors, each memory once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def new(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of the memory of these that was not counted before."""
        found = 0
        for tensor in tensors:
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self.seen:
                self.seen.add(memory.data_ptr())
                found += memory.nbytes()
        return found


def tensors_of(module: nn.Module) -> Iterable[Tensor]:
    """Parameters, buffers, and weights that a frozen network has been made ready with."""
    yield from (*module.parameters(), *module.buffers())
    for layer in module.modules():
        ready = getattr(layer, "ready", None)
        if isinstance(ready, Tensor):
            yield ready


def measured(config: DistillConfig) -> dict[str, int]:
    """Bytes by row, of what is there after one iteration."""
    torch.set_num_threads(1)
    config, start = with_plain_resources(config), find_start(config)
    base = start.description.notes.get("base_sha256", "")
    settings = dataclasses.replace(NO_RUN, teacher_folder=str(start.teacher), base_sha256=base)
    networks = build_networks(config, settings, 1, CPU)
    trainee, plan = networks.trainee, config.group_plan(1)
    data = data_of(config, networks.description, start.components)
    objective = objective_of(config, data.null_text)
    draws = draws_of(data.source, plan, config.training.seed, CPU, objective.draw_spec)
    step(trainee, objective, StepSettings(plan, 0, 1000, 0.05), draws, Sums())

    counter = Counter()
    found = {"teacher, or base": counter.new(tensors_of(trainee.teacher))}
    for name in ("fake_score", "generator"):
        role = networks.roles[name]
        found[f"{name} weights"] = counter.new(tensors_of(role.module))
        moments = (v for h in role.owned() for k, v in h.values.items() if k != "master")
        found[f"{name} moments"] = counter.new(moments)
    found["average"] = counter.new(trainee.generator_ema.parameters())
    found["all"] = sum(found.values())
    with tempfile.TemporaryDirectory() as folder:
        description = generator_description(config, networks.description)
        write_checkpoint(Path(folder), trainee, networks.roles, description, config.stored())
        found["checkpoint"] = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return found


def on_paper(config: DistillConfig) -> dict[str, int]:
    """The same from shapes, float32."""
    description = teacher_of(config)
    network = layout(description, config.teacher.source)
    adapter = run_adapter(config, description.family)
    whole = 4 * sum(value.numel() for value in network.parameters())
    found = {"teacher, or base": whole}
    for name in reversed(TRAINED):
        weights = whole
        if adapter is not None and config.adapter.of(name):
            weights = 4 * sum(p.numel() for p in with_adapter(network, adapter).parameters())
        found[f"{name} weights"] = weights
        found[f"{name} moments"] = weights * (len(adam_of(config, name).kinds) - 1)
    found["average"] = found["generator weights"]
    found["all"] = sum(found.values())
    found["checkpoint"] = found["all"] - whole
    return found


def table(recipe_name: str, changes: list[str], paper: bool) -> str:
    """Markdown: MiB of whole networks, of adapters, and the ratio."""
    count = on_paper if paper else measured
    whole, small = (count(changed(recipe(recipe_name), c)) for c in ([], changes))
    lines = [f"{recipe_name}, {' '.join(changes)}", ""]
    lines += ["| MiB | whole | adapters | adapters / whole |", "|---|---:|---:|---:|"]
    for row in ROWS:
        ratio = small[row] / whole[row]
        mib = (f"{of[row] / 2**20:,.2f}" for of in (whole, small))
        lines.append(f"| {row} | {' | '.join(mib)} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--changes", nargs="+", required=True, metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--on-paper", action="store_true")
    args = parser.parse_args()
    print(table(args.recipe, args.changes, args.on_paper))


if __name__ == "__main__":
    main()
