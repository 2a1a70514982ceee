"""One iteration of every objective on this device against the CPU, and twice to the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from sid_ray.commands.device.rows import FAILED, OK, DeviceRow, Rig, guarded, held_to
from sid_ray.commands.device.short_run import (
    begin_run,
    shipped_recipes,
    short_config,
    spread_out,
)
from sid_ray.device.numerics import set_numerics, set_workspace
from sid_ray.distributed.fragments import MASTER

GROUPS, GROUP = 2, 8
# Bounds in float32 without TF32. On a CPU another order of summation differs by 1e-5 in both; TF32
# by 1e-2 in gradients.
GRADIENTS, WEIGHTS = 2e-4, 1e-4


def verify_steps(rig: Rig) -> Iterator[DeviceRow]:
    """For each objective: gradients and weights against the CPU's, then bits against bits."""
    if rig.device == "cuda":
        set_workspace(os.environ)  # cuBLAS reads it once, before it is used
    for name in shipped_recipes().values():
        yield from guarded(name, lambda name=name: compared_with_cpu(name, rig))  # type: ignore[misc]
        yield from guarded(name, lambda name=name: same_bits(name, rig))  # type: ignore[misc]


def after_one(name: str, device: torch.device) -> dict[str, Tensor]:
    """Weights and moments after one iteration of a recipe."""
    run = begin_run(short_config(name, GROUPS, GROUP), device)
    spread_out(run)
    run.iterate()
    return run.weights()


def compared_with_cpu(name: str, rig: Rig) -> Iterator[DeviceRow]:
    set_numerics()
    expected = after_one(name, torch.device("cpu"))
    found = after_one(name, rig.first)
    errors = kind_errors(found, expected)
    for what, bound in (("gradients", GRADIENTS), ("weights", WEIGHTS)):
        mine = {role: error for (role, kind), error in errors.items() if kind == what}
        worst = max(mine, key=lambda role: (mine[role] != mine[role], mine[role]))
        yield held_to(
            f"{name}, one iteration",
            f"relative difference of the {worst}'s {what}",
            mine[worst],
            bound,
            **mine,
        )


def kind_errors(
    found: dict[str, Tensor], expected: dict[str, Tensor]
) -> dict[tuple[str, str], float]:
    """(role, "gradients" or "weights") -> relative difference, all tensors as one vector.

    Gradients by their sizes: after one step the second moment is a multiple of their squares.
    """
    pairs: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for name, value in expected.items():
        role, _, rest = name.partition(" ")
        kind = rest.rpartition("/")[2]
        sides = (found[name], value)
        if kind == MASTER:
            pairs.setdefault((role, "weights"), []).append(sides)
        elif kind == "exp_avg_sq":
            roots = (sides[0].sqrt(), sides[1].sqrt())
            pairs.setdefault((role, "gradients"), []).append(roots)
    errors = {}
    for key, both in pairs.items():
        mine, theirs = (torch.cat([p[side].flatten().double() for p in both]) for side in (0, 1))
        errors[key] = float((mine - theirs).norm() / theirs.norm())
    return errors


def same_bits(name: str, rig: Rig) -> Iterator[DeviceRow]:
    """Twice the same iteration in the deterministic mode."""
    set_numerics(deterministic=True)
    try:
        first, second = (after_one(name, rig.first) for _ in range(2))
    finally:
        set_numerics()
    differing = [key for key, value in first.items() if not torch.equal(second[key], value)]
    what = f"{len(differing)} of {len(first)} tensors of weights and moments differ"
    yield DeviceRow(
        f"{name}, twice in the deterministic mode",
        what,
        "none",
        FAILED if differing else OK,
        {"differing": len(differing), "tensors": len(first)},
    )
