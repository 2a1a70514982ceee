"""The actors beside the workers: the tracker, and the evaluator with what it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sid_ray.actors.evaluator import Evaluator
from sid_ray.actors.evaluator_settings import EvaluatorSettings
from sid_ray.actors.tracker import Tracker
from sid_ray.config.distill_config import DistillConfig, evaluator_resources, flatten
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster
from sid_ray.run_folder import WAITING, RunFolder, RunRecord, tracking_uri
from sid_ray.storage.shared import Token
from sid_ray.tracking.copies import store_is_beside
from sid_ray.tracking.mlflow_run import WHERE_TAG, Target
from sid_ray.tracking.mlflow_sqlite import artifacts_of
from sid_ray.training.assemble import Start

LOOK_S = 0.5
FIRST_SCORE_S = 60.0  # for which MLflow's first numbers of a run wait
FIRST_STEP_S = 60.0  # for which MLflow itself waits: while workers start, the CPUs are theirs


def this_node() -> NodeAffinitySchedulingStrategy:
    """The driver's own node: what lives as long as the driver must not go with a worker's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def tracking_target(config: DistillConfig, record: RunRecord) -> Target:
    """Where in MLflow a run is told of."""
    uri = tracking_uri(config)
    if uri.startswith("sqlite:////"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    tags = {"recipe": config.recipe, "objective": config.objective.name, "system": "sid_ray"}
    if record.began_from:
        tags["began_from"] = record.began_from
    if record.copied_from:
        tags |= {"copied_from": record.copied_from, "copied_from_run": record.copied_from_run}
    params = flatten(config)
    folder = params.pop("output.folder")  # a param stays, and a folder may be moved
    if not store_is_beside(config):
        tags[WHERE_TAG] = folder
    return Target(
        uri,
        config.output.experiment,
        config.run_name,
        record.key,
        params,
        tags,
        artifacts_of(uri, config.output.folder),
        record.tracker_run_id,
        record.lease,
    )


def start_tracker(config: DistillConfig, record: RunRecord, began: float) -> Any:
    """``began``: when this driver was started, in seconds since the epoch."""
    new = record.tracker_run_id is None and config.evaluation.every
    return Tracker.options(scheduling_strategy=this_node()).remote(  # type: ignore[attr-defined]
        tracking_target(config, record),
        str(RunFolder.of(config).local),
        config.training.batch_size,
        began,
        FIRST_SCORE_S if new else 0.0,
        FIRST_STEP_S,
    )


def cpus_beside(config: DistillConfig) -> float:
    """CPUs of a Ray of the run's own that are the evaluator's: no more than the machine has."""
    return min(evaluator_resources(config).get("CPU", 0.0), float(os.cpu_count() or 1))


def lacking(config: DistillConfig, workers: int, there: Mapping[str, float]) -> str:
    """What so many workers and the evaluator need and ``there`` has not, in words; '' for nothing.

    ``there`` are the resources of the whole cluster. A worker needs a CPU, and a GPU beside it
    where the run is on GPUs.
    """
    beside, use_gpu = evaluator_resources(config), config.chosen.use_gpu
    for name in sorted(beside.keys() | {"CPU"} | ({"GPU"} if use_gpu else set()), reverse=True):
        own = workers if name == "CPU" or (name == "GPU" and use_gpu) else 0
        needed, found = own + beside.get(name, 0), there.get(name, 0)
        if found >= needed:
            continue
        who = [f"{workers} worker{'s' * (workers != 1)}"] * bool(own)
        if name in beside:
            who.append(f"the evaluator (evaluation.resources {name}={beside[name]:g})")
        verb = "needs" if who[1:] == [] and own <= 1 else "need"
        several = "s" if name in ("CPU", "GPU") and needed != 1 else ""
        return f"{' and '.join(who)} {verb} {needed:g} {name}{several}, the cluster has {found:g}"
    return ""


def start_evaluator(
    config: DistillConfig,
    start: Start,
    run: RunFolder,
    record: RunRecord,
    tracker: Any,
    token: Token | None = None,
) -> Any:
    """The evaluator, on this node or wherever its own resources are; None where nobody asks it.

    On a Ray of its own, a run gets resources that the evaluator was promised only if they are here:
    raises UserError where they are not.
    """
    if not config.evaluation.every:
        return None
    asked = evaluator_resources(config)
    there = ray.cluster_resources()
    missing = [name for name, wanted in asked.items() if there.get(name, 0) < wanted]
    if missing and not joins_cluster():
        name = missing[0]
        raise UserError(
            f"evaluation.resources asks for {name}={asked[name]:g}, here are "
            f"{there.get(name, 0):g}: ask for less, or leave it empty"
        )
    options: dict[str, Any] = {"scheduling_strategy": this_node()}
    waiting = str(run.local / WAITING)
    if asked:
        options = {"num_cpus": asked.pop("CPU", 0), "num_gpus": asked.pop("GPU", 0)}
        options["resources"] = asked
        waiting = ""
    settings = EvaluatorSettings(
        config=config.to_json(),
        teacher=start.description,
        teacher_folder=str(start.teacher),
        run=str(run.store),
        run_key=record.key,
        waiting=waiting,
        tracker=tracker,
        components=start.components,
        token=token,
        lease=run.fence.number,
    )
    return Evaluator.options(**options).remote(settings)  # type: ignore[attr-defined]


def drained(evaluator: Any, look: Callable[[], Any]) -> str:
    """Waits for what the evaluator still has to score; '' or what went wrong. Raises RayError."""
    answer = evaluator.drain.remote()
    while not ray.wait([answer], timeout=LOOK_S)[0]:
        look()
    return ray.get(answer)
