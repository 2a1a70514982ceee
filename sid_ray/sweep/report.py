"""`sid-ray sweep report`: a sweep on one page that needs nothing beside it, and its table as files.

The page is compare's in style. It can be made at any time, also while trials run.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from sid_ray.commands.compare import html_table
from sid_ray.commands.page import whole_page
from sid_ray.config.distill_config import flags, flatten, replace
from sid_ray.console import duration
from sid_ray.errors import UserError
from sid_ray.metrics.names import shown_score
from sid_ray.recipes.registry import recipe
from sid_ray.sweep import report_curves, report_plots
from sid_ray.sweep.arithmetic import decision_points
from sid_ray.sweep.display import short_names, shown_point, shown_values
from sid_ray.sweep.importance import Importance, importance_of
from sid_ray.sweep.repeats import fair, table_of_repeats
from sid_ray.sweep.results import Sweep, base_of, read_sweep, repeats_in
from sid_ray.sweep.space import config_of
from sid_ray.sweep.trials import Point


def own_values(sweep: Sweep) -> dict[str, Any]:
    """The values of the fields before anything was varied."""
    base = base_of(sweep)
    return flatten(base) if base else {}


def command_of(sweep: Sweep, point: Point, run: str) -> str:
    """The command that trains one point alone, to the end of a trial's budget; '' for none."""
    base = base_of(sweep)
    if base is None or sweep.space is None:
        return ""
    try:
        # That of the base: flags say what a recipe does not.
        first, config = recipe(base.recipe), config_of(sweep.space, base, point)
    except (UserError, KeyError, TypeError, AttributeError):
        return ""
    config = replace(config, output__run=run)
    parts = ["sid-ray", "distill", base.recipe, "--run", run]
    parts += ["--images", str(config.training.images), *flags(first, config)]
    return shlex.join(parts)


def end_points(sweep: Sweep) -> tuple[int, ...]:
    """Where trials are judged; empty where the space or the recipe is not known."""
    base = base_of(sweep)
    if sweep.space is None or base is None:
        return ()
    if sweep.space.scheduler == "asha" and not sweep.space.budget.grace:
        return ()
    try:
        return decision_points(sweep.space.budget, sweep.space.scheduler, base.training.batch_size)
    except (ValueError, ZeroDivisionError):
        return ()


# The table ----------------------------------------------------------------------------------------


def rows_of(sweep: Sweep) -> list[dict[str, Any]]:
    """One mapping a trial, the best first: plain values, None for what it has not."""
    rows = []
    for trial in sweep.ranked:
        row: dict[str, Any] = {"trial": trial.name, "run": trial.run, "state": trial.state}
        row |= {"images_seen": trial.images_seen, "images_spent": trial.images_spent}
        for metric in sweep.metrics:
            best = trial.best(metric)
            row[metric.name] = trial.last(metric.name)
            row[f"best {metric.name}"] = best[0] if best else None
            row[f"best {metric.name} at"] = best[1] if best else None
        row |= {"seconds": round(trial.seconds, 3)}
        row |= {name: trial.point.get(name) for name in sweep.fields}
        row |= {"exploits": len(trial.exploits), "why": trial.why}
        rows.append(row)
    return rows


def csv_of(sweep: Sweep) -> str:
    rows, text = rows_of(sweep), io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def json_of(sweep: Sweep, importance: Importance) -> dict[str, Any]:
    """All that the page says in numbers."""
    best = sweep.best
    return {
        "name": sweep.name,
        "recipe": sweep.recipe,
        "state": sweep.state,
        "metrics": [{"name": m.name, "direction": m.direction} for m in sweep.metrics],
        "states": sweep.states,
        "images_spent": sweep.images_spent,
        "best": best.name if best else None,
        "command": command_of(sweep, best.point, f"{sweep.name}-best") if best else "",
        "repeats": [asdict(repeat) for repeat in repeats_in(sweep)],
        "front": [trial.name for trial in sweep.front],
        "importance": {
            "shares": importance.shares,
            "conditional": {n: share for n, (share, _) in importance.conditional.items()},
            "images_seen": importance.images_seen,
            "trials": importance.trials,
            "trouble": importance.trouble,
        },
        "trials": rows_of(sweep),
        "notes": list(sweep.notes),
    }


