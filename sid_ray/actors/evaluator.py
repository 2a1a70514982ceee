"""Scores averaged generators beside the training, on resources of its own."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from torch import Tensor

from sid_ray.actors.build import teacher_here
from sid_ray.assemble import data_of, generator_description, network_of, schedule_of
from sid_ray.best_weights import keep_best
from sid_ray.config import DistillConfig
from sid_ray.denoisers.spec import spec_of
from sid_ray.evaluation import Judge, blocks, codec_of
from sid_ray.local_copies import cache_folder, file_sha256
from sid_ray.metrics.names import plain_scores
from sid_ray.pictures import pixel_scale, sheet_samples, tile
from sid_ray.sampling import generator_sampler
from sid_ray.snapshot import write_weights
from sid_ray.store import PART, Store, moved_into_place, set_endpoint
from sid_ray.weights.folder import ModelDescription, load_weights

SUFFIX = ".safetensors"
RESTARTS = 20  # nodes may go; weights that kill each process that scores them end it
NICE = 10  # without resources of its own it takes what the training leaves of this machine


@dataclass(frozen=True)
class EvaluatorSettings:
    """Args:
    config: of the run, as JSON.
    teacher, teacher_folder: whose network the generator has.
    run: address of the run's folder. run_key: RunRecord.key.
    waiting: where weights wait for their turn, on this node's disk; empty for one of the run's key.
    tracker: actor that is told.
    """

    config: str
    teacher: ModelDescription
    teacher_folder: str
    run: str
    run_key: str
    waiting: str
    tracker: Any


class Examined(NamedTuple):
    """What came of a look at some weights: scores and what they mean, and a contact sheet (PNG)."""

    result: dict[str, Any]
    sheet: bytes


class Examiner:
    """Scores weights of a run's generator. Raises UserError where something it needs is missing."""

    def __init__(
        self, settings: EvaluatorSettings, device: torch.device, tell: Callable[[str], None]
    ):
        config = DistillConfig.from_json(settings.config)
        teacher = settings.teacher
        folder = Path(teacher_here(config, settings.teacher_folder))
        net = spec_of(teacher.family).build(teacher.network).eval().requires_grad_(False)
        self.net = net.to(device)
        num_steps = config.objective.num_steps
        self.sampler = generator_sampler(self.net, schedule_of(config), num_steps)
        source = data_of(config, teacher, folder, device).source
        codec = codec_of(teacher, folder, config.evaluation.vae, device)
        self.judge = Judge(config.evaluation, source, codec, num_steps, device, tell)

    def examine(self, weights: Path, images_seen: int) -> Examined:
        """Looks at the weights of a file."""
        began = time.monotonic()
        load_weights(self.net, weights)
        looks = [self.judge.look(self.sampler, seeds) for seeds in blocks(self.judge.seeds)]
        result = {
            "images_seen": images_seen,
            "weights_sha256": file_sha256(weights),
            "scores": self.judge.scores(looks),
            **self.judge.protocol(self.judge.seeds),
            "seconds": round(time.monotonic() - began, 1),
        }
        return Examined(result, self._sheet())

    def _sheet(self) -> bytes:
        columns, index = sheet_samples(self.judge.source, self.judge.resolution)
        images = self.judge.images(self.sampler, range(len(index)), index)
        held = io.BytesIO()
        tile(images, columns, pixel_scale(images.shape[-1])).save(held, "PNG")
        return held.getvalue()


@ray.remote(num_cpus=0, max_concurrency=4, max_restarts=RESTARTS, max_task_retries=-1)
class Evaluator:
    """Takes weights at once, scores them in the order they came. Training goes on meanwhile.

    What waits is on this node's disk: neither a worker that goes nor a killed driver loses it.
    Evaluation draws from its own streams, so its cadence never changes the training.
    """

    def __init__(self, settings: EvaluatorSettings):
        config = DistillConfig.from_json(settings.config)
        on_gpu = bool(ray.get_gpu_ids())
        if not config.evaluation.resources:
            os.nice(NICE)
        if not on_gpu:
            torch.set_num_threads(1)
        set_endpoint(config.storage.endpoint_url, config.storage.region)
        self._keeps_best = config.evaluation.keep_best
        self._description = generator_description(config, network_of(config, settings.teacher))
        own = cache_folder() / "unscored" / settings.run_key
        self._folder = Path(settings.waiting) if settings.waiting else own
        self._folder.mkdir(parents=True, exist_ok=True)
        for cut in self._folder.glob(f"*{PART}"):  # of a process that was killed while it wrote
            cut.unlink(missing_ok=True)
        self._settings, self._device = settings, torch.device("cuda" if on_gpu else "cpu")
        self._changed, self._trouble = threading.Condition(), ""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, weights: Mapping[str, Tensor], images_seen: int) -> None:
        """Keeps weights until it is their turn."""
        target = self._folder / f"{images_seen:012d}{SUFFIX}"
        try:
            with moved_into_place(target) as written:
                write_weights(written, weights, self._description)
        except OSError as error:  # a full disk costs a score, not the training
            self._failed(images_seen, error)
        with self._changed:
            self._changed.notify_all()

    def drain(self) -> str:
        """Returns once all that was taken is scored: '' or what went wrong."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting())
            return self._trouble

    def _failed(self, images_seen: int, error: Exception) -> None:
        self._trouble = f"the evaluation at {images_seen:,} images failed: {error}"
        self._settings.tracker.event.remote(f"warning: {self._trouble}")

    def _waiting(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{SUFFIX}"))

    def _work(self) -> None:
        examiner = None
        while True:
            with self._changed:
                self._changed.wait_for(self._waiting)
                weights = self._waiting()[0]
            try:
                examiner = examiner or Examiner(
                    self._settings, self._device, self._settings.tracker.event.remote
                )
                found = examiner.examine(weights, int(weights.stem))
                self._tell(found, weights, examiner.judge.primary)
            except Exception as error:  # the training goes on without this score
                self._failed(int(weights.stem), error)
            with self._changed:
                weights.unlink(missing_ok=True)
                self._changed.notify_all()

    def _tell(self, found: Examined, weights: Path, primary: str) -> None:
        """Tells the tracker; keeps the weights where they are the best so far."""
        settings, images_seen = self._settings, found.result["images_seen"]
        tracker = settings.tracker
        best = ray.get(tracker.log_score.remote(plain_scores(found.result["scores"]), images_seen))
        ray.get(tracker.log_evaluation.remote(found.result))
        ray.get(tracker.log_picture.remote("samples", found.sheet, images_seen))
        if primary in best and self._keeps_best:
            keep_best(Store.at(settings.run), weights, found.result, tracker.event.remote)
