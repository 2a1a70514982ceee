"""The driver of a run: starts Ray, the tracker, the evaluator and Ray Train, and shows progress.

          +-----------+  weights, losses   +-----------+
workers   | rank 0..n | -----------------> | tracker   | --> MLflow
(step.py) | DeepSpeed | -- EMA --> evaluator --------> |  --> board --> progress line
          +-----------+                    +-----------+
                | checkpoints
                v
            runs/NAME/checkpoint_*
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from sid_ray.actors import ray_train_private, scaling
from sid_ray.actors.beside import (
    cpus_beside,
    drained,
    lacking,
    start_evaluator,
    start_tracker,
)
from sid_ray.actors.build import WorkerSettings
from sid_ray.actors.found_nodes import joined_cluster
from sid_ray.actors.gpu_probe import try_attention
from sid_ray.actors.liveness import note_ray
from sid_ray.actors.own_ray import start_own_ray
from sid_ray.actors.process_groups import GroupConfig
from sid_ray.actors.proof import contents, driver_seat
from sid_ray.actors.signals import NO_LEASE
from sid_ray.actors.timeline import Interruption
from sid_ray.actors.tracker import Board
from sid_ray.actors.worker import train_loop
from sid_ray.checkpoint.find import newest_listed, newest_whole
from sid_ray.checkpoint.warm_start import began_at
from sid_ray.config.distill_config import DistillConfig, evaluator_resources, with_plain_resources
from sid_ray.console import Display
from sid_ray.errors import UserError
from sid_ray.planning.choice import ResourceChoice
from sid_ray.planning.choose import choose_measured
from sid_ray.planning.here import machine_here
from sid_ray.ray_setup.environment import joins_cluster, set_ray_environment
from sid_ray.ray_setup.ray_private import VERSION
from sid_ray.ray_setup.start import with_ray
from sid_ray.run_folder import LOG, WAITING, RunFolder, RunRecord, note_record
from sid_ray.storage.errors import StoreError, retrying
from sid_ray.storage.lease import LeaseLostError
from sid_ray.storage.places import expanded
from sid_ray.storage.store import Store
from sid_ray.tracking.copies import LOCAL
from sid_ray.training.assemble import Start
from sid_ray.weights.base import BASE

POLL_S = 0.5
AGAIN_S = 10.0  # between tries to note the MLflow run where storage is away
STOP_PATIENCE_S = 60.0  # for workers that save when the driver is stopped
STORAGE_PATIENCE_S = 600.0  # for storage that goes just when the training has ended
STOP_RAY_S = 10.0  # for the end of Ray itself, of the time that is left to a lease
LOST = "LOST"  # the status of a run that another driver may take over


@dataclasses.dataclass(frozen=True)
class TrainingOutcome:
    """How a training ended. ``config`` is the run's with the resources that this start chose."""

    config: DistillConfig
    images_seen: int
    checkpoint: Store
    trained_images: int
    train_seconds: float  # first step to last checkpoint
    startup_seconds: float  # Ray, processes, networks
    tracking_trouble: str
    interruptions: list[Interruption] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Clock:
    """When the training proper began and ended; seconds are as the display saw them."""

    began: float
    first_step: float = 0.0
    last: float = 0.0

    def see(self, phase: str) -> None:
        if phase == "training" and not self.first_step:
            self.first_step = time.monotonic()
        self.last = time.monotonic()

    @property
    def train_seconds(self) -> float:
        return self.last - self.first_step if self.first_step else 0.0

    @property
    def startup_seconds(self) -> float:
        return (self.first_step or self.last) - self.began


class TrainingFailedError(Exception):
    """The training stopped; says why, and what is left."""


class GaveUpError(TrainingFailedError):
    """It is not healthy, or its data is damaged: the same would happen again."""


