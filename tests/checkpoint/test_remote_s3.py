"""Checkpoints in a real S3 server: they get there, are found again, and are never given up on."""

import io
import threading
import time

import pytest
from rich.console import Console

from sid_ray.checkpoint.find import find_generator, newest_listed, newest_whole
from sid_ray.checkpoint.manifest import MANIFEST, SCHEMA, Manifest
from sid_ray.checkpoint.restore import Search
from sid_ray.checkpoint.writer import RunStorage, Spool
from sid_ray.commands.distill import show_next
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.evaluation.final_report import FinalReport
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunFolder, default_tracking_uri, runs_folder
from sid_ray.storage import errors
from sid_ray.storage.cache import DamagedFileError, fetch_checked, file_sha256
from sid_ray.storage.errors import DeniedStoreError, MissingFileError, UnreachableStoreError
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.store import Store
from sid_ray.training.assemble import Start, find_start
from sid_ray.weights.folder import ModelDescription, load_model
from sid_ray.weights.sources import ASSETS
from tests.checkpoint.test_writer import Bench, settle

TEACHER = ASSETS / "digits-teacher"

GENERATOR = "generator.rank0000.safetensors"


class S3Bench(Bench):
    """A rank whose storage is in S3; ``disk`` names its node's disk."""

    def __init__(self, folder, bucket):
        self.run = Store.at(f"{bucket}/runs/x")
        super().__init__(folder)

    def open(self):
        self.spool = Spool(self.local, self.run, 2, self.told.append, self.told.append)

    def on_another_node(self, disk="other"):
        self.spool.close()
        self.local = self.local.with_name(disk)

    def stored(self, *images_seen):
        names = []
        for seen in images_seen:
            names.append(self.save(seen))
            self.spool.flush()
        self.spool._uploader.submit(int).result()  # what was queued before it is done
        return names

    def said(self, text):
        return [line for line in self.told if text in str(line)]


@pytest.fixture
def bench(tmp_path, bucket):
    made = S3Bench(tmp_path, bucket)
    yield made
    made.spool.close()


@pytest.fixture
def fetched(monkeypatch):
    """Names of files that were fetched."""
    names, real = [], Store.fetch

    def fetch(self, name, target):
        names.append(name.rpartition("/")[2])
        return real(self, name, target)

    monkeypatch.setattr(Store, "fetch", fetch)
    return names


@pytest.fixture
def away(monkeypatch):
    """While set, the server does not answer."""
    cut = threading.Event()
    for method in ("put", "write", "read", "folders", "files", "fetch", "size", "remove", "create"):
        real = getattr(Store, method)

        def failing(self, *args, real=real, **options):
            if cut.is_set() and not self.is_local:
                raise UnreachableStoreError(f"{self}: no answer")
            return real(self, *args, **options)

        monkeypatch.setattr(Store, method, failing)
    monkeypatch.setattr(errors, "RETRY_S", (0.01,))
    monkeypatch.setattr("sid_ray.checkpoint.restore.STORAGE_PATIENCE_S", 0.05)
    return cut


def test_checkpoints_get_there_older_ones_go_and_another_node_goes_on(bench, fetched):
    names = bench.stored(64, 128, 192)
    assert RunStorage(bench.run).names() == [names[2], names[1]]
    assert newest_whole(bench.run) == (names[2], [])
    assert [path.name for path in bench.local.iterdir()] == names[2:]
    assert bench.newest() == (192, 192.0)
    assert fetched == [], "this node has them on its disk"
    bench.on_another_node()
    assert bench.newest() == (192, 192.0)
    once = sorted(fetched)
    assert once == sorted(set(once)) and GENERATOR in once
    assert bench.newest() == (192, 192.0)
    assert sorted(fetched) == once, "a restart on the same node fetches nothing again"


@pytest.mark.parametrize("harm", ["truncated", "flipped", "lost"])
def test_damage_in_storage_is_named_and_the_one_before_is_used(bench, harm):
    bench.stored(64)
    (name,) = bench.stored(128)
    file = f"{name}/{GENERATOR}"
    content = bytearray(bench.run.read(file))
    bench.run.remove(file)
    if harm == "truncated":
        bench.run.write(file, bytes(content[:-100]))
    elif harm == "flipped":
        content[-5] ^= 1
        bench.run.write(file, bytes(content))
    assert bench.newest() == (128, 128.0), "the copy on local disk is whole"
    bench.spool.flush()
    bench.on_another_node()
    assert bench.newest() == (64, 64.0)
    assert bench.said(f"damaged checkpoint skipped: {name}: {GENERATOR}")


