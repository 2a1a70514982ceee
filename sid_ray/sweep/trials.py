"""What trials.jsonl says of a sweep's trials: the one reader of what ledger.py writes.

A line an event, only appended:
  begin    trial, run, point; a second one where a trial that had ended is taken up again
  segment  trial, images_seen, scores, seconds, and run (the newest leg's where it is not told)
  exploit  trial, from_trial, from_run, images_seen, run, point (pbt: weights of another trial)
  end      trial, state (finished, stopped, diverged, failed, lost), why, images_seen

What cannot be read is left out and named in ``Told.notes``: a driver that was killed may leave
half a line, and a newer version may write events that are not known here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sid_ray.storage.durable import values_in
from sid_ray.sweep.arithmetic import WORST
from sid_ray.sweep.space import Metric, Value

TRIALS = "trials.jsonl"
RUNNING = "running"
End = Literal["finished", "stopped", "diverged", "failed", "lost"]
STATES: tuple[str, ...] = (*get_args(End), RUNNING)

Point = dict[str, Value]


@dataclass(frozen=True)
class Segment:
    """A trial from one decision to the next, ``images_seen`` at its end, and the run it was of."""

    run: str
    images_seen: int
    scores: Mapping[str, float]
    seconds: float = 0.0


@dataclass
class Leg:
    """A trial's run, from where it began; a trial has one more after each exploit.

    ``began_at``: images seen of the checkpoint that it began from, ``from_run`` of ``from_trial``.
    """

    run: str
    point: Point
    began_at: int = 0
    images_seen: int = 0
    from_trial: str = ""
    from_run: str = ""


@dataclass
class TrialRecord:
    """One trial, with one leg or more.

    ``state`` is one of STATES, ``why`` the reason of what did not end well. ``images_seen`` is that
    of its newest weights, another trial's images among them; ``images_spent`` what this trial
    itself has trained on, each image of a run once.
    """

    name: str
    legs: list[Leg]
    segments: list[Segment] = field(default_factory=list)
    state: str = RUNNING
    why: str = ""

    @property
    def run(self) -> str:
        """Of its newest leg."""
        return self.legs[-1].run

    @property
    def point(self) -> Point:
        """Of its newest leg."""
        return self.legs[-1].point

    @property
    def first_point(self) -> Point:
        """The one that it began with."""
        return self.legs[0].point

    @property
    def runs(self) -> list[str]:
        """Of all legs, in order; one where nothing was exploited."""
        return [leg.run for leg in self.legs]

    @property
    def exploits(self) -> list[Leg]:
        """The legs that began with another trial's weights."""
        return self.legs[1:]

    @property
    def images_seen(self) -> int:
        return self.legs[-1].images_seen

    @property
    def images_spent(self) -> int:
        return sum(leg.images_seen - leg.began_at for leg in self.legs)

    @property
    def seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)

    @property
    def scores(self) -> dict[str, float]:
        """The newest of each metric; none of a trial that diverged."""
        if self.state == "diverged":
            return {}
        return {
            n: v
            for segment in self.segments
            for n, v in segment.scores.items()
            if is_score_value(v)
        }

    def last(self, metric: str) -> float | None:
        """The newest score; None for none, and for a trial that diverged."""
        return self.scores.get(metric)

    def best(self, metric: Metric) -> tuple[float, int] | None:
        """The best score, and after how many images it was; the earliest of equal ones."""
        return min(
            ((value, images) for images, value in self.scored(metric.name)),
            key=lambda pair: (-metric.sign * pair[0], pair[1]),
            default=None,
        )

    def scored(self, metric: str, run: str = "") -> list[tuple[int, float]]:
        """(images seen, score) of every segment with one, in order; of one run where it is told."""
        return [
            (segment.images_seen, segment.scores[metric])
            for segment in self.segments
            if is_score_value(segment.scores.get(metric)) and run in ("", segment.run)
        ]

    def at(self, metric: str, images_seen: int) -> float | None:
        """The score at exactly so many images."""
        return next((v for n, v in self.scored(metric) if n == images_seen), None)

    def leg(self, run: str) -> Leg:
        """The leg of a run; the newest for a name that is unknown."""
        return next((leg for leg in self.legs if leg.run == run), self.legs[-1])


