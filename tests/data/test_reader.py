"""Reading ahead: the right samples for any workers, within memory, through trouble of storage."""

from __future__ import annotations

import dataclasses
import threading
import time
from functools import partial

import numpy as np
import pytest

from sid_ray.data.decode import gather
from sid_ray.data.manifest import MANIFEST, read_manifest
from sid_ray.data.order import Order
from sid_ray.data.reader import HORIZON, StreamReader
from sid_ray.data.row_groups import DamagedDataError, RowGroups
from sid_ray.groups import GroupPlan
from sid_ray.storage.store import Store
from tests.support.data_writer import layout, numbered_images, numbers_of, png, write_set
from tests.support.s3_server import s3_server
from tests.support.waiting import wait_for

COUNT, ROWS = 500, 20
COLUMNS = ("image", "label")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return numbered_images(COUNT)


@pytest.fixture
def store(tmp_path, images) -> Store:
    """500 images in row groups of 20, four a file; image i has label i % 10."""
    found = Store.at(tmp_path / "set")
    found.create()
    labels = np.arange(COUNT) % 10
    write_set(found, "images", layout(COUNT, ROWS, 4), 10, image=images, label=labels)
    return found


class Counting(RowGroups):
    """Counts reads and how many row groups are held."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked: list[int] = []

    def read(self, row_group, columns):
        self.asked.append(row_group)
        return super().read(row_group, columns)


def reader_of(
    store: Store, plan: GroupPlan, rank: int = 0, window: int = 2, **options
) -> StreamReader:
    manifest = read_manifest(store)
    told, closing = options.pop("tell", lambda text: None), threading.Event()
    rows = Counting(store, manifest, told, closing)
    order = Order(manifest.row_groups, plan.group_size, plan.num_groups, window, 0, 1)
    put = partial(gather, columns=COLUMNS, manifest=manifest, where=rows.where)
    found = StreamReader(
        rows, order, COLUMNS, lambda t, at: put(t, at), plan, rank, tell=told, **options
    )
    found.closing = closing
    return found


@pytest.fixture
def opened(store):
    """reader_of, closed at the end."""
    readers = []

    def opened(plan, rank=0, at=store, **options) -> StreamReader:
        readers.append(reader_of(at, plan, rank, **options))
        return readers[-1]

    yield opened
    for reader in readers:
        reader.closing.set()
        reader.close()
        assert not reader._thread.is_alive()


def stream(opened, plan: GroupPlan, begin: int, end: int) -> np.ndarray:
    """The samples' numbers at positions begin to end, as the ranks of a plan see them."""
    found = np.full(end - begin, -1)
    for rank in range(plan.world_size):
        reader = opened(plan, rank)
        for images_seen in range(begin, end, plan.batch_size):
            for step in plan.micro_steps(rank):
                inside = [
                    g * plan.group_size + np.arange(step.start, step.stop) for g in step.groups
                ]
                positions = images_seen + np.concatenate(inside)
                samples = reader.samples(images_seen, positions)
                numbers = numbers_of(samples.image)
                assert np.array_equal(samples.label, numbers % 10), "an image with its own label"
                found[positions - begin] = numbers
    return found


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 16), (2, 4), (3, 8), (4, 2)])
def test_every_set_of_workers_reads_the_same_stream(opened, images, world_size, micro_batch):
    """Also from the middle of an epoch on, and over its end."""
    one = stream(opened, GroupPlan(16, 4, 4, 1), 0, 1200)
    assert sorted(one[:COUNT]) == list(range(COUNT))
    found = stream(opened, GroupPlan(16, 4, micro_batch, world_size), 400, 1200)
    assert np.array_equal(found, one[400:])


def test_pixels_are_those_of_the_file(opened, images):
    reader = opened(GroupPlan(16, 4, 4, 1))
    samples = reader.samples(160, np.arange(160, 176))
    assert np.array_equal(samples.image, images[numbers_of(samples.image)])


