"""What an evaluation found: the table for people, the JSON for programs, the line of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sid_ray import __version__
from sid_ray.evaluation.blocks import Bench, Job
from sid_ray.evaluation.picture_blocks import PictureBench, PictureJob
from sid_ray.evaluation.records import add_result
from sid_ray.metrics.names import is_score, larger_is_better, scores_in_order, shown_score
from sid_ray.run_folder import EVALUATIONS
from sid_ray.storage.durable import replace_file
from sid_ray.storage.store import Store

Scores = Mapping[str, float]


def result_of(
    job: Job | PictureJob,
    bench: Bench | PictureBench,
    trials: Sequence[range],
    scores: Sequence[Scores],
    device: str,
) -> dict[str, Any]:
    """All that the numbers mean: how they could be made again."""
    values = {name: np.array([each[name] for each in scores]) for name in scores[0]}
    rows = [
        {"seeds": f"{trial.start}-{trial.stop - 1}", "scores": dict(each)}
        for trial, each in zip(trials, scores, strict=True)
    ]
    deviations = {name: float(found.std()) for name, found in values.items()}
    everything = range(trials[0].start, trials[-1].stop)
    return {
        **job.about(),
        "scores": {name: float(found.mean()) for name, found in values.items()},
        **({"deviations": deviations} if len(trials) > 1 else {}),
        **bench.protocol(everything),
        "num_images": len(trials[0]),
        "trials": rows,
        **job.how(),
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"sid_ray": __version__, "torch": torch.__version__},
    }


def write_result(out: Path, result: Mapping[str, Any]) -> None:
    """Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, json.dumps(result, indent=2) + "\n")


def table_of_scores(result: Mapping[str, Any]) -> Table:
    """Score, mean, and where there are several trials the deviation and each of them."""
    trials = result["trials"]
    seen = f", {result['images_seen']:,} images seen" if result["images_seen"] else ""
    scale = result.get("guidance", 1)
    guided = f", guidance {scale:g}" if scale != 1 else ""
    made = f"{result['num_images']:,} images of {result['sampler']}{guided}"
    title = f"{result['source']}{seen}: {made}"
    table = Table(title=title, title_style="", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("score", no_wrap=True)
    table.add_column("better")
    several = len(trials) > 1
    for name in ("mean", "deviation", *(f"trial {k + 1}" for k in range(len(trials)))):
        if several or name == "mean":
            table.add_column(name if several else "value", justify="right", no_wrap=True)
    for name in scores_in_order(filter(is_score, result["scores"])):
        numbers = [result["scores"][name]]
        if several:
            numbers += [result["deviations"][name], *(each["scores"][name] for each in trials)]
        better = "higher" if larger_is_better(name) else "lower"
        table.add_row(name, better, *(shown_score(name, number) for number in numbers))
    return table


def tell_run(result: Mapping[str, Any], console: Console) -> None:
    """Adds the result to the evaluations of the run that the weights are of.

    The same result is no second line. Storage that fails costs a warning.
    """
    if not result["run"]:
        return
    run = Store.at(result["run"])
    try:
        add_result(run, result)
    except (OSError, ValueError) as error:
        console.print(f"warning: {run}/{EVALUATIONS} does not hold the result: {error}")
