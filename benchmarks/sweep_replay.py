"""What sweeps find in a full grid, and for how many of its images: replayed out of its table.

    python -m benchmarks.sweep_replay TABLE.jsonl [--trials 48] [--replays 100] [--picture P.png]

The table has the scores of every point of benchmarks.sweep_grid where ASHA judges. A replay draws
points with the sweep's own searchers and stops them by its own rungs (tests hold these against
Ray's), each replay with another searcher's seed; a point that is drawn twice is paid twice. "Found"
is the best score of trials that came to their end, against the best of the whole grid.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.sweep_grid import GRID, HALF_LIFE, HALF_LIVES, read
from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe
from sid_ray.sweep.sampling import optuna_point, random_point
from sid_ray.sweep.space import Space
from sid_ray.sweep.space_file import parse_space
from tests.support.sweeps import Asha, trials_of

SCORE = "FD-digits-cnn"
SPACE = """\
metric: {score}
budget: {{images: 15_000, grace: 1_667, reduction: 3}}
scheduler: {scheduler}
searcher: {searcher}
trials: {trials}
seeds: [{seed}]
fields:
"""
WITHIN = 1.05
Curve = list[tuple[int, float]]  # (images spent, best finished score) after each trial


def space_of(scheduler: str, searcher: str, trials: int, seed: int) -> Space:
    """The grid's values as choices."""
    head = SPACE.format(
        score=SCORE, scheduler=scheduler, searcher=searcher, trials=trials, seed=seed
    )
    if scheduler == "none":
        head = head.replace(", grace: 1_667, reduction: 3", "")
    values = {**GRID, HALF_LIFE: HALF_LIVES}
    fields = "".join(f"  {name}: {{choice: {list(these)}}}\n" for name, these in values.items())
    return parse_space(head + fields, "grid")


class Table:
    """Scores by point: images seen -> score."""

    def __init__(self, lines: Sequence[dict]):
        self.scores = {
            key_of(line["point"]): {int(n): score for n, score in line["scores"].items()}
            for line in lines
            if line["seed"] == 0
        }
        self.end = max(max(scores) for scores in self.scores.values())
        self.best = min(scores[self.end] for scores in self.scores.values())
        self.images = self.end * len(self.scores)

    def whole(self) -> bool:
        wanted = len(HALF_LIVES)
        for values in GRID.values():
            wanted *= len(values)
        return len(self.scores) == wanted


def key_of(point: dict) -> tuple:
    return tuple(sorted(point.items()))


def replay(table: Table, scheduler: str, searcher: str, trials: int, seed: int) -> Curve:
    """One sweep."""
    space, base = space_of(scheduler, searcher, trials, seed), recipe("digits-sida")
    base = replace(base, evaluation__num_images=2048)
    asha = Asha(space.budget, space.metrics[0]) if scheduler == "asha" else None
    events: list[dict] = []
    curve, spent, best = Curve(), 0, float("inf")
    for number in range(trials):
        told = list(trials_of(events).values())
        name = f"{number:03}"
        point = (
            optuna_point(space, base, told, number)
            if searcher == "optuna"
            else random_point(space, base, seed, number)
        )
        events.append({"event": "begin", "trial": name, "run": name, "point": point})
        for images, score in table.scores[key_of(point)].items():
            if asha is None and images < table.end:
                continue
            segment = {"event": "segment", "trial": name, "run": name, "images_seen": images}
            events.append({**segment, "scores": {SCORE: score}})
            if asha and asha.decide(name, images, score) == "STOP":
                break
        state = "finished" if images == table.end else "stopped"
        end = {"event": "end", "trial": name, "state": state, "why": "", "images_seen": images}
        events.append(end)
        spent += images
        best = min(best, score) if state == "finished" else best
        curve.append((spent, best))
    return curve


def first_within(curve: Curve, limit: float) -> int | None:
    """Images until the best is within a limit; None for never."""
    return next((spent for spent, best in curve if best <= limit), None)


def row(name: str, table: Table, curves: Sequence[Curve]) -> str:
    """What a kind of sweep comes to."""
    spent = statistics.median(curve[-1][0] for curve in curves) / table.images
    found = sorted(curve[-1][1] / table.best for curve in curves)
    near = statistics.fmean(share <= WITHIN for share in found)
    needed = [first_within(curve, table.best * WITHIN) for curve in curves]
    reached = sorted(images for images in needed if images is not None)
    half = len(curves) // 2
    median = f"{reached[half] / table.images:.1%}" if len(reached) > half else "-"
    tenth = found[round(0.9 * (len(found) - 1))]
    return (
        f"{name:18}{spent:>10.1%}{statistics.median(found):>12.3f}{tenth:>12.3f}"
        f"{near:>14.0%}{median:>16}"
    )


KINDS = (("asha", "optuna"), ("asha", "random"), ("none", "optuna"), ("none", "random"))


def sizes(table: Table, trials: int) -> Iterator[tuple[str, str, int]]:
    """Kinds of sweeps, those that stop nothing with as many trials as cost the same."""
    for scheduler, searcher in KINDS:
        yield scheduler, searcher, trials if scheduler == "asha" else trials // 2


def draw(table: Table, found: dict[str, list[Curve]], path: Path) -> None:
    """Median of the best score against images; for the first and the last kind nine of ten, too."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    banded = (next(iter(found)), list(found)[-1])
    for name, curves in found.items():
        end = statistics.median(curve[-1][0] for curve in curves)
        images = np.linspace(table.end, end, 120)
        at = np.array([[best_at(curve, n) for n in images] for curve in curves]) / table.best
        low, middle, high = np.percentile(at, [10, 50, 90], axis=0, method="nearest")
        shares = images / table.images * 100
        (line,) = axes.plot(shares, middle, label=name)
        if name in banded:
            axes.fill_between(shares, low, high, color=line.get_color(), alpha=0.13, linewidth=0)
    axes.axhline(WITHIN, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="images, % of the full grid's", ylabel="best found / best of the grid")
    axes.set_ylim(0.98, 1.8)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def best_at(curve: Curve, images: float) -> float:
    return min((best for spent, best in curve if spent <= images), default=float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    table = Table(read(args.table))
    if not table.whole():
        raise SystemExit(f"{args.table}: {len(table.scores)} points, the grid is not whole yet")
    print(f"grid: {len(table.scores)} points, {table.images:,} images, best {table.best:.2f}")
    print(
        f"{'sweep':18}{'images':>10}{'found':>12}{'9 of 10':>12}{'within 5 %':>14}"
        f"{'median until':>16}"
    )
    found: dict[str, list[Curve]] = {}
    for scheduler, searcher, trials in sizes(table, args.trials):
        name = f"{scheduler}, {searcher}".replace("none, ", "")
        seeds = range(args.replays)
        found[name] = [replay(table, scheduler, searcher, trials, seed) for seed in seeds]
        print(row(name, table, found[name]), flush=True)
    if args.picture:
        draw(table, found, args.picture)


if __name__ == "__main__":
    main()