def trials_table(sweep: Sweep) -> str:
    names = short_names(sweep.fields)
    shown_metrics = [escape(metric.name) for metric in sweep.metrics]
    scores = [cell for name in shown_metrics for cell in (name, f"best {name}", "at images")]
    head = ["trial", "state", "images seen", *scores, "time"]
    head += [f'<span title="{escape(n)}">{escape(names[n])}</span>' for n in sweep.fields]
    best = sweep.best
    rows = []
    for trial in sweep.ranked:
        mark = f'<span class="mark" style="background:{report_plots.BEST}"></span>'
        cells = [(mark if trial is best else "") + escape(trial.name)]
        cells += [f'<span title="{escape(trial.why)}">{trial.state}</span>']
        cells += [f"{trial.images_seen:,}"]
        for metric in sweep.metrics:
            last, found = trial.last(metric.name), trial.best(metric)
            cells.append("-" if last is None else f"<b>{shown_score(metric.name, last)}</b>")
            cells += [shown_score(metric.name, found[0]), f"{found[1]:,}"] if found else ["-", "-"]
        cells.append(duration(trial.seconds))
        values = (trial.point.get(name) for name in sweep.fields)
        cells += ["" if value is None else escape(shown_values([value])) for value in values]
        rows.append(cells)
    return html_table(head, rows)


def front_table(sweep: Sweep) -> str:
    head = ["trial", *(escape(metric.name) for metric in sweep.metrics), "point"]
    rows = [
        [
            escape(trial.name),
            *(shown_score(m.name, trial.last(m.name) or 0.0) for m in sweep.metrics),
            escape(shown_point(trial.point)),
        ]
        for trial in sweep.front
    ]
    return html_table(head, rows)


# The page -----------------------------------------------------------------------------------------


STYLE = """\
figure { margin: 0; overflow-x: auto } figure svg { max-width: 100%; height: auto }
pre { background: #f3f4f6; padding: .7rem; overflow-x: auto; white-space: pre-wrap }
summary { cursor: pointer; color: #4b5563 }
"""


def summary_of(sweep: Sweep) -> str:
    """What was run, and for how many images."""
    states = ", ".join(f"{count} {state}" for state, count in sweep.states.items())
    text = f"{len(sweep.trials)} trials of {escape(sweep.recipe)} ({states}), "
    if sweep.space:
        text += f"scheduler {sweep.space.scheduler}, searcher {sweep.space.searcher}, "
    text += f"{sweep.images_spent:,} images in all"
    points = end_points(sweep)
    if points and sweep.trials:
        whole = points[-1] * len(sweep.trials)
        text += f": {sweep.images_spent / whole:.0%} of what these trials take to their ends"
    return f"<p>{text}. State: {escape(sweep.state)}; started {escape(sweep.started)}.</p>"


def best_part(sweep: Sweep) -> str:
    best = sweep.best
    if best is None:
        return f"<p>No trial has a {escape(sweep.metric.name)} yet.</p>"
    value = shown_score(sweep.metric.name, best.last(sweep.metric.name) or 0.0)
    text = (
        f"<p><b>{escape(best.name)}</b>: {escape(sweep.metric.name)} {value} after "
        f"{best.images_seen:,} images (run {escape(best.run)}). The best is looked for among the "
        "trials that came to their end, or all that work while none has"
    )
    command = command_of(sweep, best.point, f"{sweep.name}-best")
    if best.exploits:
        times = len(best.exploits)
        text += (
            f". It took other trials' weights {times} time{'s' if times > 1 else ''}: the command "
            "trains its newest point from the start, and is no repetition"
        )
    shown_command = f"<pre>{escape(command)}</pre>" if command else ""
    return f"{text}.</p>{shown_command}"


