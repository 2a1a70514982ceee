"""Files by name, the same on a disk and in a real S3 server."""

import pickle
import subprocess
import sys
import threading

import pytest

from sid_ray.errors import UserError
from sid_ray.storage.errors import (
    DeniedStoreError,
    FullStoreError,
    MissingFileError,
    UnreachableStoreError,
    retrying,
)
from sid_ray.storage.s3 import S3, set_endpoint
from sid_ray.storage.schemes import SCHEMES
from sid_ray.storage.store import Store
from tests.support import toy_store


@pytest.fixture(params=["disk", "s3", "toy"])
def store(request, tmp_path, monkeypatch):
    places = {"disk": str(tmp_path / "store"), "toy": "toy://some/prefix"}
    monkeypatch.setitem(SCHEMES, "toy://", toy_store.SCHEME)
    monkeypatch.setenv(toy_store.ROOT, str(tmp_path))
    if request.param == "s3":
        places["s3"] = request.getfixturevalue("bucket") + "/some/prefix"
    found = Store.at(places[request.param])
    found.create()
    return found


def test_files_come_back_as_they_were_written(store, tmp_path):
    (tmp_path / "source").write_bytes(b"abc" * 100)
    store.write("a.txt", "text")
    store.write("b/c.bin", b"\0\1")
    store.put(tmp_path / "source", "b/d/e")
    assert store.read_text("a.txt") == "text"
    assert store.files() == {"a.txt": 4, "b/c.bin": 2, "b/d/e": 300}
    assert store.folders() == ["b"]
    assert store.size("b/d/e") == 300
    assert store.size("b") is None and store.size("none") is None
    assert (store / "b").files() == {"c.bin": 2, "d/e": 300}
    assert store.fetch("b/d/e", tmp_path / "x" / "copy").read_bytes() == b"abc" * 100
    with store.open("b/d/e") as file:
        file.seek(3)
        assert file.read(3) == b"abc"


def test_a_file_is_replaced_and_removed(store):
    store.write("a", "old")
    store.write("a", "new")
    assert store.read("a") == b"new"
    store.remove("a")
    store.remove("a")
    assert store.files() == {}
    with pytest.raises(FileNotFoundError):
        store.read("a")


def test_a_tree_is_removed_and_nothing_beside_it(store):
    for name in ("a/1", "a/b/2", "ab/3"):
        store.write(name, name)
    store.remove_tree("a")
    store.remove_tree("none")
    assert store.files() == {"ab/3": 4}


def test_a_write_that_fails_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.writing("a") as file:
        file.write(b"x" * 100)
        raise ZeroDivisionError
    assert store.files() == {}
    assert store.size("a") is None


def test_a_file_is_changed_by_many_at_once(store):
    """Where writes are not conditional, by one after the other."""

    def count_up(times):
        for _ in range(times):
            store.change("number", lambda data: str(int(data or b"0") + 1).encode())

    threads = 4 if store.scheme is not toy_store.SCHEME else 1
    many = [threading.Thread(target=count_up, args=(8,)) for _ in range(threads)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    assert store.read_text("number") == str(8 * threads)
    store.change("number", bytes)
    assert store.files() == {"number": len(str(8 * threads))}, "and nothing is left beside it"


def test_a_folder_that_is_not_there_is_no_empty_one(store):
    store.look()
    with pytest.raises(FileNotFoundError):
        (Store.at("s3://none-such") if store.scheme.prefix == "s3://" else store / "none").look()


def test_a_large_file_in_parts(store, tmp_path):
    data = bytes(range(256)) * (90 << 10)  # 22.5 MiB: several parts of an upload
    (tmp_path / "large").write_bytes(data)
    store.put(tmp_path / "large", "large")
    assert store.read("large") == data


def test_a_store_travels_to_another_process(store):
    store.write("a", "text")
    found = pickle.loads(pickle.dumps(store))
    assert found == store and found.read_text("a") == "text"


def test_a_missing_folder_is_empty_and_not_made(tmp_path):
    store = Store.at(tmp_path / "none")
    assert store.files() == {} and store.folders() == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["s3://", "s3://bucket/../x", "gs://bucket/x", "s3://a//b"])
def test_another_kind_of_address_is_named(text):
    with pytest.raises(UserError, match="expected"):
        Store.at(text)


def test_a_missing_bucket_is_not_made(bucket):
    with pytest.raises(MissingFileError, match="bucket none-such does not exist at http"):
        Store.at("s3://none-such/x").create()


def test_wrong_credentials_are_one_line(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = Store.at(bucket)
    for action in (
        store.create,
        store.files,
        lambda: store.write("a", "b"),
        lambda: store.read("a"),
    ):
        with pytest.raises(DeniedStoreError, match="AWS_SECRET_ACCESS_KEY") as caught:
            action()
        assert "\n" not in str(caught.value) and "wrong" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableStoreError, match=r"no answer at http://127\.0"):
        Store.at(bucket).read("a")


def test_no_space_is_told_apart():
    error = OSError("AWS Error UNKNOWN (HTTP status 507) during PutObject operation: Storage full")
    assert isinstance(S3().error("s3://b/x", error), FullStoreError)
    error = OSError("AWS Error ACCESS_DENIED during PutObject operation: (Request ID: 18EA507F)")
    assert isinstance(S3().error("s3://b/x", error), DeniedStoreError)


def test_an_endpoint_must_be_one(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "before")
    with pytest.raises(UserError, match="http://HOST:PORT"):
        set_endpoint("127.0.0.1:8333")


def test_waiting_for_a_store_is_told_once():
    told, left = [], [3]

    def action():
        left[0] -= 1
        if left[0]:
            raise UnreachableStoreError("no answer")
        return "done"

    assert retrying(action, told.append) == "done"
    assert len(told) == 2 and "trying again" in told[0] and "back" in told[1]


def test_waiting_ends():
    def action():
        raise UnreachableStoreError("no answer")

    closing = threading.Event()
    closing.set()
    for options in ({"give_up_s": 0.0}, {"closing": closing}):
        with pytest.raises(UnreachableStoreError):
            retrying(action, **options)


def test_a_killed_upload_leaves_no_object(bucket):
    code = (
        "import os, sys; from sid_ray.storage.store import Store\n"
        "with Store.at(sys.argv[1]).writing('a') as file:\n"
        "    file.write(bytes(20 << 20)); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bucket], check=False)
    assert done.returncode == -9
    assert Store.at(bucket).size("a") is None