def test_training_goes_on_while_storage_is_away_and_the_pause_is_told(bench, away):
    away.set()
    for seen in (64, 128):
        bench.save(seen)
        settle(bench.spool, lambda: bench.spool._writing is None)
    away.clear()
    bench.spool.flush()
    assert [name[11:23] for name in RunStorage(bench.run).names()] == [
        "000000000128",
        "000000000064",
    ]
    assert len(bench.said("storage cannot be written")) == 1
    (back,) = bench.said("storage is back after")
    assert back.endswith("s: checkpoint_000000000064_a1 is uploaded")


def test_a_run_whose_storage_is_away_goes_on_from_local_disk_or_waits(bench, away):
    bench.stored(64)
    away.set()
    assert bench.newest() == (64, 64.0)
    assert bench.said("storage cannot be read") and not bench.said("waiting for storage")
    bench.on_another_node()
    back = threading.Timer(0.5, away.clear)
    back.start()
    began = time.monotonic()
    assert bench.newest() == (64, 64.0), "never None: that would begin anew"
    assert time.monotonic() - began > 0.4
    assert len(bench.said("waiting for storage")) == 1
    assert bench.said("storage is back after")


def test_storage_that_goes_while_a_checkpoint_is_fetched_is_waited_for(bench, away, monkeypatch):
    bench.stored(64)
    bench.on_another_node()
    real, calls = Store.fetch, []

    def fetch(self, name, target):
        calls.append(name)
        if len(calls) == 2:
            away.set()
            threading.Timer(0.3, away.clear).start()
        return real(self, name, target)

    monkeypatch.setattr(Store, "fetch", fetch)
    assert bench.newest() == (64, 64.0)
    assert bench.said("no answer; trying again") and bench.said("storage is back")


def test_no_access_and_no_bucket_stop_the_workers_instead_of_beginning_anew(bench, monkeypatch):
    bench.on_another_node()
    bench.run = Store.at("s3://none-such/runs/x")
    with pytest.raises(MissingFileError, match="does not exist"):
        bench.newest()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    bench.run = Store.at("s3://some/runs/x")
    with pytest.raises(DeniedStoreError):
        bench.newest()


def test_a_checkpoint_that_is_being_removed_never_looks_whole(bench, monkeypatch):
    names = bench.stored(64, 128)
    real = Store.remove

    def once(self, name):
        real(self, name)
        raise UnreachableStoreError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", once)
        with pytest.raises(UnreachableStoreError):
            RunStorage(bench.run).keep(1)
    assert RunStorage(bench.run).names() == names[1:]
    assert f"{names[0]}/{GENERATOR}" in bench.run.files()
    RunStorage(bench.run).keep(1)
    assert bench.run.folders() == names[1:]


def test_newer_checkpoints_are_forgotten(bench):
    names = bench.stored(64, 128)
    bench.spool.forget_after(names[0])
    assert bench.newest() == (64, 64.0)
    assert RunStorage(bench.run).names() == names[:1]


def test_generators_are_found_by_run_and_checkpoint(bench, tmp_path, monkeypatch, fetched):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=f"no network at {bench.run}"):
        find_generator(str(bench.run))
    bench.run.write("run.json", "{}")
    with pytest.raises(UserError, match="a run needs one checkpoint"):
        find_generator(str(bench.run))
    names = bench.stored(64, 128)
    found = find_generator(str(bench.run))
    assert found.relative_to(tmp_path / "cache").parts[-2:] == (names[1], "generator_ema")
    load_model(found)
    assert sorted(fetched) == ["model.json", "model.safetensors"], "and nothing else"
    assert find_generator(f"{bench.run}/{names[1]}/") == found
    assert len(fetched) == 2
    weights = f"{names[1]}/generator_ema/model.safetensors"
    bench.run.write(weights, b"x" * bench.run.size(weights))
    (found / "model.safetensors").write_bytes(b"damaged too")
    assert find_generator(str(bench.run)).parent.name == names[0]
    with pytest.raises(UserError, match="does not match its checksum"):
        find_generator(str(bench.run / names[1]))
    bench.run.remove(weights)
    assert newest_listed(bench.run)[0] == names[0]
    bench.run.write(f"{names[0]}/{MANIFEST}", "{")
    assert newest_listed(bench.run) is None


