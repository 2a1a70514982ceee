"""SiD against SiDA against VSD on digits: Frechet distance against images seen, three seeds each.

    python -m benchmarks.compare_objectives --out docs

One process of plain torch; each run is also one line of docs/compare_objectives.csv, and what is
there already is not run again. The plot is docs/compare_objectives.png.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.one_process import distil
from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe

TEACHER = 1.79  # docs/results.md
NO_WARM_UP = {"objective__generator_start": 0, "objective__adversarial_start": 0}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "SiD": ("digits-sid", {}),
    "SiDA": ("digits-sida", {}),
    "VSD": ("digits-vsd", {}),
    "SiDA, no warm-up": ("digits-sida", NO_WARM_UP),
    "SiDA, no warm-up, weight 0.1": (
        "digits-sida",
        NO_WARM_UP | {"objective__adversarial_weight": 0.1},
    ),
    "SiDA, no warm-up, weight 1": (
        "digits-sida",
        NO_WARM_UP | {"objective__adversarial_weight": 1.0},
    ),
}
COLUMNS = (
    500,
    1_000,
    1_500,
    2_000,
    3_000,
    4_000,
    5_000,
    7_500,
    10_000,
    15_000,
    20_000,
    25_000,
    30_000,
)


@dataclass
class Args:
    """Runs what is missing and draws the plot."""

    out: Path = Path("docs")
    """Folder of the table and the picture."""
    seeds: int = 3
    only: str = ""
    """One row, to share the work between processes."""


def main(args: Args) -> None:
    table = args.out / "compare_objectives.csv"
    for seed in range(args.seeds):
        for name in ROWS if not args.only else (args.only,):
            if (name, str(seed)) in {(row["row"], row["seed"]) for row in read(table)}:
                continue
            start = time.process_time()
            base, changes = ROWS[name]
            config = replace(recipe(base), training__seed=seed, **changes)
            curve = dict(zip(COLUMNS, (fd for _, fd in distil(config, COLUMNS)), strict=True))
            append(table, name, seed, curve, time.process_time() - start)
            print(name, seed, {k: round(v, 2) for k, v in curve.items()}, flush=True)
    draw(read(table), args.out / "compare_objectives.png")


def read(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open() as file:
        return list(csv.DictReader(file))


def append(table: Path, name: str, seed: int, curve: dict[int, float], cpu_s: float) -> None:
    new = not table.exists()
    with table.open("a") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["row", "seed", *COLUMNS, "cpu_s"])
        writer.writerow([name, seed, *(round(v, 3) for v in curve.values()), round(cpu_s)])


def draw(rows: list[dict[str, str]], picture: Path) -> None:
    """Every seed as a thin line, the median as a thick one; rows of one seed are left out."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    counts = Counter(row["row"] for row in rows)
    several = [name for name, count in counts.items() if count > 1 or len(counts) == 1]
    for index, name in enumerate(several):
        curves = [[float(row[str(c)]) for c in COLUMNS] for row in rows if row["row"] == name]
        for curve in curves:
            axes.plot(COLUMNS, curve, color=f"C{index}", linewidth=0.6, alpha=0.6)
        medians = [statistics.median(values) for values in zip(*curves, strict=True)]
        label = f"{name}, median of {len(curves)} seeds"
        axes.plot(COLUMNS, medians, color=f"C{index}", linewidth=2.2, label=label)
    axes.axhline(TEACHER, color="black", linestyle=":", label="teacher, 35 evaluations")
    axes.set(xscale="log", yscale="log", xlabel="images seen")
    axes.set_ylabel("Frechet distance of the averaged generator (digits-cnn)")
    axes.set_xticks(
        [500, 1000, 2000, 5000, 10_000, 30_000], ["500", "1k", "2k", "5k", "10k", "30k"]
    )
    axes.set_yticks([2, 3, 5, 10, 20, 40, 70], ["2", "3", "5", "10", "20", "40", "70"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args))