def start_ray(config: DistillConfig) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine for this run alone.

    Its own has a place for each worker: nothing of the config may be auto there.
    """
    set_ray_environment()
    # Compiled operators stay inside the project's environment.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    with_ray(
        start=lambda: start_own_ray(config.chosen.num_workers, cpus_beside(config)),
        join=lambda: ray.init(logging_level="warning"),
    )


def check_resources(config: DistillConfig, show: Display) -> None:
    """Says what is waited for on a cluster whose nodes are not there yet.

    Raises UserError where Ray is this run's own and can never hold workers and evaluator.
    """
    found = lacking(config, workers_of(config)[0], ray.cluster_resources())
    if not found:
        return
    if joins_cluster():
        show.update("", {}, [f"{found}: waiting for nodes"])
        return
    ways = "lower --resources.num-workers"
    if evaluator_resources(config):
        ways += ", or leave --evaluation.resources empty"
    raise UserError(f"{found}: {ways}")


def chosen_and_started(config: DistillConfig, start: Start, show: Display) -> ResourceChoice:
    """Starts or joins Ray, and says what the run takes of the machines that are there.

    Raises UserError where it does not fit on them, with the nearest that does.
    """

    def tell(text: str) -> None:
        show.update("", {}, [text])

    if joins_cluster():
        show.update("starting Ray", {}, [])
        start_ray(config)
        machine = joined_cluster(config, tell)
    else:
        machine = machine_here(config)
    if machine.has_gpus:  # on CPUs it takes no time
        show.update("counting memory", {}, [])
    choice = choose_measured(config, start.description, machine, tell)
    tell(choice.line)
    if not joins_cluster():
        show.update("starting Ray", {}, [])
        start_ray(choice.config)
    check_resources(choice.config, show)
    return choice


def workers_of(config: DistillConfig) -> tuple[int, int]:
    """(least, most) workers. On a Ray of its own nothing comes or goes: the number is fixed."""
    resources = config.chosen
    if not joins_cluster():
        return resources.num_workers, resources.num_workers
    return resources.min_workers, resources.num_workers


def own_scaling(config: DistillConfig, show: Display) -> bool:
    """Whether resizes are sid_ray's; says so where this Ray is not the one it knows."""
    if config.resources.scaling == "ray":
        return False
    if not ray_train_private.fit():
        show.update(
            "",
            {},
            [
                f"warning: Ray {ray.__version__} is not {VERSION}x: its own elasticity is "
                "used, which starts again from the last checkpoint when nodes come or go"
            ],
        )
        return False
    return True


def local_folder(config: DistillConfig, run: Path) -> str:
    """Where workers write checkpoints of all runs first; empty for each node's temporary folder.

    Where all is one machine it is the run's own disk: then an upload is no copy.
    """
    if config.output.local_folder:
        return str(expanded(config.output.local_folder))
    return "" if joins_cluster() else str(run / LOCAL)


def build_trainer(config: DistillConfig, settings: WorkerSettings, folder: Path) -> TorchTrainer:
    """The Ray Train run. Its checkpoints are ours (writer.py).

    Ray only keeps its notes in ``folder``, a path: it never needs S3, nor a path that nodes share.
    """
    resources = config.chosen
    on_gpu = resources.use_gpu
    least, most = workers_of(config)
    make, fixed = TorchTrainer, least == most
    if settings.own_scaling:
        alone = not joins_cluster()
        fixed = fixed and alone  # on a cluster the policy is needed to give up silent nodes
        beside = evaluator_resources(config)
        make = partial(scaling.OwnTrainer, tracker=settings.tracker, alone=alone, beside=beside)
    return make(
        train_loop,
        train_loop_config={
            field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)
        },
        torch_config=GroupConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if fixed else (least, most),
            elastic_resize_monitor_interval_s=resources.resize_check_s,
            use_gpu=on_gpu,
            # A CPU beside the GPU: nodes that offer none (an evaluator's) get no worker.
            resources_per_worker={"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1},
        ),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        ),
    )


class FitThread(threading.Thread):
    """Runs trainer.fit() beside the display.

    Not in the main thread: there Ray would install its own SIGINT handler, and Ctrl-C is ours.
    """

    def __init__(self, trainer: TorchTrainer):
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: BaseException | None = None
        # Not is_alive: a join that Ctrl-C interrupts takes a working thread for one that has ended
        # (Python up to 3.12).
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error
        self.ended.set()


