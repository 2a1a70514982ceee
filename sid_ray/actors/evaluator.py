"""Scores averaged generators beside the training, on resources of its own.

Its process starts while the workers do. What it needs of torch is loaded by the thread that scores,
at its low priority, and not before: the workers' first step shall not wait for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from sid_ray.actors.evaluator_settings import EvaluatorSettings
from sid_ray.checkpoint.best import keep_best
from sid_ray.config.distill_config import DistillConfig
from sid_ray.metrics.names import plain_scores
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.durable import moved_into_place, remove_parts
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.shared import host_name, not_shared
from sid_ray.storage.store import Store
from sid_ray.weights.description import ModelDescription

if TYPE_CHECKING:
    from torch import Tensor

    from sid_ray.actors.examiner import Examined, Examiner

SUFFIX = ".safetensors"
RESTARTS = 20  # nodes may go; weights that kill each process that scores them end it
NICE = 10  # without resources of its own it takes what the training leaves of this machine


def step_back() -> None:
    """Gives all threads of this process a low priority; on Linux, nice is a thread's own."""
    os.nice(NICE)
    with suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), os.nice(0))


@ray.remote(
    num_cpus=0,
    max_concurrency=4,
    concurrency_groups={"weights": 1},
    max_restarts=RESTARTS,
    max_task_retries=-1,
)
class Evaluator:
    """Takes weights at once, scores them in the order they came. Training goes on meanwhile.

    What waits is on this node's disk: neither a worker that goes nor a killed driver loses it.
    Evaluation draws from its own streams, so its cadence never changes the training.
    """

    def __init__(self, settings: EvaluatorSettings):
        config = DistillConfig.from_json(settings.config)
        if not config.evaluation.resources:
            step_back()
        set_endpoint(config.storage.endpoint_url, config.storage.region)
        self._keeps_best = config.evaluation.keep_best
        own = cache_folder() / "unscored" / settings.run_key
        self._folder = Path(settings.waiting) if settings.waiting else own
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self._folder)
        self._settings, self._config, self._on_gpu = settings, config, bool(ray.get_gpu_ids())
        settings.tracker.evaluator_sits.remote(ray.get_runtime_context().get_node_id())
        self._changed, self._trouble = threading.Condition(), ""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @ray.method(concurrency_group="weights")  # one at a time: in the order they were sent
    def take(self, weights: Mapping[str, Tensor], images_seen: int) -> None:
        """Keeps weights until it is their turn."""
        from sid_ray.checkpoint.snapshot import write_weights

        target = self._folder / f"{images_seen:012d}{SUFFIX}"
        try:
            with moved_into_place(target, sync=False) as written:
                write_weights(written, weights, self._description)
        except OSError as error:  # a full disk costs a score, not the training
            self._failed(images_seen, error)
        with self._changed:
            self._changed.notify_all()

    @property
    def _description(self) -> ModelDescription:
        """Of the generator."""
        from sid_ray.training.assemble import generator_description, network_of

        return generator_description(self._config, network_of(self._config, self._settings.teacher))

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
                examiner = examiner or self._examiner()
                found = examiner.examine(weights, int(weights.stem))
                self._tell(found, weights, examiner.judge.primary)
            except Exception as error:  # the training goes on without this score
                self._failed(int(weights.stem), error)
            with self._changed:
                weights.unlink(missing_ok=True)
                self._changed.notify_all()

    def _examiner(self) -> Examiner:
        import torch

        from sid_ray.actors.examiner import Examiner

        token, run = self._settings.token, self._settings.run
        if token is not None and not token.seen():  # the best weights would be kept for nobody
            host = host_name(ray.util.get_node_ip_address())
            raise not_shared(run, [f"the evaluator's {host} sees nothing of it"], "--output.folder")
        if not self._on_gpu:
            torch.set_num_threads(1)
        device = torch.device("cuda" if self._on_gpu else "cpu")
        return Examiner(self._settings, device, self._settings.tracker.event.remote)

    def _tell(self, found: Examined, weights: Path, primary: str) -> None:
        """Tells the tracker; keeps the weights where they are the best so far."""
        settings, images_seen = self._settings, found.result["images_seen"]
        result = found.result | {"lease": settings.lease}
        tracker = settings.tracker
        best = ray.get(tracker.log_score.remote(plain_scores(found.result["scores"]), images_seen))
        ray.get(tracker.log_evaluation.remote(result))
        ray.get(tracker.log_picture.remote("samples", found.sheet, images_seen))
        if primary in best and self._keeps_best:
            keep_best(Store.at(settings.run), weights, result, tracker.event.remote)
