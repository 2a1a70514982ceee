"""Pictures of a sweep over images seen, of several scores, importance and lineage, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sid_ray.sweep.importance import Importance
from sid_ray.sweep.report_plots import (
    BEST,
    BLUE,
    GREY,
    better,
    dress,
    logarithmic,
    new_figure,
    plain_ticks,
    score_axis,
    svg,
)
from sid_ray.sweep.results import Sweep
from sid_ray.sweep.space import Metric
from sid_ray.sweep.trials import Leg, TrialRecord

MAX_ROWS = 40  # of the lineage: more could not be read


def images_axis(axes: Any) -> None:
    axes.set_xlabel("images seen", fontsize=9)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)


def score_curves(sweep: Sweep, metric: Metric, rungs: Sequence[int]) -> str:
    """A score of every trial at each decision; ``rungs`` are dotted lines."""
    lines = [(trial, trial.scored(metric.name)) for trial in sweep.trials.values()]
    values = [value for _, points in lines for _, value in points]
    if not values:
        return ""
    figure = new_figure(6.6, 3.6)
    axes = figure.subplots()
    best = sweep.best
    for trial, points in sorted(lines, key=lambda line: line[0] is best):
        if not points:
            continue
        colour = BEST if trial is best else GREY if trial.state == "diverged" else BLUE
        wide, alpha = (2.2, 1.0) if trial is best else (1.0, 0.55)
        for leg in trial.legs:
            # A leg that begins with another trial's weights begins at that trial's score.
            line = [*donor_point(sweep, leg, metric), *trial.scored(metric.name, leg.run)]
            axes.plot(*zip(*line, strict=True), "-o", color=colour, linewidth=wide, alpha=alpha,
                      markersize=3) if line else None  # fmt: skip
        if trial.state in ("diverged", "failed"):
            axes.plot(*points[-1], "x", color="#b91c1c", markersize=7)
    for rung in rungs:
        axes.axvline(rung, color="#374151", linestyle=":", linewidth=0.8)
    score_axis(axes, metric, values)
    dress(axes, f"{metric.name} of every trial ({better(metric)})")
    images_axis(axes)
    return svg(figure)


def donor_point(sweep: Sweep, leg: Leg, metric: Metric) -> list[tuple[int, float]]:
    """The score of the weights that a leg began with; empty where they are none's or not scored."""
    donor = sweep.trials.get(leg.from_trial)
    value = donor.at(metric.name, leg.began_at) if donor else None
    return [] if value is None else [(leg.began_at, value)]


# Several scores, importance, lineage --------------------------------------------------------------


def front_plot(sweep: Sweep) -> str:
    """Each pair of the first score with another one, the front joined."""
    front = sweep.front
    if len(sweep.metrics) < 2 or not front:
        return ""
    others = sweep.metrics[1:]
    figure = new_figure(5.2 * len(others), 3.6)
    first = sweep.metric
    for axes, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        pairs = [
            (x, y, trial in front)
            for trial in sweep.trials.values()
            if (x := trial.last(first.name)) is not None
            and (y := trial.last(other.name)) is not None
        ]
        axes.scatter(*zip(*[p[:2] for p in pairs if not p[2]] or [(math.nan,) * 2], strict=True),
                     s=24, color=BLUE, alpha=0.6, linewidths=0, label="beaten")  # fmt: skip
        on = sorted(p[:2] for p in pairs if p[2])
        axes.plot(*zip(*on, strict=True), "-o" if len(others) == 1 else "o", color=BEST,
                  linewidth=1.2, markersize=6, label="front")  # fmt: skip
        score_axis(axes, other, [p[1] for p in pairs])
        if logarithmic(first, [p[0] for p in pairs]):
            axes.set_xscale("log")
            plain_ticks(axes.xaxis, max(p[0] for p in pairs) / min(p[0] for p in pairs))
        dress(axes, f"{other.name} ({better(other)})")
        axes.set_xlabel(f"{first.name} ({better(first)})", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def importance_bars(found: Importance) -> str:
    if not found.shares:
        return ""
    bars = [(name, share, BLUE) for name, share in found.shares.items()]
    bars += [(f"{n} ({count} trials)", s, GREY) for n, (s, count) in found.conditional.items()]
    figure = new_figure(6.6, 0.8 + 0.3 * len(bars))
    axes = figure.subplots()
    names, shares, colours = zip(*reversed(bars), strict=True)
    drawn = axes.barh(range(len(bars)), shares, color=colours, height=0.62)
    axes.bar_label(drawn, [f"{share:.0%}" for share in shares], fontsize=8, padding=3)
    axes.set_yticks(range(len(bars)), names)
    axes.set_xlim(0, max(1e-9, *shares) * 1.12)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    dress(axes)
    axes.grid(axis="y", visible=False)
    return svg(figure)


def lineage(sweep: Sweep) -> str:
    """Each trial as a line over images seen, an arrow where weights went to another one."""
    trials = [t for t in sweep.trials.values() if t.segments or t.exploits][:MAX_ROWS]
    if not any(trial.exploits for trial in trials):
        return ""
    rows = {trial.name: len(trials) - 1 - place for place, trial in enumerate(trials)}
    figure = new_figure(6.6, 1.0 + 0.26 * len(trials))
    axes = figure.subplots()
    for trial in trials:
        end = max([trial.images_seen, *(s.images_seen for s in trial.segments)])
        axes.plot([0, end], [rows[trial.name]] * 2, color=GREY, linewidth=2, solid_capstyle="butt")
        for one in trial.exploits:
            if one.from_trial in rows:
                ends = {"xy": (one.began_at, rows[trial.name]),
                        "xytext": (one.began_at, rows[one.from_trial])}  # fmt: skip
                arrow = {"arrowstyle": "->", "color": BLUE, "linewidth": 1.0, "shrinkB": 1}
                axes.annotate("", **ends, arrowprops=arrow)
    if sweep.best:
        for name, begin, end in ancestry(sweep, sweep.best):
            if name in rows:
                axes.plot([begin, end], [rows[name]] * 2, color=BEST, linewidth=4,
                          solid_capstyle="butt")  # fmt: skip
    axes.set_yticks(list(rows.values()), list(rows))
    dress(axes, "Whose training is in the best trial's weights (orange)")
    axes.grid(axis="y", visible=False)
    images_axis(axes)
    return svg(figure)


def ancestry(sweep: Sweep, trial: TrialRecord) -> list[tuple[str, int, int]]:
    """Whose training is in a trial's weights: (trial, from images, to images), the first one first.

    Follows exploits back; a donor is taken as it was when its weights were.
    """
    found: list[tuple[str, int, int]] = []
    name, end, legs = trial.name, trial.images_seen, trial.legs
    most = sum(len(each.exploits) for each in sweep.trials.values())  # a damaged file may turn back
    while len(legs) > 1 and len(found) < most:
        last = legs[-1]
        found.append((name, last.began_at, end))
        name, end = last.from_trial, last.began_at
        legs = legs_until(sweep.trials.get(name), last.from_run)
    return [(name, 0, end), *found[::-1]]


def legs_until(trial: TrialRecord | None, run: str) -> list[Leg]:
    """The legs of a trial up to its run of this name; the first where it has none such."""
    if trial is None:
        return []
    return trial.legs[: trial.runs.index(run) + 1 if run in trial.runs else 1]
