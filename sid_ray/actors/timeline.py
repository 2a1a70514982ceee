"""What an interruption cost: from the last step before it to the first step after it, by phase.

    last step | detect or save | reserve | start processes | build | load | first step

Times are seconds since the epoch, taken where they happen: the clocks of the nodes should agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# A phase ends when its mark is made; the first ends when the controller knows of the stop.
PHASES = ("detect", "reserve", "start processes", "build", "load", "first step")


def count_of_workers(workers: int) -> str:
    return f"{workers} worker{'s' * (workers != 1)}"


@dataclass(frozen=True)
class Interruption:
    """One stop of the workers and the start after it."""

    reason: str
    planned: bool
    workers_before: int
    workers_after: int
    images_seen: int
    steps_lost: int
    seconds: float
    phases: dict[str, float]

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {value:.1f}" for name, value in self.phases.items())
        if not self.workers_before:
            workers = count_of_workers(self.workers_after)
            return f"first step of {workers} after {self.seconds:.1f} s ({phases})"
        workers = f"{count_of_workers(self.workers_after)} after {self.workers_before}"
        lost = "no step lost" if not self.steps_lost else f"{self.steps_lost} steps lost"
        return f"{self.reason}; {workers}, {lost}, {self.seconds:.1f} s ({phases})"


@dataclass
class Timeline:
    """Keeps the marks of one training.

    ``batch_size`` turns images into steps; ``began`` is when the driver was started, ``there`` when
    this was made.
    """

    batch_size: int
    began: float = 0.0
    there: float = 0.0
    workers: int = 0
    interruptions: list[Interruption] = field(default_factory=list)
    _seen: int = 0
    _seen_at: float = 0.0
    _reason: str = ""
    _planned: bool = False
    _marks: dict[str, float] = field(default_factory=dict)
    _after: int = 0
    _group_is_new: bool = False  # one has started since the stop

    def __post_init__(self) -> None:
        if self.began:  # a start is an interruption of nothing
            self._reason, self._seen_at, self._marks = "started", self.began, {"detect": self.there}

    def stepped(self, images_seen: int, at: float) -> Interruption | None:
        """The newest step. Returns the interruption that it ends, if it is the first after one.

        A step of the group that stopped may be told after the stop: it ends nothing.
        """
        ended = self._ended(images_seen, at) if self._reason and self._group_is_new else None
        if ended and ended.workers_before:
            self.interruptions.append(ended)
        self._seen, self._seen_at = images_seen, at
        return ended

    def stopped(self, reason: str, planned: bool, at: float) -> None:
        """The workers have stopped. The first reason counts until they step again."""
        if not self._reason and self._seen:
            self._reason, self._planned, self._marks = reason, planned, {"detect": at}
            self._group_is_new = False

    def mark(self, phase: str, at: float) -> None:
        """A phase has ended; where a start was tried twice, the last one counts."""
        if self._reason:
            self._marks[phase] = at

    def group_is(self, workers: int, at: float) -> None:
        """The number of workers of the group that starts; nobody may have told of a stop."""
        self.stopped("restarted by Ray Train", False, at)
        self._after, self._group_is_new = workers, True
        if not self._reason:
            self.workers = workers

    def _ended(self, images_seen: int, at: float) -> Interruption:
        resumed_from = images_seen - self.batch_size
        lost = max(0, self._seen - resumed_from) // self.batch_size
        first = "save" if self._planned else "detect" if self.workers else "start Ray"
        phases, before = {}, self._seen_at
        for phase in PHASES:
            end = at if phase == PHASES[-1] else self._marks.get(phase, before)
            phases[first if phase == PHASES[0] else phase] = round(end - before, 2)
            before = end
        ended = Interruption(
            self._reason,
            self._planned,
            self.workers,
            self._after,
            resumed_from,
            lost,
            round(at - self._seen_at, 2),
            phases,
        )
        self.workers, self._reason, self._marks = self._after, "", {}
        return ended
