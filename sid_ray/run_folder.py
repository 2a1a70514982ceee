"""A run's folder: who it is, who works on it, what it left.

runs/NAME/run.json      config and MLflow run of the run; written once it exists
runs/NAME/log.txt       everything that libraries print
runs/NAME/checkpoint_*  checkpoints
runs/NAME/best_*        the averaged generator with the best score
runs/NAME/evaluations.jsonl   a line a score: whose weights, of which images, against what
runs/NAME/pictures/     a contact sheet of the same seeds for each score
runs/NAME/model/        at the end: that generator with a model card
runs/NAME/summary.json, grid.png   the final report

runs/NAME/driver_*.json      who works on it, or did (lease.py)

It is on a disk or in S3 (``--output.folder s3://BUCKET/runs``). With S3 the driver has a folder of
its own beside it, CACHE/runs/KEY/NAME, for its log, its lock and what it then uploads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig, differences
from sid_ray.errors import UserError
from sid_ray.storage.cache import folder_of
from sid_ray.storage.durable import LOCK, lock
from sid_ray.storage.errors import StoreError
from sid_ray.storage.fence import IDENTITY, OPEN, Fence
from sid_ray.storage.lease import Lease, LeaseLostError, only_lease
from sid_ray.storage.places import absolute_uri, check_file, check_folder, expanded, in_words
from sid_ray.storage.schemes import is_path, scheme_of
from sid_ray.storage.store import Store, probe
from sid_ray.storage.waiting import TERM_S, Gone, boot_id

LOG, SUMMARY, GRID = "log.txt", "summary.json", "grid.png"
EVALUATIONS = "evaluations.jsonl"
PICTURES = "pictures"  # contact sheets while it was trained, on the driver's disk
SAMPLES = "samples"  # those of the same seeds: pictures/samples-IMAGES.png
WAITING = ".evaluations"  # weights that the evaluator has not scored yet
LOG_LIMIT = 32 << 20  # bytes of a log that is uploaded while the run works; a longer one at its end
LOG_S = 60.0  # between two uploads of the log


def runs_folder(folder: str) -> str:
    """The folder of all runs: s3://BUCKET/PREFIX, or an absolute path. Raises UserError.

    A Ray job's working directory is a temporary copy, deleted after the job: nothing may be kept
    there.
    """
    if not is_path(folder):
        return Store.at(folder).url
    path = expanded(folder).absolute()
    if is_job_copy(path):
        raise UserError(
            f"output.folder {folder!r} is in this job's working directory, a temporary copy that "
            "is deleted: give --output.folder s3://BUCKET/runs, or an absolute path that all nodes "
            "share"
        )
    return str(path)


def is_job_copy(path: Path) -> bool:
    """Whether a path is in a copy of a working directory that Ray made on this node."""
    return "runtime_resources" in path.parts


def own_folder() -> Path:
    """The folder ``runs`` on this machine's disk, for what is not in a run's S3: in a Ray job that
    of the home directory."""
    return (Path.home() / "sid_ray" if is_job_copy(Path.cwd()) else Path.cwd()) / "runs"


def default_tracking_uri(folder: str) -> str:
    """MLflow's sqlite of a folder of all runs: in it, or for S3 in the folder ``runs`` here.

    A database a folder in S3, because MLflow keeps an experiment's artifacts where its first run
    put them.
    """
    if is_path(folder):
        return f"sqlite:///{folder}/mlflow.db"
    name = re.sub(r"[^a-zA-Z0-9]+", "-", folder.removeprefix(scheme_of(folder).prefix)).strip("-")
    return f"sqlite:///{own_folder()}/mlflow-{name}.db"


def tracking_uri(config: DistillConfig) -> str:
    """The config's MLflow store, MLFLOW_TRACKING_URI, or the default of its folder of runs."""
    named = config.output.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return absolute_uri(named) if named else default_tracking_uri(config.output.folder)