def test_a_row_group_is_read_once_where_all_fits(opened):
    reader = opened(GroupPlan(16, 4, 4, 1))
    for images_seen in range(0, 1600, 16):
        reader.samples(images_seen, np.arange(images_seen, images_seen + 16))
    assert sorted(reader.row_groups.asked) == list(range(COUNT // ROWS))


def test_memory_is_bounded_and_little_is_read_twice(opened, store):
    """Room for 14 of 25 row groups, four lanes of two each: an epoch reads each about once."""
    probe = RowGroups(store, read_manifest(store))
    size = max(probe.read(i, COLUMNS).nbytes for i in range(25))
    told = []
    reader = opened(GroupPlan(16, 4, 4, 1), cache_bytes=14 * size, tell=told.append)
    for images_seen in range(0, 1504, 16):
        reader.samples(images_seen, np.arange(images_seen, images_seen + 16))
        with reader._changed:
            held = [f.result().nbytes for f in reader._held.values() if f.done()]
        assert sum(held) <= 14 * size
    epochs = 1504 / COUNT
    assert len(reader.row_groups.asked) <= 1.35 * epochs * 25
    assert told == []


def test_what_one_iteration_needs_is_read_whatever_the_bound(opened):
    told = []
    reader = opened(GroupPlan(16, 4, 4, 1), cache_bytes=1, tell=told.append)
    expected = stream(opened, GroupPlan(16, 4, 4, 1), 0, 160)
    for images_seen in range(0, 160, 16):
        samples = reader.samples(images_seen, np.arange(images_seen, images_seen + 16))
        assert np.array_equal(numbers_of(samples.image), expected[images_seen : images_seen + 16])
    assert len(told) == 1
    assert "resources.data_cache_gib" in told[0]


def test_nothing_is_read_beyond_the_end_of_the_run(opened):
    reader = opened(GroupPlan(4, 4, 4, 1), until=8, window=1)
    reader.samples(0, np.arange(4))
    reader.samples(4, np.arange(4, 8))
    time.sleep(0.05)
    assert len(set(reader.row_groups.asked)) <= 2
    assert HORIZON > 2
    assert reader.wait(8, 10), "but for what is asked for all the same"


def test_a_jump_begins_anew(opened):
    """A run that is rolled back asks for earlier samples again."""
    reader, plan = opened(GroupPlan(16, 4, 4, 1)), GroupPlan(16, 4, 4, 1)
    expected = stream(opened, plan, 0, 480)
    for images_seen in (0, 16, 32, 400, 416, 16, 32, 48):
        found = reader.samples(images_seen, np.arange(images_seen, images_seen + 16))
        assert np.array_equal(numbers_of(found.image), expected[images_seen : images_seen + 16])


def test_trouble_of_a_place_that_training_has_left_is_forgotten(opened):
    reader, left, entered = opened(GroupPlan(16, 4, 4, 1)), threading.Event(), threading.Event()
    put = reader.gather

    def gather_or_fail(tables, located):
        if not left.is_set():
            entered.set()
            left.wait(10)
            raise DamagedDataError("of the place before")
        return put(tables, located)

    reader.gather = gather_or_fail
    assert not reader.wait(0, 0.0)
    assert entered.wait(10)
    reader.go_to(320)
    left.set()
    assert reader.wait(320, 10)
    assert reader.wait(0, 10)


def test_other_ranks_positions_are_refused(opened):
    reader = opened(GroupPlan(16, 4, 4, 2), rank=0)
    with pytest.raises(ValueError, match="not this rank's"):
        reader.samples(0, np.arange(4, 8))


# Damage ---------------------------------------------------------------------------------------


def first_error(opened) -> str:
    reader = opened(GroupPlan(COUNT, 20, 20, 1))
    with pytest.raises(DamagedDataError) as raised:
        reader.samples(0, np.arange(20))
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_a_file_that_was_cut_is_named(opened, store):
    path = store.folder / "part-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert "part-00002.parquet has " in first_error(opened)


def test_a_file_that_is_missing_is_named(opened, store):
    (store.folder / "part-00001.parquet").unlink()
    assert "part-00001.parquet" in first_error(opened)


def test_bytes_that_were_changed_in_a_footer_are_named(opened, store):
    path = store.folder / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[-200:-20] = bytes(180)
    path.write_bytes(data)
    text = first_error(opened)
    assert "part-00001.parquet, row group " in text
    assert "prepare the set again" in text


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"no picture", "not a whole PNG image"),
        ("cut", "not a whole PNG image"),
        (png(numbered_images(1, (3, 9, 8))[0]), r"shape \[9, 8, 3\], expected \[8, 8, 3\]"),
        (png(numbered_images(1, (1, 8, 8))[0]), r"shape \[8, 8\]"),
    ],
    ids=["text", "cut", "size", "grey"],
)
def test_a_bad_picture_is_named_to_its_row(tmp_path, opened, images, bad, words):
    pictures = [png(image) for image in images]
    pictures[87] = pictures[87][:-40] if bad == "cut" else bad
    store = Store.at(tmp_path / "bad")
    store.create()
    write_set(store, "images", layout(COUNT, ROWS, 4), 10, image=pictures, label=[1] * COUNT)
    reader = opened(GroupPlan(COUNT, 20, 20, 1), at=store)
    place = "part-00001.parquet, row group 0, row 7: "
    with pytest.raises(DamagedDataError, match=f"{place}.*{words}"):
        reader.samples(0, np.arange(20))


