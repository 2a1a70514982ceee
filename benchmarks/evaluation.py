"""Training with evaluations beside it against training without: weights and seconds, one table.

    python -m benchmarks.evaluation [--repeats 3] [--images 12800] [--every 1280]

digits-sid on one worker with one thread, in turn with and without evaluations; two cores at least,
so that the evaluator has one of its own. Seconds a step are those of the reports (each of 1,280
images, the hand-over of the weights in them), the first left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

REPORT = 1280


class Result(NamedTuple):
    """One run: seconds a step and seconds of hand-over by report, evaluations, weights by file."""

    steps_s: list[float]
    handover_s: list[float]
    evaluations: int
    weights: dict[str, dict[str, torch.Tensor]]


def run(folder: Path, name: str, images: int, every: int) -> Result:
    """Trains once."""
    command = [
        sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid", "--run", name,
        "--output.folder", str(folder), "--images", str(images), "--workers", "1",
        "--output.report-every", str(REPORT), "--evaluation.every", str(every),
        "--output.checkpoint-every", str(10 * images), "--evaluation.no-final-report",
        "--output.no-log-model",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    lines = (folder / name / "tracking.jsonl").read_text().splitlines()[1:]
    told = [values["metrics"] for _, kind, values in map(json.loads, lines) if kind == "metrics"]
    reports = [values for values in told if "images_per_s" in values]
    batch = json.loads((folder / name / "run.json").read_text())["config"]
    size = json.loads(batch)["training"]["batch_size"]
    scores = folder / name / "evaluations.jsonl"
    (checkpoint,) = (folder / name).glob("checkpoint_*")
    files = sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*.safetensors"))
    return Result(
        [size / values["images_per_s"] for values in reports][1:],
        [values["evaluation_stall_s"] for values in reports][1:],
        len(scores.read_text().splitlines()) if scores.is_file() else 0,
        {str(path): load_file(checkpoint / path) for path in files},
    )


def differing(one: Result, other: Result) -> int:
    """How many tensors of two runs' last checkpoints are not the same bits."""
    assert one.weights.keys() == other.weights.keys()
    return sum(
        not torch.equal(value, other.weights[file][name])
        for file, tensors in one.weights.items()
        for name, value in tensors.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--every", type=int, default=1_280)
    args = parser.parse_args()
    ratios, tensors = [], 0
    print("| repeat | s a step, off | on | ratio | hand-over, median (most) | evaluations | "
          "tensors that differ |\n|---|---|---|---|---|---|---|")  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for repeat in range(args.repeats):
            order = [(f"off{repeat}", 0), (f"on{repeat}", args.every)]
            found = {
                name[:-1]: run(folder, name, args.images, every)
                for name, every in (order if repeat % 2 == 0 else order[::-1])
            }
            off, on = found["off"], found["on"]
            means = statistics.median(off.steps_s), statistics.median(on.steps_s)
            ratios.append(means[1] / means[0])
            tensors = sum(map(len, on.weights.values()))
            print(
                f"| {repeat + 1} | {means[0]:.4f} | {means[1]:.4f} | {ratios[-1]:.3f} | "
                f"{1000 * statistics.median(on.handover_s):.1f} ms "
                f"({1000 * max(on.handover_s):.1f} ms) | {on.evaluations} | "
                f"{differing(off, on)} of {tensors} |",
                flush=True,
            )
    print(f"\nratio, median of {args.repeats}: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
