"""What the code for CPUs alone brings: iterations with it and without, in turn.

    python -m benchmarks.cpu_code --recipe cifar10-uncond-sid --batch 2 --iterations 7
    python -m benchmarks.cpu_code --recipe img512-xs-sid --batch 1 --iterations 7

Convolutions by oneDNN (denoisers/cpu_convolution.py) and freed memory kept (training/allocator.py),
each left out in a process of its own. CPU seconds stand beside the clock's: other work on a machine
lengthens those less. Both are ratios of each iteration to that of the same round with everything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.step import config_of
from benchmarks.step_side import Clock, Side, iterate, prepared
from sid_ray.denoisers import cpu_convolution
from sid_ray.training.allocator import keep_freed_memory

SIDES = ("both", "no convolutions of our own", "freed memory given back", "neither")


def run(side: Side, name: str, pipe: Connection) -> None:
    """Answers each question with (seconds, CPU seconds) of one iteration."""
    torch.set_num_threads(side.threads)
    if name in ("no convolutions of our own", "neither"):
        cpu_convolution.ONEDNN = False
    if name in ("both", "no convolutions of our own"):
        assert keep_freed_memory()
    clock = Clock(torch.device("cpu"))
    trainee, draws, objective, settings = prepared(side, clock)
    pipe.send("ready")
    while pipe.recv() != "end":
        began = time.perf_counter(), time.process_time()
        iterate(side, clock, trainee, objective, settings, draws)
        pipe.send((time.perf_counter() - began[0], time.process_time() - began[1]))


def started(side: Side, name: str) -> tuple[Any, Any]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(side, name, theirs), daemon=True)
    process.start()
    ours.recv()
    return process, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--iterations", type=int, default=7)
    options = parser.parse_args()
    rest = {"precision": "float32", "memory_format": "channels_last", "attention": "sdpa"}
    rest |= {"activation_checkpointing": False, "micro_batch": 0, "device": "cpu"}
    side = Side(config_of(argparse.Namespace(**vars(options), **rest)), False, "cpu", 1)
    processes = {name: started(side, name) for name in SIDES}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for index in range(options.iterations + 1):
        for name in SIDES if index % 2 else SIDES[::-1]:
            processes[name][1].send("iterate")
            found[name].append(processes[name][1].recv())
    for process, pipe in processes.values():
        pipe.send("end")
        process.join()
    rows = {name: values[1:] for name, values in found.items()}  # the first warms up
    print(f"{options.recipe}, {options.batch} images an iteration, one thread, {torch.__version__}")
    print("| | seconds | CPU seconds | seconds, times both | CPU seconds, times both |")
    print("|---|---:|---:|---:|---:|")
    for name, values in rows.items():
        cells = [f"{statistics.median(v[i] for v in values):.2f}" for i in (0, 1)]
        for i in (0, 1):
            ratios = sorted(a[i] / b[i] for a, b in zip(values, rows[SIDES[0]], strict=True))
            middle = statistics.median(ratios)
            cells.append(f"{middle:.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
