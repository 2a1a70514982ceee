"""One iteration through Ray Train and DeepSpeed on one worker, against plain torch: a ratio.

    python -m benchmarks.overhead [--rounds 12] [--stages 0 1 2 3] [--micro-batch 32]

Both in the worker's process and in turn, on the same weights, draws and data (digits, 256 images an
iteration): the worker's whole iteration with its metrics, heartbeat, checkpoints at the recipe's
interval and looks for resizes, against step() on plain roles. The weights of both are compared in
the end.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.one_process import plain_trainee
from sid_ray.actors import beside, trainer
from sid_ray.actors.build import WorkerSettings
from sid_ray.actors.worker import Loop, build_worker
from sid_ray.config.distill_config import DistillConfig, replace, with_plain_resources
from sid_ray.distributed.fragments import whole_tensors
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunRecord
from sid_ray.training.assemble import find_start
from sid_ray.training.step import Sums, step
from sid_ray.weights.folder import load_model


def compare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's entry point: iterations in turn; rank 0's seconds of both."""
    values = dict(settings)
    rounds = values.pop("rounds")
    worker = build_worker(WorkerSettings(**values))
    assert worker.heartbeat is not None
    worker.heartbeat.start()
    teacher, _ = load_model(Path(worker.settings.teacher_folder))
    plain = plain_trainee(worker.config, teacher, worker.teacher.family)
    loop, sums = Loop(worker), Sums()
    seconds: dict[str, list[float]] = {"plain": [], "sid_ray": []}
    for index in range(rounds):
        for name in ("plain", "sid_ray") if index % 2 else ("sid_ray", "plain"):
            began = time.perf_counter()
            if name == "plain":
                step(plain, loop.objective, loop.settings, loop.draws, sums)
            else:
                loop.iterate()
            seconds[name].append(time.perf_counter() - began)
    role, device = worker.roles["generator"], torch.device("cpu")
    own = {n: v for n, _, v in whole_tensors(role.shapes, role.owned(), ("master",), device)}
    theirs = dict(plain.generator.module.named_parameters())
    ours, plains = (torch.cat([of[n].detach().flatten() for n in own]) for of in (own, theirs))
    error = float((ours - plains).norm() / plains.norm())
    worker.close()
    return {"seconds": seconds, "error": error}


def measure(config: DistillConfig, folder: Path, rounds: int) -> dict[str, Any]:
    start = find_start(config)
    tracker = beside.start_tracker(config, RunRecord(config.to_json()), time.time())
    settings = WorkerSettings(
        config.to_json(), str(folder), str(start.teacher), "", str(folder / ".local"), "", True,
        tracker, None, components=start.components,
    )  # fmt: skip
    built = trainer.build_trainer(config, settings, folder)
    built.train_loop_per_worker = compare
    built.train_loop_config |= {"rounds": rounds}
    return built.fit().return_value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="overhead_"))
    config = replace(
        with_plain_resources(recipe("digits-sid")),
        training__batch_size=256,
        resources__micro_batch=options.micro_batch,
        resources__num_workers=1,
        output__folder=str(folder),
        output__checkpoint_every=2560,
        evaluation__every=0,
    )
    trainer.start_ray(config)
    print(
        "| ZeRO | plain, s | through Ray and DeepSpeed, s | ratio of medians | weights differ by |"
    )
    print("|---:|---:|---:|---:|---:|")
    for stage in options.stages:
        run = folder / f"zero{stage}"
        run.mkdir()
        found = measure(replace(config, resources__zero_stage=stage), run, options.rounds)
        # The first iterations warm caches up.
        plain, ours = (
            statistics.median(found["seconds"][name][2:]) for name in ("plain", "sid_ray")
        )
        print(
            f"| {stage} | {plain:.2f} | {ours:.2f} | {ours / plain:.3f} | {found['error']:.1e} |",
            flush=True,
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
