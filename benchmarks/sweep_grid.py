"""A full grid of digits-sida, each point trained to the end: what a sweep is held against.

    python -m benchmarks.sweep_grid TABLE.jsonl [--processes 2] [--seeds 0]

Points are trained in processes of plain torch, the numbers of any set of workers. Half-lives of
the average change no training, so one training stands for the points of all of them; a grid is
charged for each all the same. Alpha stays the recipe's. A table that exists is gone on with;
benchmarks.sweep_replay reads it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from pathlib import Path

GRID = {
    "training.generator_lr": (5e-5, 1e-4, 2e-4),
    "training.fake_score_lr": (1e-4, 2e-4),
    "objective.adversarial_weight": (0.003, 0.01, 0.03),
}
HALF_LIFE = "training.ema_half_life"
HALF_LIVES = (500, 1_000, 5_000)  # the ramp-up holds the last one at a fifth of the images seen
SPACE = Path(__file__).parent.parent / "tune_spaces" / "digits-sida.yaml"


def points() -> list[dict[str, float]]:
    """What is trained: the grid without the half-lives."""
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def train(job: tuple[dict[str, float], int]) -> list[dict]:
    """One line for each half-life: the scores where a sweep would judge the trial."""
    from benchmarks.one_process import OneProcess
    from sid_ray.config.distill_config import replace
    from sid_ray.recipes.registry import recipe
    from sid_ray.sweep.arithmetic import decision_points
    from sid_ray.sweep.space import config_of
    from sid_ray.sweep.space_file import parse_space

    point, seed = job
    began = time.process_time()
    space, base = parse_space(SPACE.read_text(), str(SPACE)), recipe("digits-sida")
    config = replace(config_of(space, base, point), training__seed=seed)
    run = OneProcess(config, HALF_LIVES)
    scores: dict[float, dict[int, float]] = {own: {} for own in HALF_LIVES}
    for images in decision_points(space.budget, space.scheduler, config.training.batch_size):
        run.train_to(images)
        for half_life, found in scores.items():
            found[images] = run.score(half_life)
    seconds = round(time.process_time() - began, 1)
    return [
        {"seed": seed, "point": {**point, HALF_LIFE: own}, "scores": found, "cpu_s": seconds}
        for own, found in scores.items()
    ]


def read(table: Path) -> list[dict]:
    """Lines of a table; half a line of a killed process is none."""
    text = table.read_text() if table.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    done = [(line["seed"], line["point"]) for line in read(args.table)]
    jobs = [
        (point, seed)
        for seed in args.seeds
        for point in points()
        if (seed, {**point, HALF_LIFE: HALF_LIVES[-1]}) not in done
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes) as pool, args.table.open("a") as file:
        for number, lines in enumerate(pool.imap_unordered(train, jobs), start=1):
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            best = min(line["scores"][max(line["scores"])] for line in lines)
            print(f"{number} of {len(jobs)}: {best:.2f} {lines[0]['point']}", flush=True)


if __name__ == "__main__":
    main()
