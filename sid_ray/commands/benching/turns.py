"""Two settings measured in turn, each in processes of its own, within the minutes there are.

The best so far and what is compared with it take iterations one after the other, so that whatever
else the machine does meets both; each has its own processes, so that neither sees what the other
sets for its process (compiled code, ZeRO, allocators), memory is that of one of them, and one that
crashes ends nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from sid_ray.commands.benching.processes import Processes, SettingFailedError
from sid_ray.commands.benching.rank import Iteration
from sid_ray.commands.benching.search import Found, NotMeasuredError
from sid_ray.commands.benching.short import short_of
from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.attention import check_backend
from sid_ray.weights.description import ModelDescription

MOST_TURNS, FEWEST_TURNS = 15, 3
WARM_UPS = 2  # iterations that do not count: allocators, cuDNN's search, Adam's state
GRAPH_WARM_UPS = 4  # CUDA graphs run twice before they are recorded
SLOW_S = 2.0  # after an iteration of so long, another one is no warm-up but a loss of time
LEAST_SHARE_S = 20.0  # of the time left that one setting may take, starting included
PATIENCE = 3  # shares until the first iteration of a setting must have ended
FULL = ("out of memory", "SIGKILL")
Tell = Callable[[str], None]


class Turns:
    """Measures one config after the other; ``best`` keeps its processes. A context."""

    def __init__(
        self,
        description: ModelDescription,
        world_size: int,
        on_gpu: bool,
        deadline: float,
        tell: Tell = lambda text: None,
    ):
        self.description, self.world_size, self.on_gpu = description, world_size, on_gpu
        self.deadline, self.tell = deadline, tell
        self.best: Processes | None = None
        self.best_config: DistillConfig | None = None
        self.best_seconds = 0.0
        self.ceiling: dict[str, float] = {}
        """FLOP/s of all ranks at once, by what does nothing but multiply."""

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *error: object) -> None:
        self.end_best()

    def end_best(self) -> None:
        if self.best is not None:
            self.best.kill()
            self.best = None

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def measure(self, config: DistillConfig, what: str, more: int) -> Found:
        """A config against the best, or by itself where it is the first. Faster ones are the best.

        Args:
            what: is said to whoever waits.
            more: changes that are still to be tried, this one included: they share the time.

        Raises NotMeasuredError, UserError for settings that cannot work here.
        """
        if self.left_s <= 0:
            raise NotMeasuredError("not tried: the time was up", late=True)
        if not self.on_gpu:
            check_backend(config.resources.attention)
        self.tell(f"{minutes(self.left_s)} left: {what}")
        began = time.monotonic()
        share = min(max(self.left_s / (more + 1), LEAST_SHARE_S), self.left_s)
        first = self.best_config is None
        try:
            if first:
                found = self._alone(config, self.deadline, time.monotonic() + share)
            else:
                found = self._in_turn(config, share)
        except SettingFailedError as error:
            late, reason = error.late and self.left_s <= 1, str(error)
            if error.late:
                spent = time.monotonic() - began
                reason = f"no iteration ended within {spent:.0f} s: give --minutes more"
            raise NotMeasuredError(reason, late=late) from None
        ratio = f", {found.ratio:.3f} of the best's" if found.ratios else ""
        self.tell(f"     {found.seconds:.4g} s an iteration{ratio}")
        return found

    def start(self, config: DistillConfig) -> Processes:
        short = short_of(config, self.world_size)
        return Processes(short, self.description, self.world_size, self.on_gpu)

    def _in_turn(self, config: DistillConfig, share: float) -> Found:
        """Beside the best; where the two do not fit into memory together, alone."""
        until = time.monotonic() + share
        # Starting and compiling may take longer than a fair share, but not all there is.
        patience = min(time.monotonic() + PATIENCE * share, self.deadline)
        if self.best is None or not self.best.alive:
            assert self.best_config is not None
            self.best = self.start(self.best_config)
            self.best.ready(self.deadline)
            warm_up(self.best, self.best_config, self.deadline)
        other = self.start(config)
        try:
            other.ready(patience)
            warm_up(other, config, patience)
            return self._compare(other, config, until)
        except SettingFailedError as error:
            other.kill()
            if not any(word in str(error) for word in FULL):
                raise
        except BaseException:
            other.kill()
            raise
        self.end_best()
        return self._alone(config, patience, until)

    def _compare(self, other: Processes, config: DistillConfig, until: float) -> Found:
        assert self.best is not None
        pairs: list[tuple[Iteration, Iteration]] = []
        while goes_on(len(pairs), until, self.deadline):
            try:
                if len(pairs) % 2:
                    ours = iterate(self.best, self.deadline)
                    pairs.append((iterate(other, self.deadline), ours))
                else:
                    theirs = iterate(other, self.deadline)
                    pairs.append((theirs, iterate(self.best, self.deadline)))
            except SettingFailedError as error:
                if not (error.late and pairs):
                    raise
                break
        self.best_seconds = statistics.median(best.seconds for _, best in pairs)
        found = summary([mine for mine, _ in pairs], "")
        ratios = tuple(mine.seconds / best.seconds for mine, best in pairs)
        found = Found(found.seconds, found.peak_gib, ratios, found.note)
        if found.faster:
            self.best.kill()
            self._keep(other, config, found)
        else:
            other.kill()
        return found

    def _alone(self, config: DistillConfig, patience: float, until: float) -> Found:
        """Without the best beside it: the first, or what needs the memory of both."""
        first, before = self.best_config is None, self.best_seconds
        processes = self.start(config)
        try:
            processes.ready(patience)
            warm_up(processes, config, patience)
            if first:
                self.ceiling = summed(processes.ask("ceiling", patience))
            mine: list[Iteration] = []
            while goes_on(len(mine), until, self.deadline):
                try:
                    mine.append(iterate(processes, self.deadline))
                except SettingFailedError as error:
                    if not (error.late and mine):
                        raise
                    break
            note = "" if first else "apart: not in memory beside the best"
            found = summary(mine, note)
        except BaseException:
            processes.kill()
            raise
        if not first:
            ratios = tuple(each.seconds / before for each in mine)
            found = Found(found.seconds, found.peak_gib, ratios, found.note)
        if first or found.faster:
            self._keep(processes, config, found)
        else:
            processes.kill()
        return found

    def _keep(self, processes: Processes, config: DistillConfig, found: Found) -> None:
        self.best, self.best_config, self.best_seconds = processes, config, found.seconds


def summary(taken: list[Iteration], note: str) -> Found:
    """Of one setting's iterations."""
    if any(each.skipped for each in taken):
        note = "; ".join(filter(None, (note, "updates were left out: gradients not finite")))
    peak = max(each.peak_gib for each in taken)
    return Found(statistics.median(each.seconds for each in taken), peak, (), note)


