"""A score that is missing, made here: the protocol of the evaluator beside the training, no Ray."""

from __future__ import annotations

import torch

from sid_ray.actors.evaluator_settings import EvaluatorSettings
from sid_ray.actors.examiner import Examiner
from sid_ray.checkpoint.find import fetch_generator, newest_listed
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.config.distill_config import DistillConfig
from sid_ray.evaluation.records import add_result
from sid_ray.run_folder import RunFolder
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.store import Store
from sid_ray.training.assemble import find_start
from sid_ray.weights.description import WEIGHTS


def score_newest(config: DistillConfig) -> dict[str, float]:
    """Scores of the averaged generator in a run's newest checkpoint, on this process's CPU.

    They are a line of its evaluations.jsonl afterwards. Raises UserError, StoreError.
    """
    set_endpoint(config.storage.endpoint_url, config.storage.region)
    run = RunFolder.of(config)
    there = newest_listed(run.store)
    if there is None:
        return {}
    name, manifest = there
    folder = run.store.folder / name / EMA_FOLDER if run.store.is_local else None
    folder = folder or fetch_generator(run.store, name)
    examined = examiner_of(config).examine(folder / WEIGHTS, manifest.images_seen)
    add_result(Store.at(run.local), examined.result)
    return dict(examined.result["scores"])


def examiner_of(config: DistillConfig) -> Examiner:
    start = find_start(config)
    settings = EvaluatorSettings(
        config=config.to_json(),
        teacher=start.description,
        teacher_folder=str(start.teacher),
        run="",
        run_key="",
        waiting="",
        tracker=None,
        components=start.components,
    )
    return Examiner(settings, torch.device("cpu"), lambda text: None)
