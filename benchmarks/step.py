"""One iteration of a recipe: seconds by phase, images/s, share of the machine's ceiling, memory.

    python -m benchmarks.step --recipe cifar10-uncond-sid --batch 2 --as-official
    python -m benchmarks.step --recipe img512-xs-sid --batch 1 --as-official
    python -m benchmarks.step --recipe img512-s-sida --batch 64 --device cuda --precision bfloat16

``--as-official`` runs the same iterations as the published code does (benchmarks/official.py) in a
process beside, in turn with ours, and compares seconds, memory and the weights after them. How to
read the tables: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from benchmarks.step_side import Side, run_side
from sid_ray.commands.benching.rank import ceiling
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.planning.flops import forward_flops, iteration_flops
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe

MIB = 1 << 20
PHASES = [f"{role} {part}" for role in ("fake_score", "generator")
          for part in ("forward", "backward", "update")] + ["average"]  # fmt: skip


class Process:
    """One side in a process of its own."""

    def __init__(self, side: Side):
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_side, args=(side, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def ask(self, what: str) -> Any:
        self.pipe.send(what)
        return self.pipe.recv()

    def end(self) -> None:
        self.pipe.send("end")
        self.process.join()


def measure(sides: dict[str, Process], iterations: int, warm_up: int) -> dict[str, list]:
    """Seconds by phase of every iteration, the sides in turn and the first in turn too."""
    found: dict[str, list] = {name: [] for name in sides}
    for index in range(warm_up + iterations):
        order = list(sides) if index % 2 else list(sides)[::-1]
        for name in order:
            found[name].append(sides[name].ask("iterate"))
    return {name: rows[warm_up:] for name, rows in found.items()}


def median(rows: list[dict[str, float]], phase: str) -> float:
    return statistics.median(row.get(phase, 0.0) for row in rows)


def total(row: dict[str, float]) -> float:
    return sum(row.values())


def show_seconds(found: dict[str, list], batch: int, flop: int, top: float) -> None:
    names = list(found)
    print(f"\n| seconds | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for phase in PHASES:
        print(f"| {phase} | {' | '.join(f'{median(found[n], phase):.3f}' for n in names)} |")
    whole = {name: statistics.median(map(total, found[name])) for name in names}
    rows = {
        "iteration": [f"{whole[n]:.3f}" for n in names],
        "images/s": [f"{batch / whole[n]:.3f}" for n in names],
        "model GFLOP/s": [f"{batch * flop / whole[n] / 1e9:,.0f}" for n in names],
        "share of the ceiling": [f"{batch * flop / whole[n] / top:.0%}" for n in names],
    }
    for title, cells in rows.items():
        print(f"| **{title}** | {' | '.join(cells)} |")
    if len(names) == 2:
        pairs = zip(found[names[1]], found[names[0]], strict=True)
        ratios = sorted(total(theirs) / total(ours) for theirs, ours in pairs)
        print(
            f"\n{names[1]} / {names[0]}, iterations in turn: median {statistics.median(ratios):.3f}"
            f" ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def show_memory(memory: dict[str, Any]) -> None:
    names = list(memory)
    print(f"\n| MiB | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    roles = memory[names[0]]["roles"]
    for role, kinds in roles.items():
        for kind in kinds:
            cells = [f"{memory[n]['roles'][role][kind] / MIB:,.0f}" for n in names]
            print(f"| {role} {kind} | {' | '.join(cells)} |")
    peaks = [memory[name]["peak"] for name in names]
    print(f"| **peak** | {' | '.join(f'{peak / MIB:,.0f}' for peak in peaks)} |")
    if len(names) == 2:
        print(f"\npeak memory {names[0]} / {names[1]}: {peaks[0] / peaks[1]:.3f}")


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Iterable[str]:
    """A row a role: how far weights are apart, but for the keys' part of qkv biases."""
    for role in (FAKE_SCORE, GENERATOR, "average"):
        names = [name for name in ours if name.startswith(f"{role}/")]
        own, other = (torch.cat([keyless(n, of[n]) for n in names]) for of in (ours, theirs))
        apart = (own - other).abs()
        yield (
            f"| {role} | {float(apart.norm() / other.norm()):.1e} | {float(apart.max()):.1e} "
            f"| {int((apart > 1e-5).sum()):,} of {len(own):,} |"
        )


def keyless(name: str, value: Tensor) -> Tensor:
    """qkv.bias without its keys: a constant added to all keys changes no softmax."""
    if not name.endswith("qkv.bias"):
        return value.flatten()
    return value.reshape(-1, 3)[:, [0, 2]].flatten()


def config_of(options: argparse.Namespace) -> DistillConfig:
    """The recipe with one group of the batch; larger ones run in micro-batches."""
    return replace(
        recipe(options.recipe),
        training__batch_size=options.batch,
        training__group_size=options.batch,
        training__precision=options.precision,
        resources__memory_format=options.memory_format,
        resources__attention=options.attention,
        resources__activation_checkpointing=options.activation_checkpointing,
        resources__micro_batch=options.micro_batch,
        resources__use_gpu=options.device == "cuda",
        output__folder="/nowhere",
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--batch", type=int, required=True, help="images an iteration")
    parser.add_argument("--micro-batch", type=int, default=0, help="0: the batch")
    parser.add_argument("--as-official", action="store_true")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=0, help="iterations that are not reported")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--official-precision", default="", help="empty: the same")
    parser.add_argument("--memory-format", default="channels_last")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--activation-checkpointing", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    config = config_of(options)
    teacher = teacher_of(config)
    flop = iteration_flops(config, teacher)
    forwards = flop / forward_flops(config, teacher)
    torch.set_num_threads(options.threads)
    measured = ceiling(torch.device(options.device), getattr(torch, options.precision))
    top = max(measured.values())
    words = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in measured.items())
    print(
        f"{options.recipe}, {options.batch} images an iteration, {options.precision}, "
        f"{options.device}, {options.threads} threads; torch {torch.__version__}\n"
        f"{flop / 1e9:,.0f} GFLOP an image: {forwards:.2f} forward passes\n"
        f"ceiling, GFLOP/s: {words}",
        flush=True,
    )
    sides = {"sid_ray": Process(Side(config, False, options.device, options.threads))}
    if options.as_official:
        precision = options.official_precision or options.precision
        theirs = replace(config, training__precision=precision)
        sides["as official"] = Process(Side(theirs, True, options.device, options.threads))
    found = measure(sides, options.iterations, options.warm_up)
    show_seconds(found, options.batch, flop, top)
    show_memory({name: side.ask("memory") for name, side in sides.items()})
    if options.as_official:
        print(f"\nWeights after {options.iterations + options.warm_up} iterations:\n")
        print("| role | difference / weights (norms) | largest difference | beyond 1e-5 |")
        print("|---|---:|---:|---:|")
        for line in differences(*(side.ask("weights") for side in sides.values())):
            print(line)
    for side in sides.values():
        side.end()


if __name__ == "__main__":
    main()
