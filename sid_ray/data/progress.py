"""What is done of a set that is being prepared, so that a run can go on behind an earlier one.

DST/.progress/plan.json          which plan the files belong to; gone when the set is whole
DST/.progress/part-00003.json    what a finished file holds
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from sid_ray.data.layout import Unit, Work
from sid_ray.data.manifest import MANIFEST, Shard
from sid_ray.errors import UserError
from sid_ray.storage.durable import remove_parts
from sid_ray.storage.store import Store

PROGRESS = ".progress"
PLAN = f"{PROGRESS}/plan.json"


class StoppedError(Exception):
    """The work could not go on, and not for its input: what is finished stays."""


@dataclass(frozen=True)
class FileReport:
    """A finished file. ``sums``, ``squares`` [C] and ``values`` (a channel) are for mean and std:
    whole numbers 0..255 of pixels, or latents.
    """

    plan: str
    index: int
    name: str
    size: int
    sha256: str
    row_groups: tuple[int, ...]
    sums: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    values: int = 0

    @property
    def shard(self) -> Shard:
        return Shard(self.name, self.size, self.sha256, self.row_groups)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FileReport:
        """Raises ValueError, TypeError."""
        values = json.loads(text)
        lists = {name: tuple(values[name]) for name in ("row_groups", "sums", "squares")}
        return cls(**values | lists)


def note_name(index: int) -> str:
    return f"{PROGRESS}/part-{index:05d}.json"


def check_wanted(work: Work) -> None:
    """Raises UserError where the driver has given up and removed what there was."""
    try:
        wanted = work.destination.read_text(PLAN) == plan_note(work)
    except FileNotFoundError:
        wanted = False
    if not wanted:
        raise UserError(f"{work.destination}: the preparation was stopped")


def plan_note(work: Work) -> str:
    return json.dumps({"plan": work.plan}) + "\n"


def finished(work: Work, units: list[Unit]) -> dict[int, FileReport]:
    """Reports of the units whose file is there, from an earlier try with the same plan."""
    sizes = work.destination.files()
    found = {}
    for unit in units:
        if unit.file_name not in sizes or note_name(unit.index) not in sizes:
            continue
        try:
            report = FileReport.from_json(work.destination.read_text(note_name(unit.index)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        same = (report.plan, report.index, report.row_groups) == (
            work.plan,
            unit.index,
            unit.row_groups,
        )
        if same and report.size == sizes[unit.file_name]:
            found[unit.index] = report
    return found


def is_own(name: str) -> bool:
    """Whether a file of a destination is one that preparing writes."""
    part = "/" not in name and name.startswith("part-") and name.endswith(".parquet")
    return part or name == MANIFEST or name.startswith(f"{PROGRESS}/")


def remove_own(destination: Store) -> None:
    """Removes what preparing writes, the plan first: workers that are late see that it is gone."""
    destination.remove(PLAN)
    for name in destination.files():
        if is_own(name):
            destination.remove(name)
    destination.remove_tree(PROGRESS)
    remove_leftovers(destination)


def remove_leftovers(destination: Store) -> None:
    """Files that a killed process did not finish; in S3 there are none."""
    if destination.is_local:
        remove_parts(destination.folder, "part-*.parquet")
