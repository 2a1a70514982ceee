"""One rank of one setting: a process that builds what a run's worker builds and takes its steps.

It does what it is told through a pipe and answers each time, (True, answer) or (False, one line
that says why not); after the second it is gone. Ranks meet through a file, not a port.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sid_ray.actors.build import WorkerSettings, build_networks
from sid_ray.actors.measures import begin_peak, peak_memory_gib
from sid_ray.commands.benching.made_up import RandomSamples, random_teacher
from sid_ray.commands.benching.marks import Marks, WatchedObjective, watch
from sid_ray.commands.benching.short import Short, whole_seconds
from sid_ray.denoisers.registry import family_of
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.storage.places import one_line
from sid_ray.training.assemble import objective_of
from sid_ray.training.draws import Maker
from sid_ray.training.draws_ahead import Coming, DrawsAhead, lane_to
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.weights.description import ModelDescription

LATE, STRIDE = 1 << 40, 1 << 24  # images seen: every warm-up is over; iterations lie apart
LONGEST = 200  # characters of why something failed
LOUD = "SID_RAY_TRACEBACK"  # set, tracebacks and what libraries print are shown
LOOK_S = 0.5  # between two looks for the command


@dataclass(frozen=True)
class Side:
    """What all ranks of a setting are told. ``folder`` is theirs, for a file to meet at."""

    short: Short
    description: ModelDescription
    world_size: int
    on_gpu: bool
    folder: str


@dataclass(frozen=True)
class Iteration:
    """Seconds of a whole iteration by this rank's clock, how many of two updates were left out as
    their gradients were not finite, and the most memory that the rank has had so far: on its GPU,
    behind its first iteration (``begin_peak``), or of its process.
    """

    seconds: float
    skipped: float
    peak_gib: float


class Rank:
    """The roles of a worker, and its iterations."""

    def __init__(self, side: Side, rank: int):
        config = side.short.config
        self.short, self.world_size = side.short, side.world_size
        self.device = torch.device("cuda", rank) if side.on_gpu else torch.device("cpu")
        torch.set_num_threads(config.chosen.threads)
        set_numerics(config.resources.deterministic)
        if side.on_gpu:
            torch.cuda.set_device(self.device)  # before NCCL, which takes the current one
        join(side, rank)
        teacher = random_teacher(side.description)
        built = build_networks(
            config, NO_RUN, side.world_size, self.device, (teacher, side.description)
        )
        self.trainee, self.marks = built.trainee, Marks(self.device)
        watch(self.trainee, self.marks)
        plan, training = config.group_plan(side.world_size), config.training
        self.settings = StepSettings(plan, rank, training.ema_half_life, training.ema_rampup)
        family = family_of(built.description.family)
        text = family.text_shape(built.description.network)
        null_text = torch.zeros(text, device=self.device) if text else None
        objective = objective_of(config, null_text)
        self.objective: Any = WatchedObjective(objective, self.marks)
        samples = RandomSamples(config, built.description)
        self.draws = DrawsAhead(
            Maker(samples, plan, training.seed, objective.draw_spec),
            Coming(plan, rank, objective.trains_generator),
            lane_to(self.device),
        )
        self.trainee.images_seen, self.done = LATE, 0
        self.built_gib = peak_memory_gib(self.device)

    def iterate(self) -> Iteration:
        """One iteration. A collective."""
        self.done += 1
        if self.objective.draw_spec.num_steps > 1:
            # Which of several steps an image is trained is drawn by images seen: the same in the
            # same turn, whatever the batch of this setting's short iteration is.
            self.trainee.images_seen = LATE + self.done * STRIDE
        sums = Sums()
        if self.world_size > 1:
            torch.distributed.barrier()
        self.marks.start()
        step(self.trainee, self.objective, self.settings, self.draws, sums)
        seconds = whole_seconds(self.short, self.marks.seconds())
        skipped = float(sums.values["skipped_updates"])
        peak_gib = max(peak_memory_gib(self.device), self.built_gib)
        if self.done == 1:  # a warm-up
            begin_peak(self.device)
        return Iteration(seconds, skipped, peak_gib)

    def ceiling(self) -> dict[str, float]:
        """FLOP/s of a large matrix product and of a large convolution in the run's precision."""
        dtype = getattr(torch, self.short.config.training.precision)
        return ceiling(self.device, dtype)


NO_RUN = WorkerSettings(
    config="",
    run_folder="",
    teacher_folder="",
    initial_generator="",
    local_folder="",
    run_key="",
    own_scaling=False,
    tracker=None,
    evaluator=None,
)


def join(side: Side, rank: int) -> None:
    """Makes the group of ranks, where there are several, as Ray Train does for a run."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(side.world_size)}
    if side.world_size == 1 and not side.short.config.chosen.offload_optimizer:
        return
    torch.distributed.init_process_group(
        "nccl" if side.on_gpu else "gloo",
        init_method=(Path(side.folder) / "meet").as_uri(),
        rank=rank,
        world_size=side.world_size,
    )


def ceiling(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of the fastest of a few, of two things that do nothing but multiply."""
    gpu = device.type == "cuda"
    size, width, images = (8192, 512, 64) if gpu else (1024, 256, 2)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    last = torch.channels_last
    x = torch.randn(images, width, 32, 32, device=device).to(dtype, memory_format=last)
    w = torch.randn(width, width, 3, 3, device=device).to(dtype, memory_format=last)
    convolution = 2 * 9 * width**2 * images * 32**2
    with torch.no_grad():
        return {
            "matrix product": best_of(lambda: a @ b, 2 * size**3, gpu),
            "convolution": best_of(lambda: F.conv2d(x, w, padding=1), convolution, gpu),
        }


def best_of(run: Callable[[], Any], flop: float, gpu: bool, times: int = 7) -> float:
    """FLOP/s of the fastest of a few."""

    def seconds() -> float:
        began = time.perf_counter()
        run()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds()
    return flop / min(seconds() for _ in range(times))


def serve(pipe: Connection) -> None:
    """Does what the pipe says until it ends."""
    try:
        side, rank = pipe.recv()
        built = Rank(side, rank)
        pipe.send((True, None))
        while True:
            pipe.send((True, getattr(built, pipe.recv())()))
    except EOFError:
        return
    except Exception as error:
        pipe.send((False, why(error)))
        if os.environ.get(LOUD):
            raise


def end_with_command(parent: int) -> None:
    """Ends this session, in which torch.compile's processes are too, when the command is gone."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.killpg(0, signal.SIGKILL)


def why(error: BaseException) -> str:
    """An exception as one line."""
    if isinstance(error, UserError):
        return one_line(str(error))
    said = str(error).strip().splitlines()
    text = one_line(said[0] if said else "")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in text[:60].lower():
        return f"out of memory: {text}"[:LONGEST]
    return f"{type(error).__name__}: {text}"[:LONGEST]


def main() -> None:
    """The process: its arguments are the pipe's file and the command's process."""
    file, parent = map(int, sys.argv[1:])
    threading.Thread(target=end_with_command, args=(parent,), daemon=True).start()
    serve(Connection(file))
    sys.stdout.flush()
    os._exit(0)  # the interpreter's own end waits for threads of libraries
