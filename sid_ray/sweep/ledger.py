"""What a sweep keeps on its driver's disk, and the only truth about its trials.

    runs/SWEEP/sweep.json     name, space, recipe, metrics, when it began, state
    runs/SWEEP/trials.jsonl   a line when a trial begins, ends a segment, exploits another, or ends
    runs/SWEEP-000, ...       the trials' runs, ordinary ones; runs/SWEEP-000-leg2 after an exploit

Ray Tune's own notes may forget what a killed driver did in its last second; a line here is with the
operating system before Tune hears of what it says. One process writes: it holds the sweep's lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sid_ray.store import moved_into_place
from sid_ray.sweep.space import Value

SWEEP, TRIALS = "sweep.json", "trials.jsonl"
End = Literal["finished", "stopped", "diverged", "failed", "lost"]
RUNNING = "running"


@dataclass(frozen=True)
class Segment:
    """One segment's end: what was seen, how it scored, and how long it took."""

    run: str
    images_seen: int
    scores: Mapping[str, float]
    seconds: float = 0.0


@dataclass
class Leg:
    """A trial's run, from where it began; a trial has one more after each exploit."""

    run: str
    point: dict[str, Value]
    began_at: int = 0  # images seen of the checkpoint that it began from
    images_seen: int = 0
    from_run: str = ""


@dataclass
class TrialHistory:
    """All that the ledger says of a trial.

    ``state`` is "running" or how it ended, ``why`` the reason of what did not end well.
    """

    trial: str
    legs: list[Leg]
    segments: list[Segment] = field(default_factory=list)
    state: str = RUNNING
    why: str = ""

    @property
    def run(self) -> str:
        return self.legs[-1].run

    @property
    def point(self) -> dict[str, Value]:
        return self.legs[-1].point

    @property
    def images_seen(self) -> int:
        return self.legs[-1].images_seen

    @property
    def spent(self) -> int:
        """Images that its runs trained on."""
        return sum(max(0, leg.images_seen - leg.began_at) for leg in self.legs)

    @property
    def scores(self) -> Mapping[str, float]:
        """Its last, empty for none."""
        return self.segments[-1].scores if self.segments else {}

    def leg(self, run: str) -> Leg:
        """The leg of a run; the newest for a name that is unknown."""
        return next((leg for leg in self.legs if leg.run == run), self.legs[-1])


class Ledger:
    """trials.jsonl of a sweep's folder. What is told twice is written once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / TRIALS

    def trials(self) -> dict[str, TrialHistory]:
        """Every trial by its name, in the order in which they began."""
        return histories(self.events())

    def events(self) -> list[dict[str, Any]]:
        """All lines; what a killed driver left half written is no event."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def begin(self, trial: str, run: str, point: Mapping[str, Value]) -> None:
        """Also of a trial that had ended, and is tried again."""
        known = self.trials().get(trial)
        if known is None or known.state != RUNNING:
            self._append(event="begin", trial=trial, run=run, point=dict(point))

    def segment(
        self,
        trial: str,
        run: str,
        images_seen: int,
        scores: Mapping[str, float],
        seconds: float,
    ) -> None:
        """A trial that goes on after its driver was killed tells its last result again."""
        known = self.trials().get(trial)
        if known and any((s.run, s.images_seen) == (run, images_seen) for s in known.segments):
            return
        self._append(
            event="segment",
            trial=trial,
            run=run,
            images_seen=images_seen,
            scores=dict(scores),
            seconds=round(seconds, 1),
        )

    def exploit(
        self, trial: str, donor: TrialHistory, images_seen: int, run: str, point: Mapping[str, Any]
    ) -> None:
        self._append(
            event="exploit",
            trial=trial,
            from_trial=donor.trial,
            from_run=donor.run,
            images_seen=images_seen,
            run=run,
            point=dict(point),
        )

    def end(self, trial: str, state: End, why: str, images_seen: int) -> None:
        known = self.trials().get(trial)
        if known and known.state == state:
            return
        self._append(event="end", trial=trial, state=state, why=why, images_seen=images_seen)

    def _append(self, **event: Any) -> None:
        self._cut()
        with self.path.open("a") as file:
            file.write(json.dumps(event) + "\n")
        after_event(self.folder)

    def _cut(self) -> None:
        """Takes half a line away that a killed driver left."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            with self.path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)


def after_event(folder: Path) -> str:
    """Called in the sweep's driver after each line of the ledger, and at its end; never raises.

    Tells MLflow's run of the sweep. Returns '' or a line for the user.
    """
    from sid_ray.sweep import parent

    return parent.after_event(folder)


def histories(events: Iterable[Mapping[str, Any]]) -> dict[str, TrialHistory]:
    """The trials behind a ledger's lines."""
    found: dict[str, TrialHistory] = {}
    for event in events:
        name, kind = event["trial"], event["event"]
        if kind == "begin" and name in found:
            found[name].state, found[name].why = RUNNING, ""
        elif kind == "begin":
            found[name] = TrialHistory(name, [Leg(event["run"], event["point"])])
        if kind == "begin" or name not in found:
            continue
        trial = found[name]
        if kind == "segment":
            run, seen = event.get("run", trial.run), event["images_seen"]
            trial.segments.append(Segment(run, seen, event["scores"], event.get("seconds", 0.0)))
            trial.leg(run).images_seen = seen
            trial.state, trial.why = RUNNING, ""  # one that had ended was taken up again
        elif kind == "exploit":
            seen = event["images_seen"]
            leg = Leg(event["run"], event["point"], seen, seen, event["from_run"])
            trial.legs.append(leg)
        elif kind == "end":
            trial.state, trial.why = event["state"], event["why"]
            trial.legs[-1].images_seen = max(trial.images_seen, event["images_seen"])
    return found


def spent_of(trials: Iterable[TrialHistory]) -> int:
    """Images of all of them."""
    return sum(trial.spent for trial in trials)


def read_sweep(folder: Path) -> dict[str, Any]:
    """What sweep.json holds, empty where there is none."""
    try:
        return json.loads((folder / SWEEP).read_text())
    except FileNotFoundError:
        return {}


def write_sweep(folder: Path, **changes: Any) -> None:
    """Replaces some of sweep.json; a crash leaves the old or the new one."""
    values = read_sweep(folder) | changes
    folder.mkdir(parents=True, exist_ok=True)
    with moved_into_place(folder / SWEEP) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
