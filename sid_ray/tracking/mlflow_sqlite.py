"""MLflow's sqlite store without MLflow, which takes seconds to load: looked at, and put right.

MLflow keeps absolute addresses of artifacts in it (a relative one would be sought in the working
directory of whoever reads it). They are put right whenever a run or ``sid-ray ui`` opens a store
whose folder was moved or copied: artifacts lie beside the database, in ARTIFACTS.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from sid_ray.storage.places import database_of
from sid_ray.storage.schemes import scheme_of

ARTIFACTS = "mlartifacts"
PATIENCE_S = 5.0  # for a lock that another process holds
ADDRESSES = {  # MLflow's columns with addresses of artifacts
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
OLDER = "out-of-date database schema"  # as MLflow says it
NEWER = "Can't locate revision"  # as MLflow's migrations say it


@dataclass(frozen=True)
class Experiment:
    """What a store says of an experiment.

    Args:
        artifacts: the address that its runs' artifacts begin with.
    """

    number: str
    active: bool
    artifacts: str


def artifacts_beside(database: Path) -> str:
    return str(database.absolute().parent / ARTIFACTS)


def artifacts_of(uri: str, runs: str) -> str:
    """Where a new experiment keeps artifacts, but of a server, which decides that itself.

    Args:
        runs: the folder of all runs: where it is in S3, they are there too.
    """
    database = database_of(uri)
    if database is None or scheme_of(runs).takes_artifacts:
        return f"{runs}/{ARTIFACTS}"
    return artifacts_beside(database)


@contextlib.contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """A database that is there, in one transaction. Raises sqlite3.Error."""
    address = f"file:{quote(str(database.absolute()))}?mode=rw"
    connection = sqlite3.connect(address, timeout=PATIENCE_S, uri=True, isolation_level=None)
    with contextlib.closing(connection):
        yield connection


# Put right ----------------------------------------------------------------------------------------


def path_of(address: str) -> str:
    """The path of a local address, empty for another one."""
    parts = urlsplit(address)
    if parts.scheme == "file":
        return unquote(parts.path)
    return address if address.startswith("/") else ""


def was_moved(address: str, database: Path) -> bool:
    """Whether an experiment's artifacts were beside this database when it lay elsewhere.

    A folder that a person chose, which is there and has no such database beside it, is none.
    """
    path = Path(path_of(address))
    if path.name != ARTIFACTS or str(path) == artifacts_beside(database):
        return False
    origin = path.parent / database.name
    if is_there(origin) and origin.samefile(database):
        return False  # the same folder by another path
    return is_there(origin) or not is_there(path)


def is_there(path: Path) -> bool:
    """False also where this user may not look."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def right_address(address: str, database: Path) -> str:
    """Where an experiment's artifacts belong now."""
    return artifacts_beside(database) if was_moved(address, database) else address


def put_right(database: Path) -> str:
    """Points a moved or copied store at the artifacts beside it.

    Returns '' or a line for a person. Raises sqlite3.Error.
    """
    if not database.is_file() or not database.stat().st_size:
        return ""
    with opened(database) as connection:
        tables = tables_of(connection)
        if "experiments" not in tables:
            return ""
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        moved = [old for (old,) in found if old and was_moved(old, database)]
        if not moved:
            return ""
        new = artifacts_beside(database)
        connection.execute("BEGIN IMMEDIATE")
        for old in moved:
            for table, columns in ADDRESSES.items():
                for column in columns if table in tables else ():
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
        connection.execute("COMMIT")
    line = f"{database} was moved or copied: MLflow's artifacts are now in {new}"
    return line if is_there(Path(new)) else f"{line}; copy those of earlier runs there, from {old}"


# Looked at ----------------------------------------------------------------------------------------


def look_in_database(database: Path, experiment: str) -> Experiment | None:
    """What a run would find, None for an experiment that is not there yet.

    Raises sqlite3.Error and OSError for what the run would meet too.
    """
    place = database.absolute().parent
    check_writable(place)
    if not database.exists() or (database.is_file() and not database.stat().st_size):
        return None
    with opened(database) as connection:
        check_takes_changes(connection)
        tables = tables_of(connection)
        if "experiments" not in tables:
            return None
        check_schema(connection)
        rows = connection.execute(
            "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments "
            "WHERE name = ? ORDER BY lifecycle_stage",
            (experiment,),
        ).fetchall()
    if not rows:
        return None
    number, stage, artifacts = rows[0]
    return Experiment(str(number), stage == "active", right_address(artifacts or "", database))


def check_takes_changes(connection: sqlite3.Connection) -> None:
    """Changes a number that nobody reads, and takes it back. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {number + 1}")
    connection.execute("ROLLBACK")


def tables_of(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in rows}


def check_schema(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where MLflow's tables are not those of the MLflow here."""
    found = [number for (number,) in connection.execute("SELECT version_num FROM alembic_version")]
    known, head = revisions()
    if known and found and found[0] not in known:
        raise sqlite3.DatabaseError(f"{NEWER} {found[0]}")
    if known and found and found[0] != head:
        raise sqlite3.DatabaseError(f"{OLDER} (found {found[0]}, expected {head})")


def revisions() -> tuple[set[str], str]:
    """All schema revisions that the MLflow here knows, and the newest; none where unsure."""
    spec = find_spec("mlflow")
    if spec is None or not spec.submodule_search_locations:
        return set(), ""
    folder = Path(spec.submodule_search_locations[0], "store", "db_migrations", "versions")
    known, before = set(), set()
    for file in folder.glob("*.py"):
        told = dict(re.findall(r"(?m)^(revision|down_revision) = [\"'](\w+)", file.read_text()))
        known |= {told["revision"]} if "revision" in told else set()
        before |= {told["down_revision"]} if "down_revision" in told else set()
    heads = known - before
    return (known, heads.pop()) if len(heads) == 1 else (set(), "")


def check_writable(folder: Path) -> None:
    """Raises OSError where a folder, or the nearest that is there above it, takes no file."""
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
