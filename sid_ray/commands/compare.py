"""`sid-ray compare`: runs side by side on one page that needs nothing beside it.

Curves of the scores over images seen and over time, what each run cost, the settings in which they
differ, and pictures of the same seeds.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain, pairwise
from pathlib import Path
from string import Template
from typing import Annotated, Any

from tyro.conf import Positional, arg

from sid_ray.commands.arguments import is_address, number_list, typed_prompts
from sid_ray.commands.page import whole_page
from sid_ray.config.distill_config import DistillConfig, flatten, replace
from sid_ray.console import duration
from sid_ray.errors import UserError
from sid_ray.metrics.names import EVAL, bare, is_better, is_score, larger_is_better, scores_in_order
from sid_ray.objectives.spec import objective_spec
from sid_ray.run_folder import SUMMARY, RunRecord, read_record, runs_folder, tracking_uri
from sid_ray.storage.durable import moved_into_place
from sid_ray.storage.errors import StoreError
from sid_ray.storage.places import check_file
from sid_ray.storage.store import Store
from sid_ray.tracking.history import History, Point, read_history

COLOURS = ("#0b6fa4", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be185d", "#0f766e", "#475569")
CURVES = {
    "fake_loss": "fake-score loss",
    "generator_loss": "generator loss",
    "images_per_s": "images a second",
}
AT_ONCE = 64  # pictures
MOST_SEEDS = 256  # pictures of a run on a page
IDLE_S = 60.0  # a longer gap between two reports is an interruption, not work
NOT_SETTINGS = ("recipe", "output.", "data.source")  # where and what it is called, not what it is


@dataclass(frozen=True)
class CompareOptions:
    """Writes a page with runs side by side: scores, cost, settings, pictures of the same seeds."""

    runs: Annotated[tuple[str, ...], Positional, arg(metavar="RUN")]
    """Folders of runs: paths or s3://."""
    out: Path = Path("compare.html")
    """The page; nothing else belongs to it."""
    seeds: str = "0-15"
    """Seeds of the pictures."""
    prompt: str = ""
    """Text for text-to-image generators; | stands between several."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        if not self.runs:
            raise UserError("name the runs to compare: sid-ray compare RUN [RUN ...]")
        if is_address(self.out):
            raise UserError(
                f"--out {self.out}: the page is a file on this machine's disk; name one"
            )
        check_file(self.out, "--out")
        number_list(self.seeds, "seeds", MOST_SEEDS)


def compare(options: CompareOptions) -> int:
    seeds = number_list(options.seeds, "seeds", MOST_SEEDS)
    write_comparison(options.runs, options.out, seeds, typed_prompts(options.prompt))
    print(f"{len(options.runs)} runs in {options.out}")
    return 0


@dataclass(frozen=True)
class Compared:
    """One run of the page. ``pictures`` are PNGs, one a seed."""

    name: str
    address: str
    config: DistillConfig
    history: History
    summary: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[bytes] = ()
    trouble: str = ""

    @property
    def images_seen(self) -> int:
        return max((points[-1].images_seen for points in self.history.values()), default=0)


def open_run(place: str) -> tuple[Store, RunRecord, DistillConfig]:
    """A run by its folder, a path or s3://. Raises UserError, also where it is none."""
    store = Store.at(place)
    try:
        record = read_record(store)
    except StoreError as error:
        raise UserError(str(error)) from None
    except OSError:
        raise UserError(f"{place} is no run: name a run's folder") from None
    if record is None:
        raise UserError(f"{place} is no run: run.json is missing; name a run's folder")
    return store, record, DistillConfig.from_json(record.config, f"{place}/run.json")


def find_run(place: str) -> Compared:
    """A run and what MLflow has of it. Raises UserError, also where it is none."""
    store, record, config = open_run(place)
    try:
        summary = json.loads(store.read_text(SUMMARY))
    except StoreError as error:
        raise UserError(str(error)) from None
    except (FileNotFoundError, ValueError):
        summary = {}  # it has not ended
    if record.tracker_run_id is None:
        raise UserError(f"{place} has no MLflow run yet: start it first")
    # Where it lies now: a folder of runs may have been moved since.
    moved = replace(config, output__folder=runs_folder(store.url.rpartition("/")[0]))
    history = read_history(tracking_uri(moved), record.tracker_run_id)
    return Compared(store.name, store.url, config, history, summary)


