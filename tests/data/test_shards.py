"""Tar shards as webdataset writes them, and Parquet with pictures, as sources."""

import io
import json
import pickle
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sid_ray.data.ingest import open_samples
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.errors import UserError
from sid_ray.storage.store import Store
from tests.support.data_damage import parquet, tar
from tests.support.data_sources import encoded, pixels

PNGS = [encoded(image) for image in pixels(8)]


def samples(source, **options):
    return open_samples(PrepareOptions(str(source), "x", shuffle=False, **options))


def refusal(source, **options) -> str:
    with pytest.raises(UserError) as caught:
        samples(source, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def prepared(source, out, **options) -> dict[str, list]:
    options = {"workers": 0, "shuffle": False} | options
    manifest = prepare_data(PrepareOptions(str(source), str(out), **options)).manifest
    store = Store.at(out)
    tables = [pq.read_table(pa.BufferReader(store.read(s.name))) for s in manifest.shards]
    return pa.concat_tables(tables).to_pydict()


def shard(path, numbers, **beside):
    """key.png and, for each of ``beside`` by its suffix, a text of the number."""
    members = {}
    for number in numbers:
        members[f"{number:06d}.png"] = PNGS[number]
        for suffix, text in beside.items():
            members[f"{number:06d}.{suffix}"] = text(number).encode()
    return tar(path, members)


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_shards_with_captions_and_classes(where, tmp_path, request):
    folder = tmp_path / "shards"
    folder.mkdir()
    said = {"txt": lambda n: f"caption {n}", "cls": lambda n: str(n % 3)}
    shard(folder / "a-000000.tar", range(4), **said)
    shard(folder / "a-000001.tar", range(4, 8), **said)
    (folder / "a-000000.parquet").write_bytes(b"what img2dataset keeps beside a shard")
    source = str(folder)
    if where == "s3":
        source = request.getfixturevalue("bucket")
        for path in folder.glob("*.tar"):
            Store.at(source).put(path, path.name)
    found = prepared(source, tmp_path / "out")
    assert found["image"] == PNGS
    assert found["prompt"] == [f"caption {n}" for n in range(8)]
    assert found["label"] == [n % 3 for n in range(8)]
    assert found["name"][0] == "a-000000.tar/000000.png"


def test_one_archive_of_class_folders(tmp_path):
    names = ["./dog/a.png", "./cat/b.png", "./cat/._b.png"]
    found = samples(tar(tmp_path / "a.tar", dict.fromkeys(names, PNGS[0])))
    assert (found.class_names, found.labels) == (("cat", "dog"), [0, 1])
    assert pickle.loads(pickle.dumps(found)).read(1) == PNGS[0]  # as Ray's workers get it
    assert found.account["left_out"][0]["why"] == "hidden or of a system"


def test_records_of_shards_give_what_is_not_said_otherwise(tmp_path):
    record = {"json": lambda n: json.dumps({"caption": f"c{n}", "label": "ab"[n % 2], "url": "x"})}
    found = samples(shard(tmp_path / "a.tar", range(4), **record))
    assert found.prompts == ["c0", "c1", "c2", "c3"] and found.class_names == ("a", "b")
    both = samples(shard(tmp_path / "b.tar", range(2), txt=lambda n: "text", **record))
    assert both.prompts == ["text", "text"]


def test_splits_of_shards(tmp_path):
    for split in ("train", "val"):
        shard(tmp_path / f"set-{split}-000000.tar", range(2))
    assert "is split: train (2), val (2)" in refusal(tmp_path)
    assert samples(tmp_path, split="val").count == 2
    assert samples(tmp_path, split="all").count == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data, end: data[:700], "goes past the archive's end"),
        (lambda data, end: data[: end - 300], "goes past the archive's end"),
        (lambda data, end: data[:end], "cut or damaged at byte"),
        (lambda data, end: data[:1024] + b"\xff" * 512 + data[1536:], "damaged at byte"),
        (lambda data, end: data + data, "goes on behind its end"),
        (lambda data, end: b"x" * 2000, "not a whole tar archive"),
        (lambda data, end: b"\x1f\x8b" + data, "packed by gzip"),
        (lambda data, end: b"", "is empty"),
    ],
)
def test_archives_that_are_not_whole(change, words, tmp_path):
    whole = shard(tmp_path / "a.tar", range(3)).read_bytes()
    assert samples(tmp_path / "a.tar").count == 3
    end = -(-len(whole.rstrip(b"\0")) // 512) * 512
    (tmp_path / "b.tar").write_bytes(change(whole, end))
    assert words in refusal(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [("/etc/a.png", tarfile.REGTYPE, "absolute path"), ("../a.png", tarfile.REGTYPE, "elsewhere"),
     ("a.png", tarfile.SYMTYPE, "is a link"), ("a.png", tarfile.LNKTYPE, "is a link"),
     ("a.png", tarfile.CHRTYPE, "no plain file"), ("b.png", tarfile.REGTYPE, "twice")],
)  # fmt: skip
def test_hostile_members(name, kind, words, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for each, of in (("b.png", tarfile.REGTYPE), (name, kind)):
            info = tarfile.TarInfo(each)
            info.type, info.linkname = of, "b.png"
            info.size = len(PNGS[0]) if of == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(PNGS[0]))
    assert words in refusal(tmp_path / "a.tar")


def test_two_pictures_of_one_key(tmp_path):
    members = {"0.png": PNGS[0], "0.seg.png": PNGS[1]}
    assert "of one key" in refusal(tar(tmp_path / "a.tar", members))


# Parquet ------------------------------------------------------------------------------------------


def named(table, names):
    features = {"label": {"_type": "ClassLabel", "names": names}}
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def test_pictures_as_hugging_face_stores_them(tmp_path):
    images = [{"bytes": png, "path": None} for png in PNGS]
    table = pa.table(
        {"image": images, "label": [1, 0] * 4, "text": list("abcdefgh"), "id": range(8)}
    )
    folder = tmp_path / "data"
    folder.mkdir()
    table = named(table, ["cat", "dog", "bird"])
    pq.write_table(table.slice(0, 5), folder / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table.slice(5), folder / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(0, 2), folder / "test-00000-of-00001.parquet")
    assert "is split: test" in refusal(tmp_path)
    found = prepared(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", split="train")
    assert found["image"] == PNGS
    assert found["label"] == [1, 0] * 4 and found["prompt"] == list("abcdefgh")
    about = samples(tmp_path, split="train")
    assert about.class_names == ("cat", "dog", "bird") and about.label_dim == 3
    assert [(o["why"], o["first"]) for o in about.account["left_out"]] == [
        ("in other splits", "data/test-00000-of-00001.parquet"), ("column", "id"),
    ]  # fmt: skip
    mixed = prepared(
        tmp_path, tmp_path.parent / f"{tmp_path.name}-mixed", split="all", shuffle=True
    )
    assert sorted(mixed["image"]) == sorted(PNGS + PNGS[:2])


def test_pictures_in_a_column_of_bytes_and_labels_by_name(tmp_path):
    table = pa.table({"img": PNGS, "label": ["dog", "cat"] * 4, "title": list("abcdefgh")})
    pq.write_table(table, tmp_path / "a.parquet")
    found = samples(tmp_path / "a.parquet", caption_column="title")
    assert found.class_names == ("cat", "dog") and found.prompts == list("abcdefgh")
    assert found.read(3) == PNGS[3]
    again = pickle.loads(pickle.dumps(found))  # as Ray's workers get it
    assert again.read(7) == PNGS[7]


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"label": [0, None, 1, 1]}, "a.parquet/1: no label"),
     ({"label": [-1, 0, 0, 0]}, "label -1 is not in 0"),
     ({"text": ["a", None, "c", "d"]}, "a.parquet/1: expected a text"),
     ({"label": ["cat", "1", "2", "3"]}, "'cat' is not a whole number")],
)  # fmt: skip
def test_rows_that_are_wrong(columns, words, tmp_path):
    assert words in refusal(parquet(tmp_path / "a.parquet", **columns))