def noted(board: Board, record: RunRecord, run: RunFolder) -> RunRecord:
    """The record with the MLflow run as soon as it exists, in the run's folder too.

    Raises StoreError where that cannot be written, LeaseLostError.
    """
    if not board.run_id or board.run_id == record.tracker_run_id:
        return record
    return note_record(run, dataclasses.replace(record, tracker_run_id=board.run_id))


def follow(
    fit: FitThread, tracker: Any, record: RunRecord, run: RunFolder, show: Display, clock: Clock
) -> RunRecord:
    """Shows the board until training ends; notes the MLflow run as soon as it exists.

    Returns the record with it. Raises LeaseLostError where this driver must stop.
    """
    again_at = 0.0
    while True:
        run.check_lease()
        alive = not fit.ended.is_set()
        board: Board = ray.get(tracker.board.remote(run.left_s))
        if time.monotonic() >= again_at:
            try:
                record = noted(board, record, run)
            except StoreError:  # the workers say that storage is away
                again_at = time.monotonic() + AGAIN_S
        show.update(board.phase, board.metrics, board.events)
        if not alive:
            return record
        clock.see(board.phase)
        fit.ended.wait(POLL_S)


def save_before_the_end(
    fit: FitThread,
    tracker: Any,
    show: Display,
    reason: str,
    patience_s: float,
    signal: str = "",
) -> None:
    """Has the workers save, as before a resize, for a limited time; another Ctrl-C ends it.

    ``signal``: the one that asked for it, empty for Ctrl-C.
    """
    deadline = time.monotonic() + patience_s
    with contextlib.suppress(KeyboardInterrupt, ray.exceptions.RayError):
        board: Board = ray.get(tracker.board.remote())
        if board.phase != "training" or fit.ended.is_set():
            return
        show.update("", {}, [f"stopping{f' ({signal})' if signal else ''}: the workers save first"])
        ray.get(tracker.ask_pause.remote(reason))
        while board.phase == "training" and time.monotonic() < deadline:
            if fit.ended.wait(POLL_S / 5):
                return
            board = ray.get(tracker.board.remote())


def reason_of(error: BaseException) -> str:
    """The line that a person needs out of Ray's nested errors."""
    failures = getattr(error, "worker_failures", None)
    cause: Any = next(iter(failures.values())) if failures else error
    while getattr(cause, "cause", None) is not None:
        cause = cause.cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no message'}"[:500]


def run_training(
    config: DistillConfig, start: Start, run: RunFolder, record: RunRecord, show: Display
) -> TrainingOutcome:
    """Runs the training to its end, on Ray.

    Raises UserError when the cluster cannot hold the workers, TrainingFailedError with the
    reason, StoreError where storage cannot be read, and KeyboardInterrupt after Ctrl-C. What was
    checkpointed stays usable in each case.
    """
    there = newest_listed(run.store)
    before = there[1].images_seen if there else began_at(record.began_from)
    if there and before >= config.training.images:
        newest, damage = newest_whole(run.store)
        if newest == there[0]:
            show.update("", {}, [f"already complete: {newest}"])
            trouble = score_leftovers(config, start, run, record, show)
            return TrainingOutcome(config, before, run.store / newest, 0, 0.0, 0.0, trouble)
        show.update("", {}, [f"damaged checkpoint skipped: {line}" for line in damage])
    began = time.monotonic()
    try:
        choice = chosen_and_started(config, start, show)
        note_ray(run)
        record = note_record(run, record)
        try_attention(choice.config, lambda text: show.update("", {}, [text]))
        clock = Clock(began)
        trouble, interruptions = run_actors(choice, start, run, record, show, clock)
    except ray.exceptions.RayError as error:  # this node's Ray is gone, and the actors with it
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):  # a look at a worker's place found it
            raise UserError(str(cause)) from error
        raise TrainingFailedError(f"Ray ended: {reason_of(error)}") from error
    finally:
        ray.shutdown()
    there = retrying(
        lambda: newest_listed(run.store),
        lambda text: show.update("", {}, [text]),
        STORAGE_PATIENCE_S,
    )
    if there is None:
        raise TrainingFailedError(f"no whole checkpoint in {run.store}; see {run.local / LOG}")
    last, seen = run.store / there[0], there[1].images_seen
    times = clock.train_seconds, clock.startup_seconds
    return TrainingOutcome(choice.config, seen, last, seen - before, *times, trouble, interruptions)