def work_seconds(history: History) -> float:
    """Seconds between reports, without long gaps."""
    times = sorted({point.at for points in history.values() for point in points})
    return sum(b - a for a, b in pairwise(times) if b - a <= IDLE_S)


def worker_seconds(history: History) -> float:
    """Seconds times workers: what a run cost, whatever number of workers it had when."""
    reports = history.get("workers", [])
    return sum((b.at - a.at) * b.value for a, b in pairwise(reports) if 0 <= b.at - a.at <= IDLE_S)


def pictures_of_run(run: Compared, seeds: Sequence[int], prompts: Sequence[str]) -> list[bytes]:
    """A PNG a seed of the newest checkpoint. Raises UserError."""
    from sid_ray.commands.generate import Painter
    from sid_ray.evaluation.pictures import to_picture

    painter = Painter(run.address, None, prompts, min(len(seeds), AT_ONCE))
    pictures = []
    for start in range(0, len(seeds), AT_ONCE):
        for image in painter.images(seeds[start : start + AT_ONCE]):
            file = io.BytesIO()
            to_picture(image).save(file, "PNG")
            pictures.append(file.getvalue())
    return pictures


def score_names_of(runs: Sequence[Compared]) -> list[str]:
    """Every score, eval/NAME, that a run has: Frechet distances first."""
    names = {name for run in runs for name in run.history}
    return scores_in_order(name for name in names if name.startswith(EVAL) and is_score(name))


def best_value(metric: str, points: Sequence[Point]) -> Point | None:
    """The best value of a score, in its direction; None where none is a number."""
    best: Point | None = None
    for point in points:
        if is_better(metric, point.value, best.value if best else None):
            best = point
    return best


# The page -----------------------------------------------------------------------------------------


