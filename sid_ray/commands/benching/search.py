"""Which settings are tried, and which are kept: one change at a time from the best so far.

Knows nothing of processes: ``Measure`` compares a setting with the best, or says why it cannot.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from sid_ray.config.chosen import ChosenResources
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.config.sections import ResourcesConfig
from sid_ray.errors import UserError
from sid_ray.planning.fit import micro_batch_of, micro_batches
from sid_ray.planning.memory import TRAINED
from sid_ray.planning.profile import SETTINGS

GAIN = 0.01  # a change must be at least so much faster: less is within the noise
FEW_TURNS, GAIN_IN_FEW = 3, 0.1  # of fewer turns than that, so much: one may be anything
AGREE = 2 / 3  # and faster in this share of the turns
SHARED = ("zero_stage", "overlap_comm")  # say nothing where there is nobody to share with
MICRO = "micro_batch"
MICRO_CHANGES = 3  # about so many micro-batches are tried


@dataclass(frozen=True)
class Found:
    """What was measured of a setting: seconds of an iteration, and of memory the most of any rank.

    ``ratios`` are seconds over those of the best at that time, turn by turn; empty for the first,
    one where the two did not fit into memory together. ``note``: what a reader should know.
    """

    seconds: float
    peak_gib: float
    ratios: tuple[float, ...] = ()
    note: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios) if self.ratios else 1.0

    @property
    def faster(self) -> bool:
        """Than the best, by more than noise."""
        agree = sum(ratio < 1 for ratio in self.ratios) >= AGREE * len(self.ratios)
        gain = GAIN if len(self.ratios) >= FEW_TURNS else GAIN_IN_FEW
        return bool(self.ratios) and self.ratio < 1 - gain and agree


@dataclass(frozen=True)
class Row:
    """A line of the table: what was changed, and what came of it. ``note`` says why nothing did."""

    change: str
    found: Found | None = None
    note: str = ""
    kept: bool = False


Measure = Callable[[DistillConfig, str, int], Found]
"""(config, what is changed, changes still to try) -> Found. Raises NotMeasuredError."""


class NotMeasuredError(Exception):
    """Why a setting could not be measured, in one line. ``late``: there is no time for others."""

    def __init__(self, reason: str, late: bool = False):
        super().__init__(reason)
        self.late = late


@dataclass
class Descent:
    """A coordinate descent. ``best`` is the config that was fastest so far."""

    best: DistillConfig
    world_size: int
    measure: Measure
    fields: Sequence[str]
    rows: list[Row] = field(default_factory=list)
    measured: set[str] = field(default_factory=set)
    """Fields of which at least two values were measured."""
    late: bool = False

    def run(self) -> None:
        """Tries everything, or what there is time for; ``rows`` has a line for each change.

        Raises NotMeasuredError where not even the smallest micro-batch can be measured.
        """
        counts = [self.count(name) for name in self.fields]
        self.begin(sum(counts))
        for number, name in enumerate(self.fields):
            if name == MICRO:
                self.climb(sum(counts[number:]))
                continue
            for tried, value in enumerate(list(other_values(self.best, name))):
                self.attempt(name, value, sum(counts[number:]) - tried)

    def count(self, name: str) -> int:
        """About how many changes of a field are tried."""
        return MICRO_CHANGES if name == MICRO else len(list(other_values(self.best, name)))

    def begin(self, more: int) -> None:
        """The first row: the settings as they are, with a smaller micro-batch where these fail."""
        while True:
            size = micro_batch_of(self.best)
            what = f"as it is, {change_words(MICRO, size)}"
            try:
                found = self.measure(self.best, what, more)
            except NotMeasuredError as error:
                smaller = self.neighbour(size, up=False)
                if error.late or smaller is None or MICRO not in self.fields:
                    raise
                self.rows.append(Row(what, note=str(error)))
                self.best = replace(self.best, resources__micro_batch=smaller)
                continue
            self.rows.append(Row(what, found, found.note, kept=True))
            return

    def climb(self, more: int) -> None:
        """Micro-batches: larger ones as long as that is faster, else smaller ones."""
        for up in (True, False):
            moved = False
            while True:
                size = self.neighbour(micro_batch_of(self.best), up)
                if size is None or not self.attempt(MICRO, size, more):
                    break
                moved = True
            if moved:
                return

    def neighbour(self, size: int, up: bool) -> int | None:
        """The next micro-batch of at least twice, or at most half the size; None for none."""
        sizes = [n for n in micro_batches(self.best, self.world_size) if (n > size) is up]
        sizes = [n for n in sizes if n != size]
        if up:
            return next((n for n in sizes if n >= 2 * size), sizes[-1] if sizes else None)
        return next((n for n in reversed(sizes) if 2 * n <= size), sizes[0] if sizes else None)

    def attempt(self, name: str, value: Any, more: int) -> bool:
        """Measures one change; whether it is kept."""
        what = change_words(name, value)
        if self.late:
            self.rows.append(Row(what, note="not tried: the time was up"))
            return False
        try:
            changed = replace(self.best, **{f"resources__{name}": value}).check()
            check_differs(changed, name)
            found = self.measure(changed, what, more)
        except (UserError, NotMeasuredError) as error:
            self.late = getattr(error, "late", False)
            self.rows.append(Row(what, note=str(error)))
            return False
        self.measured.add(name)
        self.rows.append(Row(what, found, found.note, kept=found.faster))
        if found.faster:
            self.best = changed
        return found.faster

    @property
    def best_found(self) -> Found:
        """The figures of the best."""
        return next(row.found for row in reversed(self.rows) if row.kept and row.found)

    @property
    def settings(self) -> dict[str, Any]:
        """The best's values of what was measured; the rest stays auto's."""
        names = [name for name in self.fields if name in self.measured]
        found = {name: getattr(self.best.resources, name) for name in names}
        return found | ({MICRO: micro_batch_of(self.best)} if MICRO in self.fields else {})


def fields_to_try(fixed: Sequence[str], world_size: int) -> list[str]:
    """Fields of the resources section in the order in which they are tried.

    ``fixed`` are those that a person has set; on one worker there is nobody to share with.
    """
    known = {each.name for each in dataclasses.fields(ResourcesConfig)}
    assert known.issuperset(SETTINGS)
    return [
        name for name in SETTINGS if name not in fixed and (world_size > 1 or name not in SHARED)
    ]


def other_values(config: DistillConfig, name: str) -> Iterator[Any]:
    """What a field of few values may be beside what it is."""
    kind = get_type_hints(ChosenResources)[name]
    now = getattr(config.resources, name)
    for value in (False, True) if kind is bool else get_args(kind):
        if value != now:
            yield value


def check_differs(changed: DistillConfig, name: str) -> None:
    """Raises NotMeasuredError for a change that does nothing."""
    resources = changed.resources
    if name == "overlap_comm" and not any(map(resources.stage_of, TRAINED)):
        raise NotMeasuredError(
            "nothing to overlap: at ZeRO stage 0 gradients are summed at the end"
        )


def change_words(name: str, value: Any) -> str:
    """'micro_batch 64', 'overlap_comm on'."""
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return f"{name} {shown}"