@dataclass(frozen=True)
class Told:
    """All that a file says.

    Args:
        trials: by their names, in the order in which they began.
        lines: how many it has.
        notes: what was left out.
    """

    trials: dict[str, TrialRecord]
    lines: int
    notes: tuple[str, ...]


def is_score_value(value: Any) -> bool:
    """Whether it is a score: what a trial that gave up tells its searcher is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) < WORST


def spent_of(trials: Iterable[TrialRecord]) -> int:
    """Images that all of them trained on."""
    return sum(trial.images_spent for trial in trials)


def states_of(trials: Iterable[TrialRecord]) -> dict[str, int]:
    """How many are in each state, in the order of STATES; without those that none is in."""
    found = Counter(trial.state for trial in trials)
    return {state: found[state] for state in STATES if found[state]}


# Reading ------------------------------------------------------------------------------------------


def read_trials(folder: Path) -> Told:
    """What trials.jsonl of a sweep's folder says; nothing where it is not there."""
    try:
        return told_by((folder / TRIALS).read_bytes())
    except FileNotFoundError:
        return told_by(b"")


def told_by(data: bytes) -> Told:
    """What the lines of a ledger say; one that is not whole says nothing."""
    lines, rest = values_in(data)
    trials: dict[str, TrialRecord] = {}
    left_out = Counter(take_in(trials, value) for value in lines)
    notes = [f"{TRIALS}: the last line is cut; what it would have said is left out"] if rest else []
    notes += [
        f"{TRIALS}: {count} line{'s' if count > 1 else ''} left out: {why}"
        for why, count in left_out.items()
        if why
    ]
    return Told(trials, len(lines), tuple(notes))


def take_in(trials: dict[str, TrialRecord], event: Any) -> str:
    """Takes one event in. Returns why it was left out, or ''."""
    try:
        kind, name = str(event["event"]), str(event["trial"])
    except (TypeError, KeyError):
        return "not an event of a trial"
    if kind not in ("begin", *KINDS):
        return f"unknown event {kind!r}"
    if kind != "begin" and name not in trials:
        return f"event {kind} without what it needs (the begin of trial {name})"
    try:
        if kind != "begin":
            KINDS[kind](trials[name], event)
        elif name not in trials:
            trials[name] = TrialRecord(name, [Leg(str(event["run"]), dict(event["point"]))])
        else:
            trials[name].state, trials[name].why = RUNNING, ""
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return f"event {kind} without what it needs ({error})"
    return ""


def ends_segment(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    """A segment that is told twice, by a driver and the one after it, counts once."""
    run, images = str(event.get("run", trial.run)), int(event["images_seen"])
    scores = {str(k): v for k, v in event["scores"].items() if isinstance(v, int | float)}
    seconds = float(event.get("seconds", 0.0))
    trial.state, trial.why = RUNNING, ""  # one that had ended was taken up again
    leg = trial.leg(run)
    leg.images_seen = max(leg.images_seen, images)
    for place, there in enumerate(trial.segments):
        if (there.run, there.images_seen) == (run, images):
            trial.segments[place] = Segment(run, images, scores, there.seconds + seconds)
            return
    trial.segments.append(Segment(run, images, scores, seconds))


def exploits(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    run, point, images = str(event["run"]), dict(event["point"]), int(event["images_seen"])
    donor = str(event["from_trial"]), str(event.get("from_run", ""))
    if run not in trial.runs:
        trial.legs.append(Leg(run, point, images, images, *donor))


def ends(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    state, images = str(event["state"]), int(event.get("images_seen", trial.images_seen))
    if state not in STATES:
        raise ValueError(f"state {state}")
    trial.state, trial.why = state, str(event.get("why", ""))
    trial.legs[-1].images_seen = max(trial.images_seen, images)


KINDS = {"segment": ends_segment, "exploit": exploits, "end": ends}
