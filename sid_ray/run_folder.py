"""A run's folder: who it is, who works on it, what it left.

runs/NAME/run.json      config and MLflow run of the run; written once it exists
runs/NAME/log.txt       everything that libraries print
runs/NAME/checkpoint_*  checkpoints
runs/NAME/summary.json, grid.png   the final report
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sid_ray.config import DistillConfig, differences
from sid_ray.errors import UserError

IDENTITY, LOCK, LOG, SUMMARY, GRID = "run.json", ".lock", "log.txt", "summary.json", "grid.png"


@dataclass(frozen=True)
class RunRecord:
    """What run.json holds: enough to know the run again.

    ``key`` is drawn when the run begins: a run of the same name that is begun anew, after this one
    was deleted, must not find this one's checkpoints on the nodes' disks.
    """

    config: str
    tracker_run_id: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


def read_record(folder: Path) -> RunRecord | None:
    """The record of a run, None where there is no run yet. Raises UserError when it is damaged."""
    path = folder / IDENTITY
    try:
        return RunRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it, or start a run of another name"
        ) from None


def write_in_one_move(path: Path, text: str) -> None:
    """A reader finds the old file or the new one, whoever else writes the same."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def write_record(folder: Path, record: RunRecord) -> None:
    """Replaces run.json; a crash leaves the old or the new one."""
    write_in_one_move(folder / IDENTITY, json.dumps(asdict(record), indent=2) + "\n")


def check_same_run(folder: Path, config: DistillConfig) -> RunRecord | None:
    """The earlier record of this run, if any.

    Raises UserError with every difference when the folder holds a run of another identity.
    """
    record = read_record(folder)
    if record is None:
        return None
    earlier = DistillConfig.from_json(record.config, str(folder / IDENTITY))
    changes = list(differences(earlier, config))
    if changes:
        raise UserError(
            f"run {folder.name!r} exists with another config ({'; '.join(changes)}): "
            "repeat its settings to go on, or choose another --run name"
        )
    return record


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Holds the run's lock. Raises UserError when another process works on the run.

    The kernel drops the lock with its process, so a killed driver leaves none behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise UserError(
                f"run {folder.name!r} is already being worked on by process {holder}; "
                "wait for it, stop it, or choose another --run name"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
