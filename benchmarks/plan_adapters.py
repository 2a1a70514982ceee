"""Which recipes with adapters fit on one GPU, on paper, beside the same with whole networks.

    python -m benchmarks.plan_adapters [RECIPE ...] [--gpu-memory 24 80] [--bases whole 8bit 4bit]

A row a recipe and base is what `sid-ray plan RECIPE --gpus 1 --gpu-memory GIB --adapter.base BASE`
takes of a GPU, and its figures by role; where nothing fits the row says how much the least is.
"whole" is the recipe with --adapter.rank 0, of which no pass is traced: the row says what the
networks alone take, with Adam's state on the GPU and, where that is too much, in host memory.
Blocks are computed again everywhere (--resources.activation-checkpointing), as auto has it on one
GPU. Tracing a network takes minutes the first time, and is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.planning.choose import choose_resources
from sid_ray.planning.fit import Gpus, Planner, micro_batch_of
from sid_ray.planning.machine import Machine
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR, GIB, Moment, peak
from sid_ray.recipes.known_networks import teacher_of, text_bytes
from sid_ray.recipes.lora import LORA
from sid_ray.recipes.registry import recipe

NAMES = tuple(entry.config.recipe for entry in LORA)
BASES = ("bfloat16", "8bit", "4bit")
WHOLE = "whole"
HEAD = "| recipe | base | teacher, GiB | trained, GiB | text, GiB | checkpoint, GiB |"


def variant(name: str, base: str) -> DistillConfig:
    """The recipe over a base, or with whole networks."""
    config = replace(recipe(name), resources__activation_checkpointing=True)
    if base == WHOLE:
        config = replace(config, resources__zero_stage=1)
        return replace(config, adapter__rank=0, adapter__alpha=0.0)
    return replace(config, adapter__base=base)


def without_passes(config: DistillConfig, planner: Planner, offload: bool) -> Moment:
    """The fullest time of a run whose passes keep nothing."""
    config = replace(config, resources__offload_optimizer=offload)
    none = {FAKE_SCORE: 0, GENERATOR: 0}
    return peak(planner.sizes(config), planner.layout(config, Gpus.of(1, 1)), none)


def cells(config: DistillConfig, planner: Planner) -> Iterator[str]:
    """What a GPU holds whatever its size: teacher, all that is trained, text encoder, on disk."""
    moment = without_passes(config, planner, offload=False)
    kept = sum(kept_of(moment, role) for role in ("fake_score", "generator"))
    yield from (f"{size / GIB:.1f}" for size in (kept_of(moment, "teacher"), kept, planner.text))
    yield f"{planner.checkpoint(config) / GIB:.1f}"


def kept_of(moment: Moment, role: str) -> int:
    """Bytes of a role's weights, gradients, moments and average at one time."""
    return sum(size for kind, size in moment.of_role(role).items() if kind != "other")


def taken(config: DistillConfig, planner: Planner, gib: float) -> str:
    """The largest micro-batch on a GPU of so much memory, or what would be needed."""
    machine = Machine.alike(1, 1, gib)
    if not config.adapter.rank:
        found = [without_passes(config, planner, offload).total / GIB for offload in (False, True)]
        if found[0] < gib:
            return f"{found[0]:.0f} GiB and a pass"
        return (
            f"no: {found[0]:.0f} GiB, with Adam's state in host memory {found[1]:.0f}, and a pass"
        )
    try:
        choice = choose_resources(config, planner.description, machine, planner.text).config
    except UserError as error:
        return f"no: {str(error).partition('the least is ')[2].partition(' a GPU')[0]} at least"
    full = planner.peak(choice, Gpus.of(1, gib)).total / GIB
    offloaded = ", optimizer in host memory" * choice.chosen.offload_optimizer
    return f"micro-batch {micro_batch_of(choice)} ({full:.0f} GiB){offloaded}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=NAMES)
    parser.add_argument("--gpu-memory", type=float, nargs="+", default=[24.0, 80.0])
    parser.add_argument("--bases", nargs="+", default=[WHOLE, *BASES])
    given = parser.parse_args()
    columns = "".join(f" 1 x {gib:g} GiB |" for gib in given.gpu_memory)
    print(HEAD + columns)
    print("|---|---|" + "---:|" * 4 + "---|" * len(given.gpu_memory))
    for name in given.recipes:
        for base in given.bases:
            config = variant(name, base)
            planner = Planner(teacher_of(config), text_bytes(config))
            row = [*cells(config, planner)]
            row += [taken(config, planner, gib) for gib in given.gpu_memory]
            print(f"| `{name}` | {base} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
