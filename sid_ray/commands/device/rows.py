"""What a check of a machine is given, and what it answers with.

A check yields rows as it finds them: what was looked at, what was measured, the bound it was held
to, a verdict, and the figures behind the words for programs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sid_ray.commands.checks import FAILED, OK, SKIPPED, WARNING
from sid_ray.commands.device.redact import without_places
from sid_ray.errors import UserError
from sid_ray.storage.places import one_line

if TYPE_CHECKING:
    import torch

MEASURED = "measured"  # a figure that is held to no bound
VERDICTS = (OK, MEASURED, WARNING, SKIPPED, FAILED)
MOST_LETTERS = 300  # of an error
Figure = float | int | str | bool


@dataclass(frozen=True)
class DeviceRow:
    """One thing that was looked at; ``bound`` is empty where there is none."""

    name: str
    measured: str
    bound: str = ""
    verdict: str = OK
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def to_values(self) -> dict[str, Any]:
        """As JSON has it: numbers that are not finite, which JSON lacks, as words."""
        values = dataclasses.asdict(self)
        values["figures"] = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self.figures.items()
        }
        return values


@dataclass(frozen=True)
class Rig:
    """What is measured, and how long that may take.

    Args:
        device: torch's name of what computes, "cuda" or "cpu".
        world: GPUs of this machine, or processes that stand for them on its CPU.
        memory: bytes of the smallest GPU, or what the CPU may use.
        seconds: until the check is ended.
        began: of the monotonic clock; ``seconds`` count from there.
    """

    device: str
    world: int
    memory: int
    seconds: float
    began: float = field(default_factory=time.monotonic, compare=False)

    @property
    def small(self) -> bool:
        """Whether networks and sizes are tiny: where a CPU stands for GPUs."""
        return self.device == "cpu"

    @property
    def first(self) -> torch.device:
        """The first GPU, or the CPU."""
        import torch

        return torch.device(self.device, 0) if self.device == "cuda" else torch.device("cpu")

    @property
    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def to_json(self) -> str:
        values = dataclasses.asdict(self)
        del values["began"]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Rig:
        return cls(**json.loads(text))


def held_to(name: str, what: str, value: float, bound: float, **figures: Figure) -> DeviceRow:
    """A row of a number that must not be above a bound; one that is not finite fails."""
    return DeviceRow(
        name,
        f"{what} {value:.1e}",
        f"at most {bound:.1e}",
        OK if value <= bound else FAILED,
        {"value": value, "bound": bound, **figures},
    )


def guarded(name: str, look: Callable[[], Iterable[DeviceRow]]) -> Iterator[DeviceRow]:
    """The rows of a part of a check; one that says how it failed in place of an exception."""
    try:
        yield from look()
    except Exception as error:
        yield row_of_error(name, error)


def row_of_error(name: str, error: Exception) -> DeviceRow:
    """What went wrong, without anybody's folders in it. The traceback goes to stderr."""
    traceback.print_exception(error)
    text = without_places(one_line(str(error)))
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return DeviceRow(name, f"{kind}{text:.{MOST_LETTERS}}", verdict=FAILED)


def not_looked_at(name: str, why: str) -> DeviceRow:
    return DeviceRow(name, why, verdict=SKIPPED)


def cut_short(name: str, rig: Rig, needed_s: float) -> Iterator[DeviceRow]:
    """A row that says so, where what comes next would take longer than there is time for."""
    if rig.left_s < needed_s:
        yield not_looked_at(
            name, f"left out: it takes about {needed_s:.0f} s, {max(rig.left_s, 0):.0f} s are left"
        )


__all__ = [
    "FAILED", "MEASURED", "OK", "SKIPPED", "VERDICTS", "WARNING", "DeviceRow", "Figure", "Rig",
    "cut_short", "guarded", "held_to", "not_looked_at", "row_of_error",
]  # fmt: skip
