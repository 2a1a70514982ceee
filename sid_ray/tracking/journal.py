"""What a run has to say to MLflow, kept on the driver's disk until MLflow has it.

tracking.jsonl  a line that names the run, then one line a record, numbered from 1, only appended
tracking.json   the number of the last record that MLflow has confirmed, and in which MLflow run

A record is with the operating system before ``append`` returns, so it outlives a killed process
(not a machine that loses power within seconds). Where the disk is full, records are kept in memory
and written once there is space again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

JOURNAL, SENT = "tracking.jsonl", "tracking.json"
LOCK_S = 30.0  # a killed driver's tracker may live on for some seconds


@dataclass(frozen=True)
class Record:
    """One thing to tell MLflow; ``kind`` says which, ``values`` are JSON."""

    number: int
    kind: str
    values: Mapping[str, Any]

    @property
    def line(self) -> bytes:
        return (json.dumps([self.number, self.kind, self.values]) + "\n").encode()


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
        self._file: int | None = None
        self._end = 0
        self._unwritten: list[Record] = []
        self.trouble = ""  # why the newest records are in memory only
        self.last = self.sent = 0
        self.sent_to = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            self._has_trouble(error)

    def append(self, kind: str, values: Mapping[str, Any]) -> Record:
        """Adds a record with the next number."""
        with self._lock:
            self.last += 1
            record = Record(self.last, kind, dict(values))
            self._unwritten.append(record)
            self._write()
            return record

    def records(self, after: int) -> list[Record]:
        """All records with a number above ``after``, in order."""
        with self._lock:
            try:
                written = self._read() if self._file is not None else []
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
            new = self._note.with_suffix(".new")
            # Records that are sent once more are left out: a note that is lost costs only time.
            with contextlib.suppress(OSError):
                new.write_text(json.dumps({"run": self._key, "sent": number, "to": run_id}) + "\n")
                new.replace(self._note)

    def close(self) -> None:
        """Gives up the file; others may open it."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def _open(self) -> None:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(file)
            self._file = file
            if json_of(self._lines()[0]) != {"run": self._key}:
                self._begin()
            records = self._read()
        except BaseException:
            self._file = None
            os.close(file)
            raise
        os.ftruncate(file, self._end)  # what a killed process was writing
        with contextlib.suppress(OSError):
            note = json_of(self._note.read_bytes())
            if isinstance(note, dict) and note.get("run") == self._key:
                self.sent, self.sent_to = note["sent"], note["to"]
        self.last = max([self.sent, *(record.number for record in records[-1:])])

    def _begin(self) -> None:
        assert self._file is not None
        self._note.unlink(missing_ok=True)
        os.ftruncate(self._file, 0)
        write_all(self._file, (json.dumps({"run": self._key}) + "\n").encode(), 0)

    def _lines(self) -> list[bytes]:
        """Whole lines, and what stands behind the last newline."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        return os.pread(self._file, size, 0).split(b"\n")

    def _read(self) -> list[Record]:
        """The records on disk; a line that is damaged is left out."""
        lines = self._lines()
        self._end = sum(len(line) + 1 for line in lines[:-1])
        found = (json_of(line) for line in lines[1:-1])
        return [Record(*values) for values in found if isinstance(values, list)]

    def _write(self) -> None:
        if self._file is None:
            return
        data = b"".join(record.line for record in self._unwritten)
        try:
            write_all(self._file, data, self._end)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            self._has_trouble(error)
            return
        self._end += len(data)
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


def carry_over(folder: Path, key: str, keep_sent: bool) -> None:
    """Makes what a run's copied folder has to tell that of the copy, whose key is ``key``.

    Args:
        keep_sent: whether the copy has what MLflow had confirmed, in an MLflow run of its own.

    What would change the first run is left out: versions of a registered model, and other runs that
    were put below it. Raises OSError.
    """
    path, note = folder / JOURNAL, folder / SENT
    try:
        _, *lines, _ = path.read_bytes().split(b"\n")
    except (FileNotFoundError, ValueError):
        return
    kept = [json.dumps({"run": key}).encode()]
    for values in filter(None, map(json_of, lines)):
        if isinstance(values, list) and values[1] != "child":
            record = Record(*values)
            if record.kind == "model":
                record = replace(record, values={**record.values, "name": ""})
            kept.append(record.line.rstrip())
    sent = None
    with contextlib.suppress(OSError):
        sent = json_of(note.read_bytes())
    note.unlink(missing_ok=True)  # first: it must not speak of the new lines
    new = path.with_suffix(".new")
    new.write_bytes(b"\n".join(kept) + b"\n")
    new.replace(path)
    if keep_sent and isinstance(sent, dict):
        note.write_text(json.dumps(sent | {"run": key}) + "\n")


def lock(file: int, patience_s: float = LOCK_S) -> None:
    """Takes the file for this process. Raises OSError where another one keeps it."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise OSError(f"another process has had it for {patience_s:.0f} s") from None
            time.sleep(0.1)


def write_all(file: int, data: bytes, offset: int) -> None:
    """Raises OSError."""
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count


def json_of(text: bytes) -> Any:
    """What JSON says, None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
