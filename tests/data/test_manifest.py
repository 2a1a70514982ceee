"""The manifest of a prepared data set."""

import dataclasses

import pytest

from sid_ray.data.manifest import (
    MANIFEST,
    DataManifest,
    Shard,
    TextEncoder,
    parse_data_manifest,
    read_manifest,
)
from sid_ray.errors import UserError
from sid_ray.storage.store import Store

WHOLE = DataManifest(
    kind="images",
    count=5,
    shape=(3, 8, 8),
    columns=("image", "label", "prompt", "text"),
    shards=(Shard("part-00000.parquet", 10, "a" * 64, (2, 2)), Shard("b", 5, "c" * 64, (1,))),
    label_dim=2,
    class_counts=(3, 2),
    class_names=("cat", "dog"),
    mean=(0.0, 0.5, 0.25),
    std=(1.0, 1.0, 1.0),
    text=TextEncoder("d" * 64, (77, 768)),
    source={"path": "x.zip"},
)


def test_it_comes_back_as_it_was():
    assert parse_data_manifest(WHOLE.to_json(), "x") == WHOLE
    assert WHOLE.row_groups == (2, 2, 1)


def test_the_fingerprint_is_of_the_samples_alone():
    moved = dataclasses.replace(WHOLE, source={"path": "elsewhere"}, class_names=())
    assert moved.fingerprint == WHOLE.fingerprint
    other = dataclasses.replace(WHOLE, shards=WHOLE.shards[::-1])
    assert other.fingerprint != WHOLE.fingerprint


def test_every_cut_and_every_change_is_found():
    text = WHOLE.to_json()
    for end in range(0, len(text) - 2, 7):
        with pytest.raises(UserError):
            parse_data_manifest(text[:end], "x")
    with pytest.raises(UserError, match="checksum"):
        parse_data_manifest(text.replace('"cat"', '"cow"'), "x")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kind": "films"}, "films"),
        ({"count": 6}, "5 rows in files for 6"),
        ({"shape": (8, 8)}, "shape"),
        ({"class_counts": (3, 1)}, "4 labels of 2 classes"),
        ({"count": 0, "shards": (), "class_counts": (0, 0)}, "no samples"),
        ({"schema": 9}, "schema 9"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, what):
    with pytest.raises(UserError, match=what):
        parse_data_manifest(dataclasses.replace(WHOLE, **change).to_json(), "x")


def test_a_missing_one_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="sid-ray data prepare"):
        read_manifest(Store.at(tmp_path))
    (tmp_path / MANIFEST).write_text(WHOLE.to_json())
    assert read_manifest(Store.at(tmp_path)) == WHOLE