def curve(runs: Sequence[Compared], metric: str, title: str, over_time: bool = False) -> str:
    """One metric of all runs as SVG; empty where none has it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    with_it = [
        (run, colour) for run, colour in coloured(runs) if len(run.history.get(metric, ())) > 1
    ]
    if not with_it:
        return ""
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.subplots()
    for run, colour in with_it:
        points = run.history[metric]
        at = [p.at - points[0].at if over_time else p.images_seen for p in points]
        axes.plot(at, [p.value for p in points], color=colour, label=run.name, linewidth=1.6)
        best = best_value(metric, points) if metric.startswith(EVAL) else None
        if best:
            when = best.at - points[0].at if over_time else best.images_seen
            axes.plot([when], [best.value], "o", color=colour, markersize=5)
    if is_logarithmic(metric, [p.value for run, _ in with_it for p in run.history[metric]]):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("seconds since its first report" if over_time else "images seen", fontsize=9)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8, which="both")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if not over_time and len(with_it) < len(COLOURS):
        axes.legend(fontsize=8, frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def is_logarithmic(metric: str, values: Sequence[float]) -> bool:
    """For distances; an unbiased estimate of one may be below 0, and has no logarithm."""
    distance = metric.startswith(EVAL) and not larger_is_better(metric)
    return distance and not any(value <= 0 for value in values)


def coloured(runs: Sequence[Compared]) -> list[tuple[Compared, str]]:
    return [(run, COLOURS[index % len(COLOURS)]) for index, run in enumerate(runs)]


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def name_with_mark(run: Compared, colour: str) -> str:
    return f'<span class="mark" style="background:{colour}"></span>{escape(run.name)}'


def results_table(runs: Sequence[Compared]) -> str:
    """What each run reached, in the first score that there is, and what it took."""
    score = next(iter(score_names_of(runs)), "")
    name = escape(bare(score)) or "score"
    head = ("run", "objective", "images seen", f"best {name}", "at images", f"last {name}",
            "time at work", "worker-hours", "images/s", "interruptions")  # fmt: skip
    rows = []
    for run, colour in coloured(runs):
        speeds = sorted(point.value for point in run.history.get("images_per_s", []))
        points = run.history.get(score, [])
        best = best_value(score, points)
        rows.append(
            [
                name_with_mark(run, colour),
                escape(objective_spec(run.config.objective.name).label),
                f"{run.images_seen:,}",
                f"<b>{best.value:.3f}</b>" if best else "-",
                f"{best.images_seen:,}" if best else "-",
                f"{points[-1].value:.3f}" if points else "-",
                duration(work_seconds(run.history)),
                f"{worker_seconds(run.history) / 3600:.3f}",
                f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-",
                str(len(run.summary.get("interruptions", ()))) if run.summary else "running",
            ]
        )
    return html_table(head, rows)


def differences_table(runs: Sequence[Compared]) -> str:
    """Fields of the config in which not all runs agree."""
    flat = [flatten(run.config) for run in runs]
    names = [
        name
        for name in dict.fromkeys(chain(*flat))
        if not name.startswith(NOT_SETTINGS) and len({str(f.get(name, "-")) for f in flat}) > 1
    ]
    if not names:
        return "<p>None: the same settings.</p>"
    head = ["", *(name_with_mark(run, colour) for run, colour in coloured(runs))]
    rows = [
        [f"<code>{escape(name)}</code>", *(escape(str(each.get(name, "-"))) for each in flat)]
        for name in names
    ]
    return html_table(head, rows)


def pictures_table(runs: Sequence[Compared], seeds: Sequence[int]) -> str:
    """A row a run, a column a seed."""
    rows = []
    for run, colour in coloured(runs):
        images = [
            f'<img alt="seed {seed}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            for seed, png in zip(seeds, run.pictures, strict=False)
        ]
        rows.append([name_with_mark(run, colour), *(images or [escape(run.trouble)])])
    return html_table(["", *(str(seed) for seed in seeds)], rows)


STYLE = """\
th { white-space: normal; vertical-align: bottom }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: .5rem }
figure { margin: 0 } figure svg { width: 100%; height: auto }
.pictures td { padding: 1px; border: 0 } .pictures td:first-child { padding-right: .8rem }
.pictures img { width: 3.9rem; image-rendering: pixelated; display: block }
"""
BODY = Template("""\
$results
<p>Scores are the averaged generator's while it was trained; the dot is the best. Time at work
leaves out gaps of more than a minute between reports.</p>
<h2>Curves</h2><div class="curves">$curves</div>
<h2>Settings that differ</h2>$differences
<h2>The same seeds, newest checkpoint</h2><div class="pictures">$pictures</div>""")


def title_of(score: str) -> str:
    better = "larger" if larger_is_better(score) else "smaller"
    return f"{bare(score)} of the averaged generator ({better} is better)"


def compare_page(runs: Sequence[Compared], seeds: Sequence[int]) -> str:
    """The whole page, pictures and curves in it."""
    scores = score_names_of(runs)
    drawn = [curve(runs, score, title_of(score)) for score in scores]
    for score in scores[:1]:
        drawn.insert(1, curve(runs, score, f"{bare(score)} over time", over_time=True))
    drawn += [curve(runs, metric, title) for metric, title in CURVES.items()]
    body = BODY.substitute(
        results=results_table(runs),
        curves="".join(drawn),
        differences=differences_table(runs),
        pictures=pictures_table(runs, seeds),
    )
    return whole_page("sid_ray: " + ", ".join(run.name for run in runs), body, STYLE)


def write_comparison(
    places: Sequence[str],
    out: Path,
    seeds: Sequence[int],
    prompts: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> None:
    """Writes the page of these runs. Raises UserError."""
    found = [find_run(place) for place in places]  # a wrong name is told before pictures are made
    addresses = [run.address for run in found]
    if twice := [each for each in addresses if addresses.count(each) > 1]:
        raise UserError(f"{twice[0]} is named twice: name each run once")
    runs = []
    for place, run in zip(places, found, strict=True):
        tell(f"{place}: making {len(seeds)} pictures")
        try:
            pictures = pictures_of_run(run, seeds, prompts)
            run = Compared(**vars(run) | {"pictures": pictures})
        except UserError as error:
            tell(f"{place}: no pictures: {error}")
            run = Compared(**vars(run) | {"trouble": str(error)})
        runs.append(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    with moved_into_place(out) as temporary:
        temporary.write_text(compare_page(runs, seeds), encoding="utf-8")
