"""Adapters against whole networks: Frechet distance at equal images, and seconds an image.

    python -m benchmarks.adapters emoji-lsg --out rows.jsonl --images 10000 \\
        --changes adapter.rank=32 training.generator_lr=1e-3 training.fake_score_lr=1e-3

One process of plain torch on one thread, scored as a run is (docs/results.md has the table). Each
call adds one line to the file: what was changed, the distances, how many numbers are trained, and
the process's own seconds of training. ``--save`` keeps the generator, and

    python -m benchmarks.adapters emoji-lsg --sheet sheet.png --of whole=FOLDER adapters=FOLDER

draws what the teacher and generators that were kept make of the same seeds and captions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.one_process import OneProcess
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.evaluation.final_report import teacher_sampler
from sid_ray.evaluation.judge import Judge
from sid_ray.evaluation.pictures import contact_sheet, save_picture, sheet_samples
from sid_ray.evaluation.samplers import generator_sampler
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import data_of, find_start, schedule_of
from sid_ray.weights.folder import load_model


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


def measured(
    config: DistillConfig, columns: list[int], folder: Path | None = None
) -> dict[str, object]:
    """Distances of the averaged generator at each of ``columns`` images, and what they cost.

    ``folder``: where the generator is kept.
    """
    run, seconds, distances = OneProcess(config), 0.0, {}
    for column in columns:
        start = time.process_time()
        seen = run.train_to(column)
        seconds += time.process_time() - start
        distances[seen] = round(run.score(), 3)
        print(seen, distances[seen], round(seconds), flush=True)
        if folder is not None:
            run.save(folder)
    roles = {"fake_score": run.trainee.fake_score, "generator": run.trainee.generator}
    trained = {name: sum(p.numel() for p in r.module.parameters()) for name, r in roles.items()}
    return {"distances": distances, "trained": trained, "cpu_ms_an_image": 1000 * seconds / seen}


def draw(config: DistillConfig, generators: list[str], path: Path) -> None:
    """The teacher's own pictures beside those of ``name=folder``, each in the recipe's steps."""
    torch.set_num_threads(1)
    start, steps = find_start(config), config.objective.num_steps
    teacher, description = load_model(start.teacher)
    data = data_of(config, description, start.components)
    judge = Judge(config.evaluation, data.source, num_steps=steps)
    count, chosen = sheet_samples(data.source, judge.resolution)
    name, _, sampler = teacher_sampler(config, teacher, data.null_text)
    panels = [(name, judge.images(sampler, range(len(chosen)), chosen))]
    for named in generators:
        name, _, folder = named.partition("=")
        network, _ = load_model(Path(folder), base=start.teacher)
        sampler = generator_sampler(network, schedule_of(config), steps)
        panels.append((name, judge.images(sampler, range(len(chosen)), chosen)))
    save_picture(contact_sheet(panels, count), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--changes", nargs="*", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--images", nargs="+", type=int, default=[4_000])
    parser.add_argument("--out", type=Path, default=Path("adapters.jsonl"))
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--sheet", type=Path, metavar="PNG")
    parser.add_argument("--of", nargs="*", default=[], metavar="NAME=FOLDER")
    args = parser.parse_args()
    config = changed(recipe(args.recipe), args.changes)
    if args.sheet:
        draw(config, args.of, args.sheet)
        return
    row = {"recipe": args.recipe, "changes": args.changes}
    row |= measured(config, args.images, args.save)
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
