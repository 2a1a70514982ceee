"""Every ZeRO stage, with offloading and without, over all GPUs against plain torch on one."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sid_ray.commands.device.collectives import synchronised
from sid_ray.commands.device.ranks import Tell, rows_of_ranks
from sid_ray.commands.device.rows import FAILED, DeviceRow, Rig, held_to, row_of_error
from sid_ray.commands.device.short_run import (
    ShortRun,
    begin_run,
    reads_text,
    shipped_recipes,
    short_config,
    spread_out,
)
from sid_ray.commands.device.steps import kind_errors
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.distributed.deepspeed_role import DeepSpeedRole, init_deepspeed, needs_deepspeed
from sid_ray.distributed.fragments import ShardedAverage
from sid_ray.tensor_files.tensors import read_safetensors
from sid_ray.training.assemble import adam_of

ITERATIONS, GROUP = 2, 8
SHARING_S, OTHERS_S = 30.0, 5.0  # that one way may take, and later for other ranks than the first
NONE_BEHIND = "none behind it was looked at"
# As for one iteration (steps.py), for two of them.
BOUNDS = {"gradients": 4e-4, "weights": 2e-4}


@dataclass(frozen=True)
class Sharing:
    """A way to share networks out over ranks."""

    stage: int
    offload: bool = False
    overlap: bool = False
    teacher: bool = False

    @property
    def name(self) -> str:
        words = {"offloaded": self.offload, "overlapped": self.overlap, "teacher too": self.teacher}
        return ", ".join([f"stage {self.stage}", *(word for word, on in words.items() if on)])

    def config(self, config: DistillConfig) -> DistillConfig:
        return replace(
            config,
            resources__zero_stage=self.stage,
            resources__teacher_zero_stage=3 * self.teacher,
            resources__offload_optimizer=self.offload,
            resources__overlap_comm=self.overlap,
        )


def sharings(world: int) -> list[Sharing]:
    """All four stages, those that can offload, and what needs several ranks."""
    found = [Sharing(stage) for stage in range(4)]
    found += [Sharing(stage, offload=True) for stage in (1, 2, 3)]
    return found + [Sharing(2, overlap=True), Sharing(3, teacher=True)] * (world > 1)


def verify_zero(rig: Rig) -> Iterator[DeviceRow]:
    """Weights, moments' gradients and the average after two iterations, a row a way to share."""
    backend, device = "nccl" if rig.device == "cuda" else "gloo", rig.first
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plain.safetensors"
        # Here, where no process group is: a run by itself would take part in its collectives.
        plain = next(name for name in shipped_recipes().values() if not reads_text(name))
        # n ranks do not divide 2n+1 groups: some rank pads.
        config = short_config(plain, 2 * rig.world + 1, GROUP)
        save_file(trained(begin_run(config, device), device)[0], file)
        yield from rows_of_ranks(partial(compared_with_plain, config, file), rig, backend)


def compared_with_plain(
    config: DistillConfig, file: Path, rig: Rig, rank: int, device: torch.device, tell: Tell
) -> None:
    """One rank of all ways to share, against the state that plain torch came to."""
    expected = read_safetensors(file)
    init_deepspeed()
    torch.distributed.barrier()
    for sharing in sharings(rig.world):
        title = f"{sharing.name}, {rig.world} rank{'s'[: rig.world != 1]}"

        def look(sharing: Sharing = sharing, title: str = title) -> Iterator[DeviceRow]:
            run = shared_run(sharing.config(config), rig.world, rank, device)
            found, seconds = trained(run, device)
            if rank == 0:
                yield nearest_to_bound(title, found, expected, seconds)

        with ended_after(SHARING_S * (1 + 2 * rig.small), title, rank, tell):
            try:
                for row in look():
                    tell(row)
            except Exception as error:
                if rig.world > 1:  # the others wait in a collective: all are ended, by this
                    raise RuntimeError(f"{title}, {NONE_BEHIND}; rank {rank}: {error}") from error
                tell(row_of_error(title, error))
        gc.collect()


@contextlib.contextmanager
def ended_after(seconds: float, title: str, rank: int, tell: Tell) -> Iterator[None]:
    """Ends this process, and says so, where what is within takes longer: it is taken to hang."""

    def end() -> None:
        tell(DeviceRow(title, f"no end within {seconds:.0f} s; {NONE_BEHIND}", verdict=FAILED))
        os._exit(0)  # the row says it all

    # The first rank tells: it goes first.
    timer = threading.Timer(seconds + OTHERS_S * (rank > 0), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shared_run(config: DistillConfig, world_size: int, rank: int, device: torch.device) -> ShortRun:
    """A run as a worker builds it; on one rank engines of DeepSpeed, too, where a worker takes
    plain torch.
    """
    run = begin_run(config, device, world_size, rank)
    if needs_deepspeed(config.chosen, world_size):
        return run
    passes = config.group_plan(world_size).passes_a_rank
    for name, role in run.roles.items():
        stage = config.chosen.stage_of(name)
        module = copy.deepcopy(role.module).requires_grad_(True)
        engine = DeepSpeedRole(module, adam_of(config, name), stage, passes, role.rules)
        engine.module.requires_grad_(False)
        run.roles[name] = engine
        setattr(run.trainee, name, engine)
    run.trainee.generator_ema = ShardedAverage(run.trainee.generator)  # type: ignore[arg-type]
    return run


def trained(run: ShortRun, device: torch.device) -> tuple[dict[str, Tensor], float]:
    """State after ITERATIONS, and seconds of the last one. A collective."""
    spread_out(run)
    for _ in range(ITERATIONS):
        synchronised(device)
        began = time.perf_counter()
        run.iterate()
        synchronised(device)
    return run.weights(), time.perf_counter() - began


def nearest_to_bound(
    title: str, found: dict[str, Tensor], expected: dict[str, Tensor], seconds: float
) -> DeviceRow:
    """The row of what differs most by its bound."""
    errors = kind_errors(found, expected)
    worst = max(errors, key=lambda k: (errors[k] != errors[k], errors[k] / BOUNDS[k[1]]))
    figures = {f"{role}'s {kind}": error for (role, kind), error in errors.items()}
    return held_to(
        title,
        f"an iteration in {seconds:.2f} s; relative difference of the {worst[0]}'s {worst[1]}",
        errors[worst],
        BOUNDS[worst[1]],
        seconds=seconds,
        **figures,
    )