def test_readers_of_one_node_fetch_a_file_once(bucket, tmp_path, fetched):
    store, target = Store.at(bucket), tmp_path / "node" / "file"
    store.write("file", b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    readers = [
        threading.Thread(target=fetch_checked, args=(store, "file", target, sha256, 3))
        for _ in range(4)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert fetched == ["file"] and target.read_bytes() == b"abc"
    with pytest.raises(DamagedFileError):
        fetch_checked(store, "file", tmp_path / "other", "0" * 64)
    assert not (tmp_path / "other").exists()


def test_a_store_that_cannot_be_used_is_one_line_before_anything_starts(
    bucket, tmp_path, monkeypatch
):
    RunFolder(Store.at(f"{bucket}/runs/x"), tmp_path).check()
    assert Store.at(bucket).files() == {}
    cases = {
        "AWS_SECRET_ACCESS_KEY": ("wrong", "access denied"),
        "AWS_ENDPOINT_URL": ("http://127.0.0.1:9", "no answer at http://127.0.0.1:9"),
    }
    for name, (value, words) in cases.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(UserError, match=words) as refusal:
                RunFolder(Store.at(f"{bucket}/runs/x"), tmp_path).check()
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="bucket none-such does not exist"):
        RunFolder(Store.at("s3://none-such/runs/x"), tmp_path).check()


def test_where_a_run_in_s3_keeps_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs_folder("s3://bucket/my/runs/") == "s3://bucket/my/runs"
    assert runs_folder("runs") == str(tmp_path / "runs")
    found = default_tracking_uri("s3://bucket/my/runs")
    assert found == f"sqlite:///{tmp_path}/runs/mlflow-bucket-my-runs.db"
    assert default_tracking_uri("/data/runs") == "sqlite:////data/runs/mlflow.db"


def test_a_generator_may_start_from_a_run_in_s3(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path))
    run, name, teacher = Store.at(f"{bucket}/runs/v1.5"), "checkpoint_000000000064_a1", TEACHER
    files = {f"generator_ema/{p.name}": p for p in teacher.glob("model.*")}
    for file, path in files.items():
        run.put(path, f"{name}/{file}")
    digests = {file: file_sha256(path) for file, path in files.items()}
    run.write(f"{name}/{MANIFEST}", Manifest(SCHEMA, 64, "{}", {}, digests).to_json())
    for place in (run, run / name, run / name / "generator_ema"):
        config = replace(recipe("digits-sid"), teacher__initial_generator=str(place))
        found = find_start(config).generator
        assert found.is_relative_to(tmp_path)
        assert file_sha256(found / "model.safetensors") == file_sha256(
            teacher / "model.safetensors"
        )


def test_the_next_commands_name_the_store(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = io.StringIO()
    config = replace(
        recipe("digits-sid"),
        output__folder="s3://bucket/runs",
        storage__endpoint_url="http://here:1",
    )
    run = RunFolder(Store.at("s3://bucket/runs/digits-sid"), tmp_path)
    start = Start(tmp_path, ModelDescription("edm", {}))
    show_next(Console(file=shown), config, start, run, FinalReport(), None)
    generate, resume, _ = shown.getvalue().splitlines()
    assert "AWS_ENDPOINT_URL=http://here:1 " in generate
    assert " generate s3://bucket/runs/digits-sid --seeds" in generate
    assert " --output.folder s3://bucket/runs " in resume
    assert " --storage.endpoint-url http://here:1 " in resume


def test_an_endpoint_holds_no_credentials():
    with pytest.raises(UserError, match="holds no credentials") as refusal:
        set_endpoint("http://me:secret@host:1")
    assert "secret" not in str(refusal.value)


def test_a_search_in_an_empty_run_finds_nothing(bench):
    assert Search(bench.spool).newest() is None
