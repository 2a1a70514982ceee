"""The Ray Train loop of one worker: build, restore, step until the next event."""

from __future__ import annotations

import copy
import dataclasses
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from torch import nn

from sid_ray.assemble import adam_of, data_of, generator_description, objective_of, rules_of
from sid_ray.checkpoint import (
    checkpoint_name,
    load_checkpoint,
    newest_whole,
    write_checkpoint,
)
from sid_ray.config import DistillConfig
from sid_ray.denoisers.attention import set_attention
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.spec import spec_of
from sid_ray.engine import DeepSpeedRole, init_deepspeed, shard_frozen
from sid_ray.fragments import ShardedAverage, whole_state
from sid_ray.step import StepSettings, Sums, Trainee, draws_of, step
from sid_ray.weights.folder import ModelDescription, load_model

SKIPPED_UPDATES_LIMIT = 10  # consecutive reports with skipped updates after which a run stops


class DivergedError(RuntimeError):
    """The updates of a run are not finite any more."""


@dataclass(frozen=True)
class WorkerSettings:
    """What the driver hands to every worker. All paths are absolute."""

    config: str
    run_folder: str
    teacher_folder: str
    initial_generator: str
    attempt: str
    tracker: Any
    evaluator: Any


@dataclass
class Worker:
    """One rank of a run."""

    config: DistillConfig
    settings: WorkerSettings
    rank: int
    world_size: int
    device: torch.device
    trainee: Trainee
    roles: dict[str, DeepSpeedRole]
    teacher: ModelDescription
    sums: Sums

    def newest(self) -> Path | None:
        """The newest whole checkpoint. A collective.

        Rank 0 checks and chooses for all: an upload may end between two ranks' looks.
        """
        chosen: list[Any] = [None]
        if self.rank == 0:
            folder, damage = newest_whole(Path(self.settings.run_folder))
            chosen = [folder]
            for line in damage:
                self.tell(f"damaged checkpoint skipped: {line}")
        torch.distributed.broadcast_object_list(chosen, src=0)
        return chosen[0]

    def go_on_from(self, folder: Path, word: str) -> None:
        """Takes up a checkpoint's state and says so."""
        load_checkpoint(folder, self.trainee, self.roles)
        if self.rank == 0:
            self.tell(f"{word} at {self.trainee.images_seen:,} images from {folder.name}")

    def tell(self, text: str) -> None:
        ray.get(self.settings.tracker.event.remote(text))

    def evaluate(self) -> None:
        """Hands the averaged generator to the evaluator; does not wait for its score.

        A collective: every rank holds a part of it.
        """
        weights = {}
        for name, value in whole_state(self.trainee.generator_ema):
            if self.rank == 0:
                weights[name] = value.cpu()
        if self.rank == 0:
            self.settings.evaluator.score.remote(ray.put(weights), self.trainee.images_seen)

    def checkpoint(self) -> None:
        """Writes a checkpoint to local disk; Ray uploads every rank's files into one folder.

        The upload runs in the background. A collective.
        """
        folder = Path(tempfile.mkdtemp(prefix="sid_ray_checkpoint_"))
        description = generator_description(self.config, self.teacher)
        write_checkpoint(folder, self.trainee, self.roles, description, self.settings.config)
        ray.train.report(
            {"images_seen": self.trainee.images_seen},
            checkpoint=ray.train.Checkpoint(str(folder)),
            checkpoint_dir_name=checkpoint_name(self.trainee.images_seen, self.settings.attempt),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )

    def report(self, spent_s: float, images: int) -> None:
        """Means over all ranks to the tracker. A collective, because ranks saw other samples.

        Raises DivergedError when every update since the last report was skipped.
        """
        metrics = reduce_means(self.sums, self.world_size)
        updates = 2 * images / self.config.training.batch_size
        skipped = metrics.pop("skipped_updates") / self.world_size
        self.sums = Sums()
        if self.rank == 0:
            metrics |= {"images_per_s": images / spent_s, "skipped_updates": skipped}
            self.settings.tracker.log.remote(metrics, self.trainee.images_seen)
        if updates >= SKIPPED_UPDATES_LIMIT and skipped >= updates:
            raise DivergedError(
                f"none of the last {updates:.0f} updates was finite, at "
                f"{self.trainee.images_seen:,} images: lower the learning rates"
            )