@dataclass(frozen=True)
class RunFolder:
    """Where a run lies.

    Args:
        store: what all nodes see.
        local: the driver's own files; for a run on a disk the same folder.
        lease: of the driver that works on it, in that driver alone.
    """

    store: Store
    local: Path
    lease: Lease | None = None

    @classmethod
    def of(cls, config: DistillConfig) -> RunFolder:
        """The run of a config whose output.folder is ``runs_folder``'s."""
        store = Store.at(config.output.folder) / config.run_name
        return cls(store, store.folder if store.is_local else folder_of(store, "runs"))

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def fence(self) -> Fence:
        """What of the run counts for its driver."""
        return self.lease.fence if self.lease else OPEN

    @property
    def left_s(self) -> float:
        """For how long no other driver can have the run."""
        return self.lease.left_s if self.lease else float("inf")

    def check_lease(self) -> None:
        """Raises LeaseLostError where this driver must stop."""
        if self.lease:
            self.lease.check()

    def upload(self, *names: str) -> None:
        """Copies files of ``local`` to the store, where these are two.

        Raises StoreError, LeaseLostError where the run is not this driver's any more.
        """
        self.check_lease()
        if self.store.is_local:
            return
        for name in names:
            if (self.local / name).is_file():
                self.store.put(self.local / name, name)

    def check(self) -> None:
        """Tries whether it can be written. Raises UserError in one line."""
        what = "output.folder" if self.store.is_local else "the cache (SID_RAY_CACHE)"
        check_folder(self.local, what)
        check_file(self.local / LOG, "the log")
        if not self.store.is_local:
            with told_to_user():
                probe(self.store)


@contextmanager
def told_to_user() -> Iterator[None]:
    """A store that fails before anything was started is the user's to mend."""
    try:
        yield
    except StoreError as error:
        raise UserError(error.strerror or str(error)) from None
    except OSError as error:
        raise UserError(in_words(error)) from None


@dataclass(frozen=True)
class RunRecord:
    """What run.json holds: enough to know the run again.

    ``key`` is drawn when the run begins: a run of the same name that is begun anew, after this one
    was deleted, must not find this one's checkpoints on the nodes' disks.
    """

    config: str
    tracker_run_id: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    data: str = ""  # fingerprint of the data set, empty where it was not taken
    text_encoder: str = ""  # fingerprint of the text encoder, empty without one
    lora: str = ""  # fingerprint of the teacher's LoRA, empty without one
    began_from: str = ""  # address of another run's checkpoint, whose state this one began with
    name: str = ""  # at the last start; with the next two it tells a copy: copies.py
    place: str = ""
    number: int = 0
    copied_from: str = ""  # name of the run that this one is a copy of, and its MLflow run
    copied_from_run: str = ""
    lease: int = 0  # number of the lease under which it was written
    masks: int = 1  # dropout's, by their number in denoisers/dropout.py; older records have none


