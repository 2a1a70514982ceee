"""What a sweep has done so far, read from its folder: nothing here starts or changes anything.

SWEEP/sweep.json    name, text of the space, recipe, metrics, when it was started, its state
SWEEP/trials.jsonl  a line an event, only appended:
  begin    trial, run, point
  segment  trial, images_seen, scores, seconds, and run (the newest leg's where it is not told)
  exploit  trial, from_trial, from_run, images_seen, run, point (pbt, pb2: weights of another trial)
  end      trial, state (finished, stopped, diverged, failed, lost), why, images_seen

What cannot be read is left out and named in ``Sweep.notes``: a driver that was killed may leave
half a line, and a newer version may write events that are not known here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.metrics.names import larger_is_better
from sid_ray.sweep.arithmetic import WORST
from sid_ray.sweep.space import Metric, Space, Value
from sid_ray.sweep.space_file import parse_space

SWEEP, EVENTS = "sweep.json", "trials.jsonl"
RUNNING = "running"
STATES = ("finished", "stopped", "diverged", "failed", "lost", RUNNING)

Point = dict[str, Value]


@dataclass(frozen=True)
class Segment:
    """A trial from one decision to the next, ``images_seen`` at its end, and the run it was of."""

    run: str
    images_seen: int
    scores: Mapping[str, float]
    seconds: float
    point: Point


@dataclass(frozen=True)
class Exploit:
    """A trial goes on with another one's weights, and a point of its own, as a run of its own."""

    from_trial: str
    from_run: str
    images_seen: int
    run: str
    point: Point


@dataclass
class TrialRecord:
    """One trial.

    Args:
        run, point: of its newest leg; ``first_point`` is the one that it began with.
        runs: of all legs, in order; one where nothing was exploited.
        spans: images seen at each run's begin, another trial's, and now.

    ``images_seen`` is that of its newest weights, another trial's images among them;
    ``images_spent`` what this trial itself has trained on, each image of a run once.
    """

    name: str
    run: str = ""
    point: Point = field(default_factory=dict)
    first_point: Point = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    exploits: list[Exploit] = field(default_factory=list)
    state: str = RUNNING
    why: str = ""
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def images_seen(self) -> int:
        return self.spans.get(self.run, (0, 0))[1]

    @property
    def images_spent(self) -> int:
        return sum(end - begin for begin, end in self.spans.values())

    @property
    def seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)

    @property
    def leg(self) -> list[Segment]:
        """Segments since the trial last took another one's weights."""
        return [segment for segment in self.segments if segment.run == self.run]

    def last(self, metric: str) -> float | None:
        """The newest score; None for none, and for a trial that diverged."""
        if self.state == "diverged":
            return None
        return next((v for _, v in reversed(self.scored(metric))), None)

    def best(self, metric: Metric) -> tuple[float, int] | None:
        """The best score, and after how many images it was; the earliest of equal ones."""
        return min(
            ((value, images) for images, value in self.scored(metric.name)),
            key=lambda pair: (-metric.sign * pair[0], pair[1]),
            default=None,
        )

    def scored(self, metric: str) -> list[tuple[int, float]]:
        """(images seen, score) of every segment with one, in order."""
        return [
            (segment.images_seen, segment.scores[metric])
            for segment in self.segments
            if is_number(segment.scores.get(metric))
        ]

    def at(self, metric: str, images_seen: int) -> float | None:
        """The score at exactly so many images."""
        return next((v for n, v in self.scored(metric) if n == images_seen), None)


@dataclass(frozen=True)
class Sweep:
    """A whole sweep. ``space`` is None where its text cannot be read; ``text`` is that text.

    ``events``: how many lines the ledger has.
    """

    folder: Path
    name: str
    recipe: str
    metrics: tuple[Metric, ...]
    space: Space | None
    text: str
    started: str
    state: str
    trials: Mapping[str, TrialRecord]
    notes: tuple[str, ...] = ()
    events: int = 0

    @property
    def metric(self) -> Metric:
        """The score that counts first."""
        return self.metrics[0]

    @property
    def images_spent(self) -> int:
        return sum(trial.images_spent for trial in self.trials.values())

    @property
    def states(self) -> dict[str, int]:
        """How many trials are in each state, in the order of STATES."""
        found = Counter(trial.state for trial in self.trials.values())
        return {state: found[state] for state in STATES if found[state]}

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that vary, in the order of the space."""
        known = self.space.names if self.space else ()
        seen = [s.point for t in self.trials.values() for s in t.segments]
        points = [p for t in self.trials.values() for p in (t.first_point, t.point)] + seen
        return tuple(dict.fromkeys([*known, *(name for point in points for name in point)]))

    @property
    def candidates(self) -> list[TrialRecord]:
        """Trials that may be the best: those at their end, or while there are none all that work.

        A score at fewer images is worse, or luckier, through no merit of its point.
        """
        name = self.metric.name
        able = [t for t in self.trials.values() if t.last(name) is not None and t.state != "failed"]
        return [trial for trial in able if trial.state == "finished"] or able

    @property
    def best(self) -> TrialRecord | None:
        """The candidate with the best newest score, None for none."""
        return min(self.candidates, key=lambda t: (self.cost(t), t.images_spent), default=None)

    def cost(self, trial: TrialRecord) -> float:
        """A trial's newest first score such that less is better."""
        value = trial.last(self.metric.name)
        return math.inf if value is None else -self.metric.sign * value