def seeds_part(sweep: Sweep) -> str:
    """Best trial and recipe with each seed."""
    repeats = repeats_in(sweep)
    if sweep.space is None or not repeats:
        return ""
    rows = table_of_repeats(sweep.space, repeats)
    shown_rows = [[escape(cell) for cell in row] for row in rows]
    return f"<p>{fair(sweep.space)}</p>{html_table(shown_rows[0], shown_rows[1:])}"


def importance_part(found: Importance, metric: str) -> str:
    if found.trouble:
        return f"<p>{escape(found.trouble)}</p>"
    what = f"the logarithm of {metric}" if found.logarithm else metric
    return (
        f"<p>Share of the variance of {escape(what)} that each field explains alone (Optuna's "
        f"fANOVA), among {found.trials} trials at {found.images_seen:,} images. Grey: fields that "
        "only some trials have, among these. Trials without that score are not counted.</p>"
        + report_curves.importance_bars(found)
    )


def parts_of(sweep: Sweep, importance: Importance) -> list[tuple[str, str]]:
    """(heading, HTML) of the page; what is empty is left out."""
    points = end_points(sweep)
    curves = "".join(report_curves.score_curves(sweep, m, points) for m in sweep.metrics)
    front = report_curves.front_plot(sweep)
    against = report_plots.against_fields(sweep, own_values(sweep))
    if against:
        against = (
            "<p>Newest scores. Dots grow with the images seen; a dotted line is the recipe's own "
            f"value; a grey cross is a trial without a score.</p>{against}"
        )
    lines = report_plots.parallel_coordinates(sweep)
    if lines:
        lines = (
            f"<p>A line is a trial, the darker the better its {escape(sweep.metric.name)} "
            f"({report_plots.better(sweep.metric)}). Trials without a score have none.</p>{lines}"
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in sweep.notes)
    return [
        ("", summary_of(sweep)),
        ("Best trial", best_part(sweep)),
        ("Best trial and recipe with other seeds", seeds_part(sweep)),
        ("Pareto front", front + front_table(sweep) if front else ""),
        ("Trials", trials_table(sweep)),
        ("Fields and score", lines),
        ("Score against each field", against),
        ("Scores over images seen", curves),
        ("Importance", importance_part(importance, sweep.metric.name)),
        ("Lineage", report_curves.lineage(sweep)),
        ("Left out", f"<ul>{notes}</ul>" if notes else ""),
        ("", f"<details><summary>The space</summary><pre>{escape(sweep.text)}</pre></details>"),
    ]


def sweep_page(sweep: Sweep, importance: Importance) -> str:
    """The whole page, pictures in it."""
    body = "".join(
        (f"<h2>{heading}</h2>" if heading else "") + html
        for heading, html in parts_of(sweep, importance)
        if html
    )
    return whole_page(f"sid_ray: sweep {sweep.name}", body, STYLE)


def write_report(sweep: Sweep, out: Path, importance: Importance | None = None) -> list[Path]:
    """Writes the page at ``out`` and its numbers beside it, .csv and .json. Returns all three."""
    importance = importance or importance_of(sweep)
    files: Mapping[Path, str] = {
        out: sweep_page(sweep, importance),
        out.with_suffix(".csv"): csv_of(sweep),
        out.with_suffix(".json"): json.dumps(json_of(sweep, importance), indent=2) + "\n",
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return list(files)


def run_report(folder: str | Path, out: str | Path) -> int:
    """`sid-ray sweep report FOLDER --out PAGE`. Raises UserError."""
    out = Path(out)
    if out.suffix.lower() in (".csv", ".json"):
        raise UserError(f"--out {out}: name the page, like report.html; numbers lie beside it")
    sweep = read_sweep(Path(folder))
    files: Sequence[Path] = write_report(sweep, out)
    print(f"{len(sweep.trials)} trials in {', '.join(map(str, files))}")
    return 0