def test_a_label_out_of_range_is_named_to_its_row(tmp_path, opened, images):
    labels = [1] * COUNT
    labels[131] = 10
    store = Store.at(tmp_path / "bad")
    store.create()
    write_set(store, "images", layout(COUNT, ROWS, 4), 10, image=images, label=labels)
    reader = opened(GroupPlan(COUNT, 20, 20, 1), at=store)
    place = "part-00001.parquet, row group 2, row 11: label 10 of 10 classes"
    with pytest.raises(DamagedDataError, match=place):
        reader.samples(0, np.arange(20))


def test_damage_stops_the_iteration_that_needs_it_and_none_before(tmp_path, opened, images):
    pictures = [png(image) for image in images]
    order = Order([n for shard in layout(COUNT, ROWS, 4) for n in shard], 4, 4, 2, 0, 1)
    row_group, row = order.locate(np.array([100]))
    pictures[int(row_group[0] * ROWS + row[0])] = b""
    store = Store.at(tmp_path / "bad")
    store.create()
    write_set(store, "images", layout(COUNT, ROWS, 4), 10, image=pictures, label=[1] * COUNT)
    reader = opened(GroupPlan(16, 4, 4, 1), at=store)
    for images_seen in range(0, 96, 16):
        reader.samples(images_seen, np.arange(images_seen, images_seen + 16))
    for _ in range(2):
        with pytest.raises(DamagedDataError):
            reader.wait(96)
    assert reader.wait(0), "what lies before is still there"


# S3 -------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_a_store_that_goes_and_comes_back_costs_time_alone(tmp_path, monkeypatch, images):
    """Two lines are told; the samples are those of a store that was always there."""
    with s3_server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = Store.at(f"{server.make_bucket('data')}/set")
        labels = np.arange(COUNT) % 10
        write_set(store, "images", layout(COUNT, ROWS, 4), 10, image=images, label=labels)
        plan, told = GroupPlan(16, 4, 4, 1), []
        size = RowGroups(store, read_manifest(store)).read(0, COLUMNS).nbytes
        reader = reader_of(store, plan, cache_bytes=9 * size, tell=told.append)
        found = []
        for images_seen in range(0, 480, 16):
            if images_seen == 64:
                server.kill()
            if images_seen >= 64 and server.process is None and not reader.wait(images_seen, 1.0):
                wait_for(lambda: told, "the line that nothing answers", 60)
                server.start()
            samples = reader.samples(images_seen, np.arange(images_seen, images_seen + 16))
            found.append(numbers_of(samples.image))
        reader.closing.set()
        reader.close()
    order = Order(read_rows(COUNT), 4, 4, 2, 0, 1)
    row_group, row = order.locate(np.arange(480))
    assert np.array_equal(np.concatenate(found), row_group * ROWS + row)
    told = [line for line in told if not line.startswith("the data cache takes")]  # once, or not
    assert len(told) == 2, told
    assert "no answer" in told[0]
    assert "storage is back" in told[1]


def read_rows(count: int) -> list[int]:
    return [rows for shard in layout(count, ROWS, 4) for rows in shard]


def test_closing_ends_the_waiting_for_a_store(bucket, monkeypatch, images):
    store = Store.at(f"{bucket}/set")
    manifest = write_set(store, "images", layout(100, 20), image=images[:100])
    assert dataclasses.replace(manifest, shards=()).count == 100
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    gone = Store.at(f"{bucket}/set")
    closing = threading.Event()
    rows = RowGroups(gone, manifest, lambda text: None, closing)
    plan = GroupPlan(16, 4, 4, 1)
    order = Order(manifest.row_groups, 4, 4)
    reader = StreamReader(rows, order, ("image",), lambda t, at: None, plan)
    assert not reader.wait(0, 0.2)
    began = time.monotonic()
    closing.set()
    reader.close()
    assert not reader._thread.is_alive()
    assert time.monotonic() - began < 8
    assert store.size(MANIFEST)
