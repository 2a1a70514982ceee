"""Pictures of a sweep's points as SVG: a figure a function, empty where nothing is to be shown.

The best trial is orange and a trial that gave up is a cross.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sid_ray.commands.compare import COLOURS, is_logarithmic
from sid_ray.metrics.names import EVAL
from sid_ray.sweep.display import short_names, shown_values
from sid_ray.sweep.importance import domains_of, study_of
from sid_ray.sweep.results import Sweep
from sid_ray.sweep.space import Choice, Domain, Metric, Value
from sid_ray.sweep.trials import TrialRecord

BLUE, BEST, GREY = COLOURS[0], COLOURS[1], "#9ca3af"
COLUMNS = 3


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Any, **options: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, **options)
    found = text.getvalue()
    return f"<figure>{found[found.index('<svg') :]}</figure>"


def dress(axes: Any, title: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8, which="both")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def plain_ticks(axis: Any, span: float) -> None:
    """Plain numbers on a logarithmic axis, as many as have room; ``span``: its end by its begin."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    parts = (1, 2, 3, 4, 5, 6, 7, 8, 9) if span < 5 else (1, 2, 5) if span < 200 else (1,)
    axis.set_major_locator(LogLocator(subs=parts, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def score_axis(axes: Any, metric: Metric, values: Sequence[float]) -> None:
    """Logarithmic for distances, with plain numbers."""
    if logarithmic(metric, values):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, max(values) / min(values))
    axes.set_ylabel(metric.name, fontsize=9)


def logarithmic(metric: Metric, values: Sequence[float]) -> bool:
    return bool(values) and metric.direction == "min" and is_logarithmic(EVAL + metric.name, values)


def better(metric: Metric) -> str:
    return "smaller is better" if metric.direction == "min" else "larger is better"


def newest(sweep: Sweep, metric: Metric) -> list[tuple[TrialRecord, float]]:
    """Trials and their newest score, the worst first and the best trial last, so on top."""
    pairs = [(trial, trial.last(metric.name)) for trial in sweep.trials.values()]
    found = [(trial, value) for trial, value in pairs if value is not None]
    best = sweep.best
    return sorted(found, key=lambda pair: (pair[0] is best, metric.sign * pair[1]))


def parallel_coordinates(sweep: Sweep) -> str:
    """Optuna's: a line a trial through all of its fields, as dark as its newest score is good."""
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    metric, domains = sweep.metric, domains_of(sweep)
    scored = [(trial.point, value) for trial, value in newest(sweep, metric)]
    if not scored or not domains:
        return ""
    names = short_names(list(domains))
    study = study_of(
        {names[name]: domain for name, domain in domains.items()},
        [({names[n]: v for n, v in point.items()}, value) for point, value in scored],
        "minimize" if metric.direction == "min" else "maximize",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        figure = plot_parallel_coordinate(study, target_name=metric.name).figure
    try:
        figure.axes[0].set_title("")
        figure.set_size_inches(max(6.0, 1.5 * (len(domains) + 1)), 3.9)
        return svg(figure, bbox_inches="tight")
    finally:
        pyplot.close(figure)


# Score against each field -------------------------------------------------------------------------


def against_fields(sweep: Sweep, own: Mapping[str, Value]) -> str:
    """The newest score over each field. ``own``: the recipe's values, dotted lines."""
    metric, domains, best = sweep.metric, domains_of(sweep), sweep.best
    scored = newest(sweep, metric)
    if not scored or not domains:
        return ""
    columns, rows = min(COLUMNS, len(domains)), math.ceil(len(domains) / COLUMNS)
    figure = new_figure(3.5 * columns, 2.6 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    most = max(trial.images_seen for trial, _ in scored) or 1
    for place, (name, domain) in enumerate(domains.items()):
        axes = grid[place // columns][place % columns]
        there = [(trial, value) for trial, value in scored if name in trial.point]
        for trial, value in there:
            axes.scatter(
                [position(domain, trial.point[name])],
                [value],
                s=12 + 46 * trial.images_seen / most,
                color=BEST if trial is best else BLUE,
                alpha=0.8,
                linewidths=0,
            )
        score_axis(axes, metric, [value for _, value in scored])
        none = [
            trial.point[name]
            for trial in sweep.trials.values()
            if trial.last(metric.name) is None and name in trial.point
        ]
        axes.plot(
            [position(domain, v) for v in none], [0.97] * len(none), "x", color=GREY, markersize=5,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        field_axis(axes, domain, name)
        if name in own and holds(domain, own[name]):
            axes.axvline(position(domain, own[name]), color="#374151", linestyle=":", linewidth=1)
        dress(axes)
        if place % columns:
            axes.set_ylabel("")
    for place in range(len(domains), rows * columns):
        grid[place // columns][place % columns].set_visible(False)
    return svg(figure)


def holds(domain: Domain, value: Any) -> bool:
    return value is not None and domain.holds(value)


def position(domain: Domain, value: Value) -> float:
    return domain.values.index(value) if isinstance(domain, Choice) else float(value)


def field_axis(axes: Any, domain: Domain, name: str) -> None:
    axes.set_xlabel(name, fontsize=9)
    if isinstance(domain, Choice):
        axes.set_xticks(
            range(len(domain.values)), [shown_values([value]) for value in domain.values]
        )
        axes.set_xlim(-0.5, len(domain.values) - 0.5)
    elif domain.high > domain.low:
        low, high = domain.low, domain.high
        if domain.log:
            axes.set_xscale("log")
            plain_ticks(axes.xaxis, high / low)
            edge = (high / low) ** 0.04
            axes.set_xlim(low / edge, high * edge)
        else:
            axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