def summed(rates: list[dict[str, float]]) -> dict[str, float]:
    """Over ranks."""
    return {name: sum(each[name] for each in rates) for name in rates[0]}


def iterate(processes: Processes, deadline: float) -> Iteration:
    """One iteration: the slowest rank's seconds, the fullest one's memory."""
    answers: list[Iteration] = processes.ask("iterate", deadline)
    return Iteration(
        max(answer.seconds for answer in answers),
        answers[0].skipped,
        max(answer.peak_gib for answer in answers),
    )


def warm_up(processes: Processes, config: DistillConfig, deadline: float) -> None:
    wanted = GRAPH_WARM_UPS if config.resources.compile == "cudagraphs" else WARM_UPS
    for _ in range(wanted):
        began = time.monotonic()
        iterate(processes, deadline)
        if wanted == WARM_UPS and time.monotonic() - began > SLOW_S:
            return


def goes_on(turns: int, until: float, deadline: float) -> bool:
    """Whether there is to be another turn."""
    now = time.monotonic()
    if turns < FEWEST_TURNS:  # but for iterations that are so slow that a few take all the time
        return turns == 0 or now < min(until + LEAST_SHARE_S, deadline)
    return turns < MOST_TURNS and now < until


def minutes(seconds: float) -> str:
    """'4:05'."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