def score_leftovers(
    config: DistillConfig, start: Start, run: RunFolder, record: RunRecord, show: Display
) -> str:
    """Scores weights that were handed over before this complete run's driver was killed.

    Returns '' or what went wrong.
    """
    if not config.evaluation.every or not list((run.local / WAITING).glob("*")):
        return ""
    show.update("scoring what was left", {}, [])

    def look() -> None:
        run.check_lease()
        board: Board = ray.get(tracker.board.remote(run.left_s))
        show.update("", board.metrics, board.events)

    try:
        config = with_plain_resources(config)  # no worker is started
        start_ray(config)
        tracker = start_tracker(config, record, time.time())
        trouble = drained(start_evaluator(config, start, run, record, tracker), look)
        look()
        return trouble + ray.get(tracker.finish.remote("FINISHED"))
    except ray.exceptions.RayError as error:
        return f"the evaluation failed: {reason_of(error)}. "
    finally:
        ray.shutdown()


def run_actors(
    choice: ResourceChoice,
    start: Start,
    run: RunFolder,
    record: RunRecord,
    show: Display,
    clock: Clock,
) -> tuple[str, list[Interruption]]:
    """Tracker, evaluator and Ray Train for one training.

    Returns what tracking could not write, and what stopped the workers on the way.
    """
    config = choice.config
    tracker = start_tracker(config, record, time.time() - (time.monotonic() - clock.began))
    seat = driver_seat(run.store) if joins_cluster() else None
    token = seat.token if seat else None
    evaluator = start_evaluator(config, start, run, record, tracker, token)
    settings = WorkerSettings(
        config=config.to_json(),
        run_folder=str(run.store),
        teacher_folder=str(start.teacher),
        initial_generator=str(start.generator or ""),
        local_folder=local_folder(config, run.local),
        run_key=record.key,
        own_scaling=own_scaling(config, show),
        fence=run.fence,
        tracker=tracker,
        evaluator=evaluator,
        began_from=record.began_from,
        components=start.components,
        seat=seat,
        contents=contents(config, str(start.teacher), str(start.generator or "")) if seat else {},
        sizes=choice.sizes,
        base_sha256=str(start.description.notes.get(BASE, "")),
    )
    status, trouble = "FAILED", ""
    fit = FitThread(build_trainer(config, settings, run.local))
    try:
        fit.start()
        record = follow(fit, tracker, record, run, show, clock)
        board: Board = ray.get(tracker.board.remote())
        if board.refused:
            raise UserError(board.refused)
        if board.gave_up:  # some ranks raise then, and some return
            raise GaveUpError(board.gave_up) from fit.error
        if fit.error is not None:
            raise TrainingFailedError(reason_of(fit.error)) from fit.error
        try:
            if evaluator is not None:
                trouble = drained(
                    evaluator, partial(follow, fit, tracker, record, run, show, clock)
                )
        except ray.exceptions.RayError as error:
            trouble = f"the evaluation failed: {reason_of(error)}. "
        follow(fit, tracker, record, run, show, clock)
        status = "FINISHED"
    except KeyboardInterrupt as asked:
        status = "KILLED"
        if settings.own_scaling:  # Ray's own does not tell when the workers have saved
            patience_s = STOP_PATIENCE_S
            save_before_the_end(fit, tracker, show, "stopped by the user", patience_s, str(asked))
        raise
    except LeaseLostError:
        status = LOST
        if run.left_s:  # else another driver works already: what is saved now does not count
            save_before_the_end(fit, tracker, show, NO_LEASE, run.left_s - STOP_RAY_S)
        raise
    finally:
        if token is not None and status != LOST:  # then storage may not answer
            token.remove()
        # The journal keeps what MLflow has not got; the next driver of the run tells it.
        left = ray.get(tracker.finish.remote(status)) if status != LOST else ""
        # MLflow may be slower than a short run.
        with contextlib.suppress(StoreError, LeaseLostError):
            noted(ray.get(tracker.board.remote()), record, run)
        if left and status != "FINISHED":  # else the outcome tells
            show.update("", {}, [f"warning: {left}"])
        trouble += left
    return trouble, board.interruptions
