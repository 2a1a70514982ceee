"""Which checkpoints of a run count, where a driver that lost the run may still have written some.

    driver_000007.json                            the lease of the run's seventh driver (lease.py)
    checkpoint_000000012800_000007-1f3a2b         a checkpoint that its workers wrote

The numbers only grow. A driver that takes a lease lists what is whole then, its *base*. From then
on a checkpoint counts when it is in the base of the newest lease or has that lease's number. What
an earlier driver brings to storage later does not count, and is removed. Checkpoints from before
leases had numbers count as number 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sid_ray.storage.store import Store

PREFIX, MANIFEST = "checkpoint_", "manifest.json"
BEST, SCORE = "best_", "score.json"
SEALS = {PREFIX: MANIFEST, BEST: SCORE}  # what lies in a run, and the file that makes it whole
IDENTITY = "run.json"
OLD_LEASE = "driver.json"  # of versions in which leases had no numbers
LEASE = re.compile(r"driver_(\d+)\.json")
TRIES = 5


@dataclass(frozen=True)
class Fence:
    """What the holder of a lease may take up and remove.

    Args:
        number: of the lease; 0 where nobody has one.
        base: names of what was whole in storage when it was taken; None for all that is there.
        heirs: numbers of the leases whose checkpoints may be on local disks alone. They are taken
            up as long as this lease has no checkpoint of its own, and get its number then.
    """

    number: int = 0
    base: frozenset[str] | None = None
    heirs: frozenset[int] = frozenset()

    def accepts(self, name: str, number: int | None = None) -> bool:
        """Whether something in storage counts. ``number``: where its name does not hold it."""
        found = number_of(name) if number is None else number
        return self.base is None or name in self.base or found == self.number

    def may_adopt(self, name: str) -> bool:
        """Whether a checkpoint on local disks may be taken up where this lease has none."""
        return number_of(name) in self.heirs

    def may_remove(self, name: str) -> bool:
        """Never what a newer driver has written."""
        return number_of(name) <= self.number

    def own(self, name: str) -> str:
        """A checkpoint's name under this lease."""
        images_seen, attempt = name.removeprefix(PREFIX).split("_", 1)
        return f"{PREFIX}{images_seen}_{self.attempt(attempt.rpartition('-')[2])}"

    def attempt(self, drawn: str) -> str:
        """The last part of a checkpoint's name."""
        return f"{self.number:06d}-{drawn}" if self.number else drawn


OPEN = Fence()  # nobody's: all that is there counts


def number_of(name: str) -> int:
    """The number of the lease under which a checkpoint was written; 0 where it has none."""
    number, dash, _ = name.rpartition("_")[2].partition("-")
    return int(number) if dash and number.isdecimal() else 0


def lease_name(number: int) -> str:
    return f"driver_{number:06d}.json" if number else OLD_LEASE


def lease_numbers(names: Iterable[str]) -> list[int]:
    """Numbers of the leases among the files of a run's folder, newest first."""
    found = {int(match[1]) for name in names if (match := LEASE.fullmatch(name))}
    return sorted(found | ({0} if OLD_LEASE in names else set()), reverse=True)


def newest_number(run: Store) -> int:
    """Of the newest lease, 0 for none. Raises StoreError."""
    return max(lease_numbers(run.times()), default=0)


def known_number(run: Store) -> int:
    """The largest that anything but leases holds: somebody may have removed these.

    Raises StoreError.
    """
    found = [0]
    found += [number_of(name) for name in run.folders() if name.startswith(PREFIX)]
    with suppress(FileNotFoundError, ValueError):
        found.append(lease_of(json.loads(run.read_text(IDENTITY))))
    return max(found)


def read_lease(run: Store, number: int) -> dict[str, Any]:
    """What a lease's file holds, empty for a damaged one. Raises FileNotFoundError, StoreError."""
    try:
        found = json.loads(run.read_text(lease_name(number)))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_fence(run: Store) -> Fence:
    """The fence of the newest lease whose base is known. Raises StoreError."""
    for _ in range(TRIES):
        try:
            for number in lease_numbers(run.times()):
                values = read_lease(run, number)
                if isinstance(values.get("base"), list):
                    return Fence(number, frozenset(values["base"]), frozenset(values["heirs"]))
            return OPEN
        except FileNotFoundError:  # a newer lease has taken its place
            continue
    return OPEN


def whole_in(run: Store) -> list[str]:
    """Names of the checkpoints and best weights that are whole in storage. Raises StoreError."""
    return [
        name
        for name in run.folders()
        for prefix, seal in SEALS.items()
        if name.startswith(prefix) and run.size(f"{name}/{seal}") is not None
    ]


def lease_of(result: Any) -> int:
    """The number in a record that a driver wrote; 0 for none."""
    found = result.get("lease", 0) if isinstance(result, dict) else 0
    return found if isinstance(found, int) else 0


def next_fence(run: Store, number: int) -> Fence:
    """The fence of a lease that was just taken: what is whole now. Raises StoreError."""
    before = read_fence(run)
    base = set()
    for name in whole_in(run):
        of_record = None
        if name.startswith(BEST):
            try:
                of_record = lease_of(json.loads(run.read_text(f"{name}/{SCORE}")))
            except (ValueError, FileNotFoundError):
                continue
        if before.accepts(name, of_record):
            base.add(name)
    heirs = {before.number}
    if not any(name.startswith(PREFIX) and number_of(name) == before.number for name in base):
        heirs |= before.heirs  # it has left nothing of its own: what it could take up still counts
    return Fence(number, frozenset(base), frozenset(heirs))
