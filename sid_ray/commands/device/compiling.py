"""Modes of resources.compile: the same losses, what compiling takes, and what it brings."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sid_ray.commands.device.collectives import synchronised
from sid_ray.commands.device.rows import (
    FAILED,
    OK,
    DeviceRow,
    Rig,
    cut_short,
    guarded,
    not_looked_at,
)
from sid_ray.commands.device.short_run import (
    begin_run,
    reads_text,
    shipped_recipes,
    short_config,
)
from sid_ray.config.distill_config import replace
from sid_ray.denoisers.compiled import MODES

ITERATIONS = 6  # CUDA graphs run twice before they are recorded
GROUPS, GROUP = 4, 16
# Relative, of losses in float32: another order of summation, over ITERATIONS iterations.
BOUND = 1e-3
PART_S = 20.0  # that a mode takes at least


@dataclass(frozen=True)
class Losses:
    """Of each iteration by name, seconds of the first one and of one of the last ones."""

    values: list[dict[str, float]]
    first_s: float
    last_s: float


def verify_compile(rig: Rig, modes: Sequence[str] = MODES) -> Iterator[DeviceRow]:
    """A row a mode, against the mode "off". Two passes a phase: their gradients add up."""
    with tempfile.TemporaryDirectory() as folder:  # nothing is compiled yet
        yield from compared_modes(rig, modes, folder)


def compared_modes(rig: Rig, modes: Sequence[str], folder: str) -> Iterator[DeviceRow]:
    name = next(name for name in shipped_recipes().values() if not reads_text(name))
    plain: list[Losses] = []
    for mode in modes:
        title = f"{name}, compile {mode}"
        if mode == MODES[-1] and rig.small:
            yield not_looked_at(title, "CUDA graphs are of GPUs")
            continue
        cut = [] if mode == MODES[0] else list(cut_short(title, rig, PART_S))
        if cut:
            yield from cut
            continue

        def look(mode: str = mode, title: str = title) -> Iterator[DeviceRow]:
            found = losses_of(name, mode, rig, folder)
            if mode == MODES[0]:
                plain.append(found)
            if plain:
                yield row_of_mode(title, found, plain[0])

        yield from guarded(title, look)


def losses_of(name: str, mode: str, rig: Rig, folder: str) -> Losses:
    """Compiled code is kept in a folder, by which all modes of a process go (keep_compiled)."""
    config = replace(
        short_config(name, GROUPS, GROUP),
        resources__compile=mode,
        resources__use_gpu=not rig.small,
        resources__micro_batch=GROUPS * GROUP // 2,
    )
    device, values, seconds = rig.first, [], []
    run = begin_run(config, device, local_folder=folder)
    for _ in range(ITERATIONS):
        synchronised(device)
        began = time.perf_counter()
        sums = run.iterate()
        synchronised(device)
        seconds.append(time.perf_counter() - began)
        values.append({key: float(value) for key, value in sums.values.items()})
    del run
    gc.collect()
    torch._dynamo.reset()
    return Losses(values, seconds[0], min(seconds[2:]))


def row_of_mode(title: str, found: Losses, plain: Losses) -> DeviceRow:
    errors = [
        abs(mine[key] - theirs[key]) / max(abs(theirs[key]), 1e-6)
        for mine, theirs in zip(found.values, plain.values, strict=True)
        for key in theirs
        if key.endswith("loss")
    ]
    worst = max(errors, key=lambda error: (error != error, error))
    return DeviceRow(
        title,
        f"losses differ by {worst:.1e}; {found.last_s * 1e3:.1f} ms an iteration "
        f"({plain.last_s / found.last_s:.2f} times as fast as off), the first in "
        f"{found.first_s:.1f} s",
        f"at most {BOUND:.0e}",
        OK if worst <= BOUND else FAILED,
        {"difference": worst, "seconds": found.last_s, "first_seconds": found.first_s},
    )