def reduce_means(sums: Sums, world_size: int) -> dict[str, float]:
    """Means over samples of all ranks; plain sums over ranks where there were no samples."""
    names = sorted(sums.values)
    packed = torch.stack([sums.values[name].double().cpu() for name in names])
    counts = torch.tensor([float(sums.counts[name]) for name in names], dtype=torch.float64)
    both = torch.stack([packed, counts])
    if world_size > 1:
        torch.distributed.all_reduce(both)
    means = both[0] / both[1].clamp_min(1)
    return dict(zip(names, means.tolist(), strict=True))


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` images lies in (before, after]; never for 0."""
    return every > 0 and after // every > before // every


def build(settings: WorkerSettings) -> Worker:
    """Teacher, fake score and generator on this rank, all with the teacher's weights."""
    config = DistillConfig.from_json(settings.config)
    context = ray.train.get_context()
    torch.set_num_threads(config.resources.threads)
    device = ray.train.torch.get_device()
    init_deepspeed()
    teacher, description = load_model(Path(settings.teacher_folder))
    if config.teacher.dropout >= 0:
        teacher, description = with_dropout(teacher, description, config.teacher.dropout)
    teacher.to(device)
    set_precision(teacher, config.training.precision)
    set_attention(teacher, config.resources.attention)
    set_recompute(teacher, config.resources.activation_checkpointing)
    plan = config.group_plan(context.get_world_size())

    rules = rules_of(config, description.family)

    def role(name: str, start: nn.Module) -> DeepSpeedRole:
        network: nn.Module = copy.deepcopy(start).requires_grad_(True)
        stage = config.resources.stage_of(name)
        built = DeepSpeedRole(
            network,
            adam_of(config, name),
            stage,
            plan.passes_a_rank,
            rules[name],
            config.resources.offload_optimizer,
        )
        built.module.requires_grad_(False)  # a phase makes it trainable
        return built

    # One after the other: the whole copies that a sharded network is made of are not there at once.
    generator = role("generator", initial_generator(settings, teacher))
    roles = {"fake_score": role("fake_score", teacher), "generator": generator}
    if config.resources.teacher_zero_stage == 3:
        teacher = shard_frozen(teacher)
    trainee = Trainee(teacher, roles["fake_score"], generator, ShardedAverage(generator))
    return Worker(
        config=config,
        settings=settings,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        trainee=trainee,
        roles=roles,
        teacher=description,
        sums=Sums(),
    )


def with_dropout(
    teacher: nn.Module, description: ModelDescription, dropout: float
) -> tuple[nn.Module, ModelDescription]:
    """The same network with another dropout while it is trained: it is an argument of a network."""
    network = dict(description.network) | {"dropout": dropout}
    changed = spec_of(description.family).build(network)
    changed.load_state_dict(teacher.state_dict())
    changed.eval().requires_grad_(False)
    return changed, dataclasses.replace(description, network=network)


def initial_generator(settings: WorkerSettings, teacher: nn.Module) -> nn.Module:
    """The network the generator starts as: the teacher, or SiD2A's one-step generator."""
    if not settings.initial_generator:
        return teacher
    start, _ = load_model(Path(settings.initial_generator))
    network = copy.deepcopy(teacher)
    # EDM2's published generators lack the log-variance head, which a generator never uses.
    network.load_state_dict(network.state_dict() | start.state_dict())
    return network


def train(worker: Worker) -> None:
    """Steps until the run has seen its images; everything else happens between two steps."""
    config, trainee = worker.config, worker.trainee
    training, output = config.training, config.output
    plan = config.group_plan(worker.world_size)
    step_settings = StepSettings(plan, worker.rank, training.ema_half_life, training.ema_rampup)
    folder = Path(worker.settings.teacher_folder)
    data = data_of(config, worker.teacher, folder, worker.device)
    objective = objective_of(config, data.null_text)
    draws = draws_of(data.source, plan, training.seed, worker.device, objective.draw_spec)
    reported, reported_at = trainee.images_seen, time.monotonic()
    if trainee.images_seen == 0 and config.evaluation.every:
        worker.evaluate()
    while trainee.images_seen < training.images:
        before = trainee.images_seen
        step(trainee, objective, step_settings, draws, worker.sums)
        after, finished = trainee.images_seen, trainee.images_seen >= training.images
        saving = finished or crossed(output.checkpoint_every, before, after)
        # A report ends with each checkpoint: a resumed run averages over the same windows.
        if saving or crossed(output.report_every, before, after):
            worker.report(time.monotonic() - reported_at, after - reported)
            reported, reported_at = after, time.monotonic()
        if config.evaluation.every and (
            finished or crossed(config.evaluation.every, before, after)
        ):
            worker.evaluate()
        if saving:
            worker.checkpoint()


def train_loop(settings: Mapping[str, Any]) -> None:
    """Ray Train's entry point on each worker."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    worker = build(WorkerSettings(**settings))
    folder = worker.newest()
    if folder is not None:
        worker.go_on_from(folder, "resumed")
    if worker.rank == 0:
        worker.settings.tracker.set_phase.remote("training")
    try:
        train_with_second_chance(worker)
    except DivergedError as error:
        # Raised on every rank alike. Not passed on: Ray would start again, to the same end.
        ray.get(worker.settings.tracker.give_up.remote(str(error)))


def train_with_second_chance(worker: Worker) -> None:
    """Trains; rolls back to the last checkpoint when updates are not finite any more.

    Once a checkpoint: what was a fault of a machine is gone then; what is the run's own comes back,
    because a run is a function of its config, and DivergedError then ends it.
    """
    tried: set[Path] = set()
    while True:
        try:
            return train(worker)
        except DivergedError as error:
            folder = worker.newest()
            if folder is None or folder in tried:
                raise
            tried.add(folder)
            worker.sums = Sums()
            if worker.rank == 0:
                worker.tell(str(error))
            worker.go_on_from(folder, "rolled back")
