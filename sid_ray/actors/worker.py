"""The Ray Train loop of one worker: build, restore, step until the next event."""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from sid_ray.actors.build import (
    TrainedRole,
    WorkerSettings,
    build_networks,
    build_spool,
)
from sid_ray.actors.handover import Handover
from sid_ray.actors.measures import largest, peak_memory_gib, reduce_means
from sid_ray.actors.passes import short_of_memory
from sid_ray.actors.process_groups import bind, leave_groups, meeting_group, patiently
from sid_ray.actors.proof import prove
from sid_ray.actors.signals import (
    LEASE_ENDS,
    NO_LEASE,
    NOTHING,
    PREEMPTED,
    RESIZE,
    Heartbeat,
    PausedError,
    tell_failure,
)
from sid_ray.checkpoint.copies import Copies
from sid_ray.checkpoint.manifest import checkpoint_name, load_files
from sid_ray.checkpoint.restore import Reachable, Search
from sid_ray.checkpoint.snapshot import take_snapshot
from sid_ray.checkpoint.warm_start import begin_from
from sid_ray.checkpoint.writer import Spool
from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.row_groups import DamagedDataError
from sid_ray.device.memory import lacks_memory
from sid_ray.device.numerics import set_numerics
from sid_ray.distributed.fragments import gathered, whole_state
from sid_ray.distributed.roles import Trainee
from sid_ray.planning.sizes import at_size, resources_in_words
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.shared import NotSharedError
from sid_ray.training.assemble import components_of, data_of, generator_description, objective_of
from sid_ray.training.draws import Maker
from sid_ray.training.draws_ahead import Coming, DrawsAhead, lane_to
from sid_ray.training.health import Health
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.weights.folder import ModelDescription

THERE, COMING, DAMAGED = 0, 1, 2  # a rank's data for its next step
OPENING = "no steps yet: workers wait for others that open the data set or embed its prompts"
LOOK_S = 1.0  # how long a rank waits for its data before all look around
HANDOVER_PATIENCE_S = 60.0  # for an evaluator that takes weights before these workers go
PATIENCE_S = (1, 5, 30, 60)  # between tries to write the last state of a run


class DivergedError(RuntimeError):
    """The run is not healthy any more; it was until ``good_until`` images were seen."""

    def __init__(self, reason: str, images_seen: int, good_until: int):
        super().__init__(reason)
        self.images_seen, self.good_until = images_seen, good_until


class CheckpointFailedError(RuntimeError):
    """A state that must not be lost could not be written."""


