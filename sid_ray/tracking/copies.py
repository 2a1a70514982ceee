"""A run whose folder was copied, moved or renamed since its last start.

run.json says under which name and where the run last started: the place as a digest, and the
number that the disk gave its folder, which a move keeps and a copy does not have.

| name  | place | folder's number | what it is                                    |
|-------|-------|-----------------|-----------------------------------------------|
| same  | same  |                 | the run                                       |
| same  | other | same            | the run, moved                                |
| same  | other | other           | a copy                                        |
| other |       |                 | a copy, or a run that got another name        |

A copy is a run of its own: with a key of its own it shares no checkpoint on nodes' disks with the
first, and it begins an MLflow run of its own, with all that was told before and a note of where it
came from. Only where a whole folder of runs was copied with the MLflow store in it, the copy of the
store has the copy's MLflow run, which then goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import uuid
from pathlib import Path

from sid_ray.checkpoint.manifest import MANIFEST
from sid_ray.config.distill_config import DistillConfig
from sid_ray.run_folder import IDENTITY, RunFolder, RunRecord, tracking_uri, write_record
from sid_ray.storage.cache import folder_of
from sid_ray.storage.places import database_of
from sid_ray.storage.store import Store
from sid_ray.tracking.journal import JOURNAL, carry_over

DIGITS = 12
LOCAL = ".local"  # in a run's folder: checkpoints that are not uploaded yet


def new_key() -> str:
    return uuid.uuid4().hex[:DIGITS]


def place_of(store: Store) -> str:
    """Where a run lies, as a digest: nothing beside the runs holds an absolute path."""
    return hashlib.sha256(store.url.encode()).hexdigest()[:DIGITS]


def inode_of(store: Store) -> int:
    """What the disk calls the folder; 0 in S3, and where there is none yet."""
    try:
        return store.folder.stat().st_ino if store.is_local else 0
    except OSError:
        return 0


def named(record: RunRecord) -> RunRecord:
    """A record of an earlier version has its name and place in its config alone."""
    if record.name or not record.config:
        return record
    config = DistillConfig.from_json(record.config, IDENTITY)
    place = place_of(Store(f"{config.output.folder}/{config.run_name}"))
    return dataclasses.replace(record, name=config.run_name, place=place)


def is_copy(record: RunRecord, store: Store) -> bool:
    """Whether another run than this one was recorded: see the table above.

    Args:
        record: as ``named`` returns it.
    """
    number = inode_of(store)
    same_folder = bool(number) and number == record.number
    if record.name != store.name:
        return not (same_folder and is_alias(record.name, store))
    return record.place != place_of(store) and not same_folder


def is_alias(name: str, store: Store) -> bool:
    """Whether the run's folder is there under its recorded name too: a link."""
    with contextlib.suppress(OSError):
        return store.is_local and store.folder.with_name(name).samefile(store.folder)
    return False


def settle_record(
    record: RunRecord, run: RunFolder, config: DistillConfig
) -> tuple[RunRecord, str]:
    """The record of a run that starts here and now, and '' or a line that says where it came from.

    For a copy, what was told to MLflow and what is on the run's own disk become the copy's; it is
    in run.json afterwards. Raises OSError.
    """
    record = named(record)
    if record.began_from:
        record = dataclasses.replace(record, began_from=beside(run.store, record.began_from))
    if not record.name or not is_copy(record, run.store):
        return here_and_now(record, run.store), ""
    goes_on = record.name == run.name and store_is_beside(config)
    fetch_journal(record, run)
    mine = own_record(record, run.store, run.local, goes_on)
    write_record(run.store, mine)
    old, new = (run.local / LOCAL / key for key in (record.key, mine.key))
    if old.is_dir() and not new.exists():
        old.rename(new)
    of = f"MLflow run {record.tracker_run_id}" if record.tracker_run_id else "no MLflow run"
    return mine, f"this is a copy of run {record.name!r} ({of}): a run of its own from now on"


def here_and_now(record: RunRecord, store: Store) -> RunRecord:
    """With where it starts; a run whose folder is reached by a link keeps its name."""
    name = record.name if record.name and is_alias(record.name, store) else store.name
    return dataclasses.replace(record, name=name, place=place_of(store), number=inode_of(store))


def own_record(record: RunRecord, store: Store, local: Path, goes_on: bool) -> RunRecord:
    """Of a copy; what its folder ``local`` has to tell MLflow becomes its own.

    Args:
        goes_on: whether the first one's MLflow run was copied too, and is this one's.
    """
    mine = dataclasses.replace(
        record,
        key=new_key(),
        name=store.name,
        place=place_of(store),
        number=inode_of(store),
        tracker_run_id=record.tracker_run_id if goes_on else None,
        copied_from=record.name,
        copied_from_run=record.tracker_run_id or "",
    )
    carry_over(local, mine.key, goes_on)
    return mine


def store_is_beside(config: DistillConfig) -> bool:
    """Whether the MLflow store lies in the folder of runs, so that it is copied with it."""
    database = database_of(tracking_uri(config))
    return database is not None and str(database.parent) == config.output.folder


def fetch_journal(record: RunRecord, run: RunFolder) -> None:
    """In S3, what the first run told is on the disk of its driver: it may be this one's too."""
    if run.store.is_local or (run.local / JOURNAL).exists():
        return
    origin = above(run.store) / record.name
    first = folder_of(origin, "runs") / JOURNAL
    if origin != run.store and first.is_file():
        run.local.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first, run.local / JOURNAL)


# Other runs' addresses ----------------------------------------------------------------------------


def beside(run: Store, address: str) -> str:
    """The address of another run's checkpoint, where a folder of runs was moved or copied since.

    It is sought beside this run first. Raises StoreError.
    """
    donor, _, name = address.rpartition("/")
    here = above(run) / donor.rpartition("/")[2]
    return f"{here}/{name}" if here.size(f"{name}/{MANIFEST}") is not None else address


def above(store: Store) -> Store:
    return Store(store.url.rpartition("/")[0])
