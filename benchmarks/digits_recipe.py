"""What was tried for the recipe digits-sid: Frechet distance against images seen, one table.

    python -m benchmarks.digits_recipe [ROW ...]

Each row overrides fields of the recipe and runs it in one process of plain torch: the numbers that
any set of workers gives. About 135 CPU-seconds a row.
"""

from __future__ import annotations

import sys
import time

from benchmarks.one_process import distil
from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe

ROWS = {
    "recipe": {},
    "recipe, seed 1": {"training__seed": 1},
    "recipe, seed 2": {"training__seed": 2},
    "official EMA": {"training__ema_half_life": 1000, "training__ema_rampup": 0.05},
    "EMA half-life 10,000": {"training__ema_half_life": 10_000, "training__ema_rampup": 0.5},
    "alpha 1.2": {"objective__alpha": 1.2},
    "fake score lr 2e-4": {"training__fake_score_lr": 2e-4},
    "generator lr 3e-5": {"training__generator_lr": 3e-5},
    "both lr 3e-4": {"training__generator_lr": 3e-4, "training__fake_score_lr": 3e-4},
    "batch 32": {"training__batch_size": 32},
    "batch 128": {"training__batch_size": 128},
}
COLUMNS = (5_000, 10_000, 20_000, 30_000)


def main(names: list[str]) -> None:
    print(f"{'images seen':24}" + "".join(f"{column:>10,}" for column in COLUMNS) + "  CPU-s")
    for name in names or ROWS:
        start = time.process_time()
        config = replace(recipe("digits-sid"), **ROWS[name])
        row = [distance for _, distance in distil(config, COLUMNS)]
        numbers = "".join(f"{score:10.2f}" for score in row)
        print(f"{name:24}{numbers}{time.process_time() - start:7.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