@dataclass
class Worker:
    """One rank of a run."""

    config: DistillConfig
    settings: WorkerSettings
    rank: int
    world_size: int
    device: torch.device
    trainee: Trainee
    roles: dict[str, TrainedRole]
    teacher: ModelDescription
    spool: Spool
    attempt: str
    health: Health
    heartbeat: Heartbeat | None  # on rank 0
    sums: Sums = field(default_factory=Sums)
    stalled_s: float = 0.0  # spent on checkpoints between steps since the last report
    data_stalled_s: float = 0.0  # waited for any rank's data since then
    evaluation_stalled_s: float = 0.0  # spent on handing weights to the evaluator since then
    copies: Copies = field(default_factory=Copies)  # of the state, for checkpoints
    handover: Handover | None = None  # on rank 0 of a run that is evaluated

    @property
    def finished(self) -> bool:
        return self.trainee.images_seen >= self.config.training.images

    def newest(self, good_until: int | None = None) -> Reachable | None:
        """The newest whole checkpoint, on local disks or in storage. A collective.

        Where one was written when no more than ``good_until`` images were seen, the newest such.
        """
        search = Search(self.spool)
        return (search.newest(good_until) if good_until is not None else None) or search.newest()

    def go_on_from(self, found: Reachable, word: str) -> None:
        """Takes up a checkpoint's state and says so. A collective."""
        load_files(found.manifest, found.where, self.trainee, self.roles)
        if self.rank == 0:
            self.tell(f"{word} at {self.trainee.images_seen:,} images from {found.name}")

    def begin_from(self, address: str) -> None:
        """Takes up the state of another run's checkpoint and says so. A collective."""
        begin_from(address, self.trainee, self.roles, self.spool.group)
        if self.rank == 0:
            self.tell(f"began at {self.trainee.images_seen:,} images from {address}")

    def roll_back(self, found: Reachable) -> None:
        """Goes on from an earlier state; newer ones are gone. A collective."""
        self.spool.flush()
        self.spool.forget_after(found.name)
        self.attempt = new_attempt(self.spool)
        self.sums = Sums()
        self.go_on_from(found, "rolled back")
        self.health.reset(self.trainee.images_seen)

    def tell(self, text: str) -> None:
        ray.get(self.settings.tracker.event.remote(text))

    def mark(self, phase: str) -> None:
        """Says that a phase of this start has ended."""
        if self.rank == 0:
            self.settings.tracker.mark.remote(phase, time.time())

    def close(self) -> None:
        self.spool.close()
        if self.handover is not None:
            self.handover.close()
        if self.heartbeat and self.heartbeat.is_alive():
            self.heartbeat.end()

    def evaluate(self) -> None:
        """Hands the averaged generator to the evaluator; does not wait for its score.

        A collective: every rank holds a part of it.
        """
        began, weights = time.monotonic(), whole_state(self.trainee.generator_ema)
        if self.handover is not None:
            self.handover.give(weights, self.trainee.images_seen)
        else:
            for _ in weights:
                pass
        self.evaluation_stalled_s += time.monotonic() - began

    def before_writing(self) -> None:
        """Has copies of the state that are on their way be done before it changes."""
        self.copies.hold()

    def checkpoint(self) -> None:
        """Has the state copied; it is written and uploaded while training goes on. A collective.

        Waits for the checkpoint before it to be on local disk: its memory is used again.
        """
        began = time.monotonic()
        self.spool.settle()
        description = generator_description(self.config, self.teacher)
        stored = self.config.stored()
        snapshot = take_snapshot(self.trainee, self.roles, description, stored, self.copies)
        self.spool.save(snapshot, checkpoint_name(self.trainee.images_seen, self.attempt))
        self.stalled_s += time.monotonic() - began

    def secure(self) -> None:
        """Returns when the present state is in storage. A collective.

        Raises CheckpointFailedError when it cannot be written: the one before it is kept;
        PausedError where the driver may lose the run meanwhile: the state is on local disks then.
        """
        for wait_s in (*PATIENCE_S, None):
            if self.spool.saved != self.trainee.images_seen:
                self.checkpoint()
            if self.spool.flush(self.lease_ends):
                raise PausedError(NO_LEASE)
            if self.spool.stored == self.trainee.images_seen:
                if self.handover is not None:
                    self.handover.unfinished(HANDOVER_PATIENCE_S)
                return
            if wait_s is not None:
                time.sleep(wait_s)
        raise CheckpointFailedError(
            f"the state at {self.trainee.images_seen:,} images could not be written, see above"
        )

    def lease_ends(self) -> int:
        """What this rank wishes while it waits for storage."""
        asked = self.heartbeat.asked if self.heartbeat else ""
        return LEASE_ENDS if asked == NO_LEASE else NOTHING

    def keep_here(self) -> None:
        """Returns when the present state is on local disks. A collective."""
        if self.spool.saved != self.trainee.images_seen:
            self.checkpoint()
        self.spool.settle()

    def heed(self) -> None:
        """Between two steps: moves checkpoints on, and pauses where that is asked. A collective.

        Raises PausedError after the state is in storage; on local disks alone where the driver may
        lose the run.
        """
        wish = NOTHING
        # A collective of Ray's own, a call to an actor: not where the driver looks for drains.
        if not self.settings.own_scaling and ray.train.get_preemption_info() is not None:
            wish = PREEMPTED
        elif self.heartbeat and self.heartbeat.asked:
            wish = LEASE_ENDS if self.heartbeat.asked == NO_LEASE else RESIZE
        began = time.monotonic()
        wish = self.spool.poll(wish)
        self.stalled_s += time.monotonic() - began
        if wish == NOTHING or self.finished:
            return
        if wish == LEASE_ENDS:
            self.keep_here()
        else:
            self.secure()
        reason = "a node is about to go" if wish == PREEMPTED else ""
        if self.heartbeat:
            reason = reason or self.heartbeat.asked
            self.heartbeat.end()
        raise PausedError(reason or "paused for a resize")

    def report(self, since: float, images: int) -> None:
        """Means over all ranks to the tracker. A collective, because ranks saw other samples.

        ``since``: when the first of these ``images`` were begun, in seconds of time.monotonic.
        Raises DivergedError, on all ranks alike, when the run is not healthy.
        """
        metrics = reduce_means(self.sums, self.spool.group)
        spent_s = time.monotonic() - since  # only now a GPU has done what it was told
        metrics["skipped_updates"] /= self.world_size
        memory_gib = largest(peak_memory_gib(self.device), self.spool.group)
        phases = 1 + ("generator_loss" in metrics)
        updates = phases * images / self.config.training.batch_size
        findings = self.health.see(metrics, updates, self.trainee.images_seen)
        self.sums = Sums()
        stalled_s, self.stalled_s = self.stalled_s, 0.0
        data_stalled_s, self.data_stalled_s = self.data_stalled_s, 0.0
        evaluation_stalled_s, self.evaluation_stalled_s = self.evaluation_stalled_s, 0.0
        if self.rank == 0:
            metrics |= {
                "images_per_s": images / spent_s,
                "workers": self.world_size,
                "memory_gib": memory_gib,
                "checkpoint_stall_s": stalled_s,
                "data_stall_s": data_stalled_s,
                "evaluation_stall_s": evaluation_stalled_s,
            }
            self.settings.tracker.log.remote(metrics, self.trainee.images_seen)
        for finding in findings:
            if finding.severity == "unhealthy":
                seen = self.trainee.images_seen
                raise DivergedError(finding.text, seen, finding.good_until)
            if self.rank == 0:
                self.tell(finding.text)


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` images lies in (before, after]; never for 0."""
    return every > 0 and after // every > before // every


def build_worker(settings: WorkerSettings) -> Worker:
    """This rank of the run, its networks as they start."""
    config = DistillConfig.from_json(settings.config)
    most = ray.get(settings.tracker.micro_batch.remote())  # 0 where memory has sufficed
    set_endpoint(config.storage.endpoint_url, config.storage.region)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    bind(device)
    group = meeting_group()
    settings = prove(config, settings, group)
    gathered(None, group)  # all have their networks: on NCCL nobody waits for who still fetches
    if rank == 0:
        settings.tracker.group_starts.remote(world_size)
    before, config = config, at_size(config, settings.sizes, world_size, most)
    if rank == 0 and config != before:
        several = "s" * (world_size != 1)
        settings.tracker.event.remote(
            f"{world_size} worker{several} now: {resources_in_words(config)}"
        )
    torch.set_num_threads(config.chosen.threads)
    numbers = set_numerics(config.resources.deterministic)
    if rank == 0 and device.type == "cuda":
        settings.tracker.event.remote(numbers)
    networks = build_networks(config, settings, world_size, device)
    spool = build_spool(config, settings, group)
    gives = rank == 0 and settings.evaluator is not None
    return Worker(
        config=config,
        settings=settings,
        rank=rank,
        world_size=world_size,
        device=device,
        trainee=networks.trainee,
        roles=networks.roles,
        teacher=networks.description,
        spool=spool,
        attempt=new_attempt(spool),
        health=Health(config.health),
        heartbeat=Heartbeat(settings.tracker) if rank == 0 else None,
        copies=Copies.off(device),
        handover=Handover(settings.evaluator, Copies.off(device)) if gives else None,
    )


def new_attempt(spool: Spool) -> str:
    """Keeps the files of two starts of the workers apart. A collective."""
    return spool.fence.attempt(gathered(uuid.uuid4().hex[:6], spool.group)[0])


class Loop:
    """A worker's iterations; everything else happens between two steps."""

    def __init__(self, worker: Worker):
        config, self.worker = worker.config, worker
        training, plan = config.training, config.group_plan(worker.world_size)
        self.settings = StepSettings(
            plan,
            worker.rank,
            training.ema_half_life,
            training.ema_rampup,
            worker.before_writing,
        )
        tracker = worker.settings.tracker
        # No rank waits inside a step for another one's prompts: NCCL gives up after ten minutes.
        with patiently(lambda: tracker.event.remote(OPENING)):
            data = data_of(
                config,
                worker.teacher,
                components_of(
                    config,
                    worker.teacher,
                    Path(worker.settings.teacher_folder),
                    worker.settings.components,
                ),
                worker.device,
                worker.world_size,
                worker.rank,
                tell=lambda text: tracker.event.remote(text),
            )
        self.source = data.source
        self.objective = objective_of(config, data.null_text)
        self.draws = DrawsAhead(
            Maker(data.source, plan, training.seed, self.objective.draw_spec),
            Coming(plan, worker.rank, self.objective.trains_generator, training.images),
            lane_to(worker.device),
        )
        self._reported, self._reported_at = worker.trainee.images_seen, time.monotonic()

    def iterate(self) -> None:
        """One step, and what is due after it."""
        worker, trainee, output = self.worker, self.worker.trainee, self.worker.config.output
        before = trainee.images_seen
        self.await_data()
        try:
            step(trainee, self.objective, self.settings, self.draws, worker.sums)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            tracker = worker.settings.tracker
            raise short_of_memory(worker.config, worker.world_size, tracker) from error
        after, finished = trainee.images_seen, worker.finished
        if worker.heartbeat:
            worker.heartbeat.stepped(after)
        saving = finished or crossed(output.checkpoint_every, before, after)
        # A report ends with each checkpoint: a resumed run averages over the same windows.
        if saving or crossed(output.report_every, before, after):
            worker.report(self._reported_at, after - self._reported)
            self._reported, self._reported_at = after, time.monotonic()
        every = worker.config.evaluation.every
        if every and (finished or crossed(every, before, after)):
            worker.evaluate()
        if saving:
            worker.checkpoint()
        worker.heed()

    def close(self) -> None:
        """Ends the threads beside it: the source first, whose files the other may wait for."""
        self.source.close()
        self.draws.close()

    def await_data(self) -> None:
        """Returns when every rank has what its next step needs. A collective, where files are read.

        So no rank waits for another's storage inside a step. Raises DamagedDataError on all ranks
        alike, after the state before it is in storage.
        """
        if not self.source.reads:
            return
        began, waited, damage = time.monotonic(), False, None
        while True:
            state = THERE
            try:
                patience_s = LOOK_S if waited else 0.0
                if not self.source.wait(self.worker.trainee.images_seen, patience_s):
                    state = COMING
            except DamagedDataError as error:
                state, damage = DAMAGED, error
            state = self.worker.spool.poll(state)
            if state != COMING:
                break
            waited = True
            self.worker.heed()
        if waited:
            self.worker.data_stalled_s += time.monotonic() - began
        if state == DAMAGED:
            if self.worker.trainee.images_seen:
                self.worker.secure()
            raise damage or DamagedDataError("")


def train_worker(worker: Worker) -> None:
    """Steps until the run has seen its images."""
    loop = Loop(worker)
    try:
        if worker.trainee.images_seen == 0 and worker.config.evaluation.every:
            worker.evaluate()
        while not worker.finished:
            loop.iterate()
    finally:
        loop.close()
    worker.secure()
    worker.spool.forget()


def train_loop(settings: Mapping[str, Any]) -> None:
    """Ray Train's entry point on each worker."""
    try:
        run_worker(settings)
    except PausedError:  # all ranks stop alike
        raise
    except BaseException as error:
        tell_failure(settings["tracker"], ray.train.get_context().get_world_rank(), error)
        leave_groups()
        raise


def run_worker(settings: Mapping[str, Any]) -> None:
    """One rank from its start to its end."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    tracker = settings["tracker"]
    try:
        worker = build_worker(WorkerSettings(**settings))
    except NotSharedError as error:
        # Raised on every rank alike. Not passed on: Ray would start again, to the same end.
        ray.get(tracker.refuse.remote(str(error)))
        return
    worker.mark("build")
    found = worker.newest()
    if found is not None:
        worker.go_on_from(found, "resumed")
    elif worker.settings.began_from:
        worker.begin_from(worker.settings.began_from)
    worker.mark("load")
    if worker.heartbeat:
        tracker.set_phase.remote("training")
        worker.heartbeat.start()
    try:
        train_with_second_chance(worker)
    except (DivergedError, DamagedDataError) as error:
        # Raised on every rank alike. Not passed on: Ray would start again, to the same end.
        if str(error):  # what is damaged, only one rank may know
            ray.get(tracker.give_up.remote(str(error)))
    except PausedError:
        if not worker.settings.own_scaling:
            wait_for_the_end()
        raise
    finally:
        worker.close()


def wait_for_the_end() -> None:
    """Steps made from here on would be lost: Ray's own policy will end this process."""
    while True:
        time.sleep(1)


def train_with_second_chance(worker: Worker) -> None:
    """Trains; rolls back to the last good checkpoint, once, when the run is not healthy any more.

    What was a fault of a machine is gone then; what is the run's own comes back, because a run is
    a function of its config, and DivergedError then ends it. A run that was healthy again beyond
    the place of its fault has its chance again.
    """
    fault_at = -1
    while True:
        try:
            return train_worker(worker)
        except DivergedError as error:
            found = worker.newest(error.good_until)
            if found is None or error.good_until <= fault_at:
                raise
            fault_at = error.images_seen
            if worker.rank == 0:
                worker.tell(str(error))
            worker.roll_back(found)
