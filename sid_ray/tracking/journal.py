"""What a run has to say to MLflow, kept on the driver's disk until MLflow has it.

tracking.jsonl  a line that names the run, then one line a record, numbered from 1, only appended
tracking.json   the number of the last record that MLflow has confirmed, and in which MLflow run

A record is with the operating system before ``append`` returns, so it outlives a killed process
(not a machine that loses power within seconds). Where the disk is full, records are kept in memory
and written once there is space again.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sid_ray.storage.durable import (
    LineFile,
    json_line,
    open_lines,
    read_values,
    replace_file,
    value_of_line,
)

JOURNAL, SENT = "tracking.jsonl", "tracking.json"
LOCK_S = 30.0  # a killed driver's tracker may live on for some seconds


@dataclass(frozen=True)
class JournalRecord:
    """One thing to tell MLflow; ``kind`` says which, ``values`` are JSON."""

    number: int
    kind: str
    values: Mapping[str, Any]

    @property
    def row(self) -> list[Any]:
        return [self.number, self.kind, self.values]


class Journal:
    """The records of one run, on disk. Never raises: what the disk cannot take stays in memory.

    Args:
        folder: of the run, on the driver's disk.
        key: of the run; records of a run with another key, which was deleted, are thrown away.
        tell: takes one line when the disk cannot take records, and one when it can again.
    """

    def __init__(self, folder: Path, key: str, tell: Callable[[str], None] = lambda text: None):
        self._path, self._note, self._key = folder / JOURNAL, folder / SENT, key
        self._tell, self._lock = tell, threading.Lock()
        self._file: LineFile | None = None
        self._unwritten: list[JournalRecord] = []
        self.trouble = ""  # why the newest records are in memory only
        self.last = self.sent = 0
        self.sent_to = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            self._has_trouble(error)

    def append(self, kind: str, values: Mapping[str, Any]) -> JournalRecord:
        """Adds a record with the next number."""
        with self._lock:
            self.last += 1
            record = JournalRecord(self.last, kind, dict(values))
            self._unwritten.append(record)
            self._write()
            return record

    def records(self, after: int) -> list[JournalRecord]:
        """All records with a number above ``after``, in order."""
        with self._lock:
            try:
                written = records_of(self._file.values()) if self._file is not None else []
            except OSError as error:
                self._has_trouble(error)
                written = []
            return [record for record in written + self._unwritten if record.number > after]

    def confirm(self, number: int, run_id: str) -> None:
        """MLflow's run ``run_id`` has all records up to ``number``."""
        with self._lock:
            self.sent, self.sent_to = number, run_id
            self._unwritten = [record for record in self._unwritten if record.number > number]
            if self._file is None:
                return
            # Records that are sent once more are left out: a note that is lost costs only time.
            with contextlib.suppress(OSError):
                note = {"run": self._key, "sent": number, "to": run_id}
                replace_file(self._note, json.dumps(note) + "\n", sync=False)

    def close(self) -> None:
        """Gives up the file; others may open it."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def _open(self) -> None:
        file = open_lines(self._path, LOCK_S)
        try:
            if file.values()[:1] != [{"run": self._key}]:
                self._note.unlink(missing_ok=True)
                file.begin({"run": self._key})
            file.append()  # what a killed process was writing goes
            records = records_of(file.values())
        except BaseException:
            file.close()
            raise
        self._file = file
        with contextlib.suppress(OSError):
            note = value_of_line(self._note.read_bytes())
            if isinstance(note, dict) and note.get("run") == self._key:
                self.sent, self.sent_to = note["sent"], note["to"]
        self.last = max([self.sent, *(record.number for record in records[-1:])])

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            self._file.append(*(record.row for record in self._unwritten))
        except OSError as error:
            self._has_trouble(error)
            return
        self._unwritten.clear()
        if self.trouble:
            self._tell(f"numbers for MLflow are kept on disk again: {self._path}")
            self.trouble = ""

    def _has_trouble(self, error: OSError) -> None:
        if not self.trouble:
            self._tell(
                f"warning: {self._path} cannot be written ({error.strerror or error}): numbers "
                "that MLflow does not have yet are only in memory"
            )
        self.trouble = str(error.strerror or error)


def records_of(values: Iterable[Any]) -> list[JournalRecord]:
    """The records among the values of a journal's lines; a line that is damaged is left out."""
    return [JournalRecord(*value) for value in values if isinstance(value, list)]


def carry_over(folder: Path, key: str, keep_sent: bool) -> None:
    """Makes what a run's copied folder has to tell that of the copy, whose key is ``key``.

    Args:
        keep_sent: whether the copy has what MLflow had confirmed, in an MLflow run of its own.

    What would change the first run is left out: versions of a registered model, and other runs that
    were put below it. Raises OSError.
    """
    path, note = folder / JOURNAL, folder / SENT
    if not (values := read_values(path)):
        return
    kept: list[Any] = [{"run": key}]
    for record in records_of(values[1:]):
        if record.kind == "model":
            record = replace(record, values={**record.values, "name": ""})
        if record.kind != "child":
            kept.append(record.row)
    sent = None
    with contextlib.suppress(OSError):
        sent = value_of_line(note.read_bytes())
    note.unlink(missing_ok=True)  # first: it must not speak of the new lines
    replace_file(path, b"".join(map(json_line, kept)))
    if keep_sent and isinstance(sent, dict):
        replace_file(note, json.dumps(sent | {"run": key}) + "\n")
