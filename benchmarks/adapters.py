"""Adapters against whole networks: Frechet distance at equal images, and seconds an image.

    python -m benchmarks.adapters emoji-lsg --out rows.jsonl --images 10000 \\
        --changes adapter.rank=32 training.generator_lr=1e-3 training.fake_score_lr=1e-3

One process of plain torch on one thread, scored as a run is (docs/results.md has the table). Each
call adds one line to the file: what was changed, the distances, how many numbers are trained, and
the process's own seconds of training.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.one_process import OneProcess
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.recipes.registry import recipe


def changed(config: DistillConfig, changes: list[str]) -> DistillConfig:
    """The config with ``section.field=value`` of each: a number where it reads as one."""
    found = {}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        found[name.replace(".", "__")] = value
    return replace(config, **found)


def measured(config: DistillConfig, columns: list[int]) -> dict[str, object]:
    """Distances of the averaged generator at each of ``columns`` images, and what they cost."""
    run, seconds, distances = OneProcess(config), 0.0, {}
    for column in columns:
        start = time.process_time()
        seen = run.train_to(column)
        seconds += time.process_time() - start
        distances[seen] = round(run.score(), 3)
        print(seen, distances[seen], round(seconds), flush=True)
    roles = {"fake_score": run.trainee.fake_score, "generator": run.trainee.generator}
    trained = {name: sum(p.numel() for p in r.module.parameters()) for name, r in roles.items()}
    return {"distances": distances, "trained": trained, "cpu_ms_an_image": 1000 * seconds / seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--changes", nargs="*", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--images", nargs="+", type=int, default=[4_000])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = changed(recipe(args.recipe), args.changes)
    row = {"recipe": args.recipe, "changes": args.changes} | measured(config, args.images)
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