def is_number(value: Any) -> bool:
    """Whether it is a score: what a trial that gave up tells its searcher is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) < WORST


# Reading ------------------------------------------------------------------------------------------


def read_sweep(folder: Path) -> Sweep:
    """The sweep of a folder, finished or not. Raises UserError where there is none."""
    try:
        about = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("no mapping")
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no sweep: {SWEEP} is missing; name a sweep's folder, like runs/SWEEP"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"{folder}/{SWEEP} cannot be read ({error}); start the sweep again: it writes it anew"
        ) from None
    notes: list[str] = []
    text = str(about.get("space", ""))
    space = None
    try:
        space = parse_space(text, "space")
    except UserError as error:
        notes.append(f"the space cannot be read: {error}")
    metrics = space.metrics if space else tuple(map(metric_of, about.get("metrics", ())))
    if not metrics:
        raise UserError(f"{folder}/{SWEEP} names no metric; start the sweep again")
    trials, events = read_trials(folder / EVENTS, notes)
    return Sweep(
        folder=folder,
        name=str(about.get("name", folder.name)),
        recipe=str(about.get("recipe", "")),
        metrics=metrics,
        space=space,
        text=text,
        started=str(about.get("started", "")),
        state=str(about.get("state", "")),
        trials=trials,
        notes=tuple(notes),
        events=events,
    )


def metric_of(told: Any) -> Metric:
    """A metric by its name, or by {name, direction}."""
    if isinstance(told, Mapping):
        return Metric(str(told["name"]), "max" if told.get("direction") == "max" else "min")
    return Metric(str(told), "max" if larger_is_better(str(told)) else "min")


def read_trials(path: Path, notes: list[str]) -> tuple[dict[str, TrialRecord], int]:
    """Every trial, in the order of their begins, and how many lines say so.

    Adds to ``notes`` what was left out.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        lines = [b""]
    if lines[-1]:
        notes.append(f"{path.name}: the last line is cut; what it would have said is left out")
    trials: dict[str, TrialRecord] = {}
    left_out: Counter[str] = Counter()
    for line in lines[:-1]:
        left_out[told(trials, line)] += 1
    notes += [
        f"{path.name}: {count} line{'s' if count > 1 else ''} left out: {why}"
        for why, count in left_out.items()
        if why
    ]
    return trials, len(lines) - 1


def told(trials: dict[str, TrialRecord], line: bytes) -> str:
    """Takes one line in. Returns why it was left out, or ''."""
    try:
        event = json.loads(line)
        kind, name = event["event"], event["trial"]
    except (ValueError, TypeError, KeyError):
        return "not an event of a trial"
    if kind not in KINDS:
        return f"unknown event {kind!r}"
    trial = trials.get(str(name)) or TrialRecord(str(name))
    try:
        KINDS[kind](trial, event)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"event {kind} without what it needs ({error})"
    trials[trial.name] = trial
    return ""


def begins(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    """Also where a sweep that was stopped goes on: then the trial has segments already."""
    run, point = str(event["run"]), dict(event["point"])
    trial.state, trial.why = RUNNING, ""
    if not trial.runs:
        trial.run, trial.point, trial.first_point, trial.runs = run, point, point, [run]


def ends_segment(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    """A segment that is told twice, by a driver and the one after it, counts once."""
    images, seconds = int(event["images_seen"]), float(event.get("seconds", 0.0))
    scores = {str(k): v for k, v in event["scores"].items() if isinstance(v, int | float)}
    run = str(event.get("run", trial.run))
    trial.state, trial.why = RUNNING, ""
    advance(trial, run, images)
    points = {trial.runs[0]: trial.first_point} if trial.runs else {}
    points |= {one.run: one.point for one in trial.exploits}
    for place, there in enumerate(trial.segments):
        if (there.run, there.images_seen) == (run, images):
            seconds += there.seconds
            trial.segments[place] = Segment(run, images, scores, seconds, there.point)
            return
    trial.segments.append(Segment(run, images, scores, seconds, points.get(run, {})))


def exploits(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    found = Exploit(
        str(event["from_trial"]),
        str(event.get("from_run", "")),
        int(event["images_seen"]),
        str(event["run"]),
        dict(event["point"]),
    )
    if found.run in trial.runs:
        return
    trial.exploits.append(found)
    trial.runs.append(found.run)
    trial.run, trial.point = found.run, found.point
    trial.spans[found.run] = found.images_seen, found.images_seen


def ends(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    state = str(event["state"])
    if state not in STATES:
        raise ValueError(f"state {state}")
    trial.state, trial.why = state, str(event.get("why", ""))
    advance(trial, trial.run, int(event.get("images_seen", trial.images_seen)))


def advance(trial: TrialRecord, run: str, images_seen: int) -> None:
    begin, end = trial.spans.get(run, (0, 0))
    trial.spans[run] = begin, max(end, images_seen)


KINDS = {"begin": begins, "segment": ends_segment, "exploit": exploits, "end": ends}