def test_a_row_without_bytes_is_named_and_no_path_is_followed(tmp_path):
    images = [{"bytes": PNGS[0], "path": "a"}, {"bytes": None, "path": "/etc/passwd"}]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet/1 \(sample 1\): no bytes in column image"):
        samples(tmp_path / "a.parquet").read(1)


def test_files_that_do_not_fit_together(tmp_path):
    folder = tmp_path / "n"
    folder.mkdir()
    parquet(folder / "a.parquet", text=["x"] * 4)
    parquet(folder / "b.parquet")
    assert "b.parquet: other columns or classes than a.parquet" in refusal(folder)
    pq.write_table(pa.table({"caption": ["x"]}), folder / "b.parquet")
    assert "b.parquet: no column of pictures, though other files have one" in refusal(folder)
    pq.write_table(pa.table({"caption": ["x"]}), folder / "a.parquet")
    assert "it holds 2 .parquet (first a.parquet)" in refusal(folder)
    parquet(folder / "a.parquet", text=["x"] * 4)
    (folder / "b.parquet").write_bytes(b"PAR1" + b"x" * 40 + b"PAR1")
    assert "not a whole Parquet file" in refusal(folder)
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), tmp_path / "two.parquet")
    assert "call that of the pictures image" in refusal(tmp_path / "two.parquet")


def test_a_prepared_set_is_no_source(tmp_path):
    prepared(parquet(tmp_path / "a.parquet"), tmp_path / "out")
    assert "is a prepared set already" in refusal(tmp_path / "out")
