"""Best trial and recipe with each of the space's seeds: is the difference more than luck?

    SWEEP/repeats.jsonl        a line a repeat that came to its end; only appended
    SWEEP-best-seed1, ...      their runs, ordinary ones

All trials have the first seed, and the best of them is the best by that seed's luck too. So the
others say more. A repeat sees a whole trial's images in one piece; no scheduler stops it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig
from sid_ray.metrics.names import shown_score
from sid_ray.storage.durable import append_line, read_values
from sid_ray.sweep.pareto import best_trial
from sid_ray.sweep.sampling import recipe_point
from sid_ray.sweep.space import Space, Value
from sid_ray.sweep.trials import TrialRecord

REPEATS = "repeats.jsonl"
BEST, RECIPE = "best", "recipe"


@dataclass(frozen=True)
class Repeat:
    """One setting with one seed, to the end of a trial's budget.

    Args:
        of: "best" or "recipe". run: its name; a trial's own where that is already this.
        scores: empty before its end, and where it did not come to a good one, for ``why``.
    """

    of: str
    seed: int
    run: str
    point: Mapping[str, Value]
    images_seen: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    why: str = ""

    @property
    def ended(self) -> bool:
        return bool(self.scores or self.why)


def repeats_of(
    name: str,
    space: Space,
    base: DistillConfig,
    told: Iterable[TrialRecord],
    ended: Iterable[Repeat] = (),
) -> list[Repeat]:
    """Every setting with every seed, with what is known of each; empty for one seed alone.

    A trial that came to its end is its own repeat with the first seed.
    """
    trials = list(told)
    best = best_trial(space.metrics, trials)
    if len(space.seeds) < 2 or best is None:
        return []
    own = recipe_point(space, base) or {}
    settings = {BEST: best.point, RECIPE: own}
    if best.point == own:
        settings.pop(RECIPE)
    known = {(repeat.of, repeat.seed): repeat for repeat in ended}
    known |= {
        (of, space.seeds[0]): Repeat(
            of, space.seeds[0], trial.run, point, trial.images_seen, dict(trial.scores)
        )
        for of, point in settings.items()
        for trial in trials
        if trial.point == point and trial.state == "finished"
    }
    return [
        known.get((of, seed), Repeat(of, seed, f"{name}-{of}-seed{seed}", point))
        for of, point in settings.items()
        for seed in space.seeds
    ]


def most_of(space: Space) -> int:
    """How many runs they are beside the trials, at most."""
    return max(0, 2 * (len(space.seeds) - 1))


# The file -----------------------------------------------------------------------------------------


def read_repeats(folder: Path) -> list[Repeat]:
    """Those that came to their end; half a line of a killed driver is none."""
    return [Repeat(**values) for values in read_values(folder / REPEATS) if values]


def add_repeat(folder: Path, repeat: Repeat) -> None:
    """Appends one that came to its end, behind whole lines."""
    append_line(folder / REPEATS, asdict(repeat))


# What they say ------------------------------------------------------------------------------------


def ended_as(space: Space, repeat: Repeat) -> str:
    """'15,040 images, FD-digits-cnn 5.21'."""
    scores = ", ".join(
        f"{m.name} {repeat.scores[m.name]:.4g}" for m in space.metrics if not repeat.why
    )
    return f"{repeat.images_seen:,} images, {repeat.why or scores}"


def mean_of(repeats: Iterable[Repeat], metric: str) -> float | None:
    """Over the seeds; None where one of them has no score."""
    repeats = list(repeats)
    if not repeats or not all(repeat.scores for repeat in repeats):
        return None
    return statistics.fmean(repeat.scores[metric] for repeat in repeats)


def means_of(repeats: Iterable[Repeat], metric: str) -> dict[str, float]:
    """By setting, of those whose mean there is."""
    repeats = list(repeats)
    settings = dict.fromkeys(repeat.of for repeat in repeats)
    means = {of: mean_of((r for r in repeats if r.of == of), metric) for of in settings}
    return {of: mean for of, mean in means.items() if mean is not None}


def spent_in(repeats: Iterable[Repeat]) -> int:
    """Images of those that came to their end, of read_repeats."""
    return sum(repeat.images_seen for repeat in repeats)


def table_of_repeats(space: Space, repeats: list[Repeat]) -> list[list[str]]:
    """Rows of text, the first one the header: setting, a column a seed, the mean; first metric."""
    if not repeats:
        return []
    name = space.metrics[0].name

    def shown(value: float | None) -> str:
        return "-" if value is None else shown_score(name, value)

    rows = [[name, *(f"seed {seed}" for seed in space.seeds), "mean"]]
    for of in dict.fromkeys(repeat.of for repeat in repeats):
        mine = [repeat for repeat in repeats if repeat.of == of]
        cells = [shown(repeat.scores.get(name)) for repeat in mine]
        rows.append([f"{of} ({mine[0].run})", *cells, shown(mean_of(mine, name))])
    return rows


def lines_of(space: Space, repeats: list[Repeat]) -> list[str]:
    """The table for a terminal, and what it says."""
    rows = table_of_repeats(space, repeats)
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return [*lines, fair(space)]


def fair(space: Space) -> str:
    """How the table is to be read."""
    return f"Trials had seed {space.seeds[0]}: the other seeds did not choose the best one."