def read_record(run: Store) -> RunRecord | None:
    """The record of a run, None where there is no run yet.

    Raises UserError when it is damaged, StoreError.
    """
    try:
        return RunRecord(**json.loads(run.read_text(IDENTITY)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{run}/{IDENTITY} is damaged ({error}); restore it, or start a run of another name"
        ) from None


def write_record(run: Store, record: RunRecord) -> None:
    """Replaces run.json; a crash leaves the old or the new one. Raises StoreError."""
    run.write(IDENTITY, json.dumps(asdict(record), indent=2) + "\n")


def note_record(run: RunFolder, record: RunRecord) -> RunRecord:
    """Replaces run.json as the driver that has the run; what it holds now.

    Raises StoreError, LeaseLostError where the run is not this driver's any more.
    """
    run.check_lease()
    record = replace(record, lease=run.fence.number)
    write_record(run.store, record)
    return record


def check_same_data(record: RunRecord, fingerprint: str) -> None:
    """Raises UserError where a run is to go on with other data than it began with."""
    if record.data and fingerprint and record.data != fingerprint:
        raise UserError(
            "the data set is not the one that this run began with (fingerprint "
            f"{record.data[:12]}, now {fingerprint[:12]}): restore it, or choose another --run name"
        )


def check_same_lora(record: RunRecord, fingerprint: str) -> None:
    """Raises UserError where a run is to go on with another LoRA than it began with.

    ``record`` is that of an earlier start.
    """
    if record.config and record.lora != fingerprint:
        raise UserError(
            "the teacher's LoRA is not the one that this run began with (sha256 "
            f"{record.lora[:12] or 'none'}, now {fingerprint[:12] or 'none'}): name it by "
            "--teacher.lora, or choose another --run name"
        )


def check_same_text_encoder(record: RunRecord, fingerprint: str) -> None:
    """Raises UserError where a run is to go on with another text encoder than it began with."""
    if record.text_encoder and record.text_encoder != fingerprint:
        raise UserError(
            "the teacher's text encoder or tokenizer is not the one that this run began with "
            f"(fingerprint {record.text_encoder[:12]}, now {fingerprint[:12] or 'none'}): name it "
            "by --teacher.text-encoder, or choose another --run name"
        )


def check_same_masks(record: RunRecord, masks: int, drawn: bool) -> None:
    """Raises UserError where a run would go on with other dropout masks than it began with.

    ``masks`` are those of this version, ``drawn`` whether the run has any dropout.
    """
    if drawn and record.masks != masks:
        raise UserError(
            f"this run began with dropout masks {record.masks}, and this version of sid_ray draws "
            f"masks {masks}, other numbers: go on with the version that began it, or choose "
            "another --run name"
        )


def check_same_run(run: Store, config: DistillConfig) -> RunRecord | None:
    """The earlier record of this run, if any.

    Raises UserError with every difference when the folder holds a run of another identity,
    StoreError.
    """
    record = read_record(run)
    if record is None:
        return None
    earlier = DistillConfig.from_json(record.config, f"{run}/{IDENTITY}")
    changes = list(differences(earlier, config))
    if changes:
        raise UserError(
            f"run {run.name!r} exists with another config ({'; '.join(changes)}): "
            "repeat its settings to go on, or choose another --run name"
        )
    return record


@contextmanager
def only_driver(
    run: RunFolder, term_s: float = TERM_S, gone: Gone = lambda values: False
) -> Iterator[RunFolder]:
    """Holds the run's lock and lease; in S3 uploads the log now and then and at the end.

    Raises UserError when another process works on the run, or its store fails.
    """
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(only_process(run.local, run.name))
        with told_to_user():
            lease = stack.enter_context(only_lease(run.store, term_s, lock, gone))
        held = replace(run, lease=lease)
        if not run.store.is_local:
            stack.enter_context(kept_log(held))
        yield held


@contextmanager
def kept_log(run: RunFolder) -> Iterator[None]:
    """Uploads the log every minute where it has grown, and at the end."""
    ended = threading.Event()

    def keep() -> None:
        size = 0
        while not ended.wait(LOG_S):
            with contextlib.suppress(OSError, LeaseLostError):
                now = (run.local / LOG).stat().st_size
                if size != now <= LOG_LIMIT:
                    run.upload(LOG)
                    size = now

    threading.Thread(target=keep, daemon=True, name="log").start()
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(OSError, LeaseLostError):
            run.upload(LOG)


@contextmanager
def only_process(folder: Path, name: str) -> Iterator[str]:
    """Holds a folder's lock. Raises UserError when another process of this machine does.

    The kernel drops the lock with its process, so a killed driver leaves none behind. Yields what
    names the lock: the file, and this start of the machine.
    """
    with told_to_user():
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    with file:
        try:
            lock(file.fileno(), patience_s=0)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"run {name!r} is already being worked on by process {holder}; "
                "wait for it, stop it, or choose another --run name"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        status = os.fstat(file.fileno())
        yield f"{boot_id()} {status.st_dev} {status.st_ino}"
