"""What the sweep's driver writes down of what Ray Tune tells it, and shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from sid_ray.storage.text_lines import lines_in
from sid_ray.sweep.display import shown_scores
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.space import Space
from sid_ray.sweep.stop import STOPS
from sid_ray.sweep.trainable import ENDED, IMAGES, RUN, SECONDS, WHY, Spec
from sid_ray.sweep.trials import End


@dataclass
class SweepWatch:
    """What lives only as long as one driver.

    Not in the callback, which Ray Tune pickles.

    Args:
        tell: takes a line for each decision.
        show: called now and then: the ledger may have changed.
    """

    tell: Callable[[str], None] = lambda text: None
    show: Callable[[], None] = lambda: None

    def say(self, text: str) -> None:
        """A line that is shown at once."""
        self.tell(text)
        self.show()


WATCHES: dict[str, SweepWatch] = {}


def watch_of(folder: str) -> SweepWatch:
    """That of the sweep in a folder, in this driver."""
    return WATCHES.setdefault(folder, SweepWatch())


def note_segment(folder: str, space: Space, trial: Any, result: Mapping[str, Any]) -> None:
    """Writes down a result, unless it says that the trial could not go on."""
    if result.get(ENDED):
        return
    scores = {metric.name: result[metric.name] for metric in space.metrics}
    name = Spec.of(trial).trial
    Ledger(Path(folder)).segment(name, result[RUN], result[IMAGES], scores, result[SECONDS])


def end_of(space: Space, result: Mapping[str, Any]) -> End:
    """How a trial ended whose last result this is."""
    if result.get(ENDED):
        return result[ENDED]
    return "finished" if result[IMAGES] >= space.budget.images else "stopped"


class Notes(tune.Callback):
    """The ledger's lines."""

    def __init__(self, folder: str, space: Space):
        self.folder, self.space = folder, space

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        if stop := STOPS.get(self.folder):
            stop.listen()

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        watch_of(self.folder).show()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        spec = Spec.of(trial)
        Ledger(Path(self.folder)).begin(spec.trial, spec.run, spec.point)

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        name, tell = Spec.of(trial).trial, watch_of(self.folder).tell
        note_segment(self.folder, self.space, trial, result)
        if result[ENDED]:
            tell(f"{name}: {result[ENDED]}: {result[WHY]}")
        else:
            scores = shown_scores(self.space.metrics, result)
            tell(f"{name}: {result[IMAGES]:,} images, {scores}")
        if result.get("done"):
            state = end_of(self.space, result)
            Ledger(Path(self.folder)).end(name, state, result[WHY], result[IMAGES])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        ledger, name = Ledger(Path(self.folder)), Spec.of(trial).trial
        known = ledger.trials().get(name)
        why = reason_of_trial(trial)
        ledger.end(name, "failed", why, known.images_seen if known else 0)
        watch_of(self.folder).tell(f"{name}: failed: {why}")


def reason_of_trial(trial: Any) -> str:
    """The last line of a trial's error."""
    try:
        text = Path(trial.error_file).read_text(errors="replace")
    except (OSError, TypeError):
        text = ""
    told = [line.strip() for line in lines_in(text) if line.strip()]
    return told[-1][:500] if told else "its actor died"
