"""Damaged and hostile sources: one line that names the file and the sample, and nothing left."""

import gzip
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sid_ray.cli import main
from sid_ray.data.offline import FASHION_COUNT
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.data.windows import Window
from sid_ray.errors import UserError
from sid_ray.storage.store import Store
from tests.support.data_damage import corpus, tried
from tests.support.data_sources import (
    edm_members,
    edm_name,
    encoded,
    moments,
    npy,
    pixels,
    write_zip,
)
from tests.support.mutate import mutated


def refusal(source, destination, **options) -> str:
    """The one line of a preparation that fails, and leaves nothing."""
    options = {"workers": 0, "shuffle": False} | options  # the first is known
    with pytest.raises(UserError) as caught:
        prepare_data(PrepareOptions(str(source), str(destination), **options))
    assert not destination.exists()
    text = str(caught.value)
    assert "\n" not in text
    return text


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb() -> bytes:
    """A PNG of a few bytes that announces 60,000 x 60,000 pixels."""
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


GOOD = encoded(pixels(1)[0])
FLIPPED = GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:]


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GOOD[:-20], "it is cut"),
        (FLIPPED, "checksum of chunk b'IDAT'"),
        (b"GIF89a", "not an image"),
        (b"", "not an image"),
        (bomb(), "more than 67,108,864 pixels"),
        (encoded(pixels(1, 16)[0]), "16x16"),
        (encoded(pixels(1, 8)[0][:4]), "8x4 pixels"),
        (encoded(pixels(1)[0], "JPEG")[:200], "damaged image"),
    ],
    ids=["cut", "flipped", "gif", "empty", "bomb", "another size", "not square", "jpeg"],
)
def test_a_bad_picture_is_named(data, words, place, tmp_path):
    members = edm_members(pixels(8))
    members[edm_name(place)] = data
    text = refusal(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    if (place, words) == (0, "16x16"):  # then it is the second one that differs from the first
        words, place = "8x8 pixels, 16x16 are expected", 1
    assert words in text
    assert f"{edm_name(place)} (sample {place})" in text


def test_the_first_of_several_is_named_and_earlier_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr("sid_ray.data.layout.SHARD_ROWS", 2)
    members = edm_members(pixels(40))
    members[edm_name(21)] = members[edm_name(33)] = b"x"
    text = refusal(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert "(sample 21)" in text


def test_colours_in_a_grey_set(tmp_path):
    members = edm_members(pixels(3, channels=1)) | {edm_name(2): GOOD}
    assert "--rgb" in refusal(write_zip(tmp_path / "a.zip", members), tmp_path / "out")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (-1, "label -1 is not in 0 to 99999"),
        (1 << 40, "not in 0 to 99999"),
        (1.0, "1.0 is not a whole number"),
        (True, "True is not a whole number"),
        ("cat", "'cat' is not a whole number"),
        ([0.5, 0.5], "a list of 2 numbers"),
        (None, "has no label"),
    ],
)
def test_a_bad_label_is_named(label, words, tmp_path):
    source = write_zip(tmp_path / "a.zip", edm_members(pixels(4), [0, 1, label, 0]))
    text = refusal(source, tmp_path / "out")
    assert words in text and edm_name(2) in text and "dataset.json, entry 2" in text


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ([["a.png", 0]], "b.png (sample 1) is not listed"),
        ([["a.png", 0], ["b.png", 1], ["c.png", 2]], "lists 'c.png', which is not in"),
        ([["a.png", 0], ["a.png", 1]], "'a.png' is named twice"),
        ([["a.png"]], "entry 0: [file, class] is expected"),
        ({}, "labels are dict"),
    ],
)
def test_labels_that_do_not_match_the_files(listed, words, tmp_path):
    members = {"a.png": GOOD, "b.png": GOOD, "dataset.json": json.dumps({"labels": listed})}
    assert words in refusal(write_zip(tmp_path / "a.zip", members), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is expected"),
        ('{"labels": null}', "no labels"),
        ('{"labels": []}', "no labels"),
    ],
)
def test_bad_json(text, words, tmp_path):
    (tmp_path / "dataset.json").write_text(text)
    assert words in refusal(tmp_path / "dataset.json", tmp_path / "out")


def entry(name: str, **attributes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (entry("/etc/passwd"), "absolute path"),
        (entry("C:/x.png"), "absolute path"),
        (entry("a/../../x.png"), "leads elsewhere"),
        (entry("a\\x.png"), "leads elsewhere"),
        (entry("link.png", external_attr=0o120777 << 16), "is a link"),
        (entry("a.png", compress_type=zipfile.ZIP_LZMA), "packed by method 14"),
    ],
)
def test_hostile_members_are_refused(info, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("z.png", GOOD)
        archive.writestr(info, GOOD)
    assert words in refusal(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_lie(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.png", GOOD)
        archive.writestr("a.png", GOOD)
    assert "twice" in refusal(tmp_path / "twice.zip", tmp_path / "out")
    whole = write_zip(tmp_path / "whole.zip", edm_members(pixels(3)), 8).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-100])
    assert "not a whole zip" in refusal(tmp_path / "cut.zip", tmp_path / "out")
    locked = bytearray(whole)
    place = whole.index(b"PK\x01\x02") + 8
    locked[place] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    assert "is encrypted" in refusal(tmp_path / "locked.zip", tmp_path / "out")
    huge = bytearray(whole)
    place = whole.index(b"PK\x01\x02") + 24
    huge[place : place + 4] = struct.pack("<I", (1 << 32) - 2)
    (tmp_path / "huge.zip").write_bytes(huge)
    assert "announces 4,096 MiB" in refusal(tmp_path / "huge.zip", tmp_path / "out")
    swelling = bytearray(whole)
    swelling[place : place + 4] = struct.pack("<I", 5)
    (tmp_path / "swelling.zip").write_bytes(swelling)
    assert "not the 5 B" in refusal(tmp_path / "swelling.zip", tmp_path / "out")


class Boom:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy(np.array([Boom()], object)), "pickled"),
        (pickle.dumps(Boom()), "not a .npy"),
        (npy(np.zeros((4, 4, 4), np.int32)), "int32 numbers"),
        (npy(moments(1)[0][:3]), "shape [3, 4, 4]"),
        (npy(moments(1, (2, 8, 8))[0]), "shape [4, 8, 8], [4, 4, 4] is expected"),
        (npy(moments(1)[0])[:-4], "cut"),
        (npy(moments(1)[0] * np.nan), "NaN"),
        (npy(moments(1)[0] * 1e6), "beyond float16"),
        (npy(-moments(1)[0]), "second half is negative"),
    ],
)
def test_a_bad_latent_is_named(data, words, tmp_path, capfd):
    members = {f"{n}.npy": npy(x) for n, x in enumerate(moments(4))} | {"2.npy": data}
    text = refusal(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    assert words in text and "2.npy (sample 2)" in text
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a cat\nb\xff\n", "line 2: not UTF-8"),
        (b"x\n" + b"a" * 10_001, "line 2: 10,001 characters"),
        (b"\n \n", "no prompts"),
        (b"", "is empty"),
    ],
)
def test_bad_prompts(data, words, tmp_path):
    (tmp_path / "p.txt").write_bytes(data)
    assert words in refusal(tmp_path / "p.txt", tmp_path / "out")


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty folder" in refusal(tmp_path / "empty", tmp_path / "out")
    assert "does not exist" in refusal(tmp_path / "none", tmp_path / "out")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    assert "not a source that is known" in refusal(tmp_path / "a.pdf", tmp_path / "out")
    write_zip(tmp_path / "none.zip", {})
    assert "is an empty archive" in refusal(tmp_path / "none.zip", tmp_path / "out")
    write_zip(tmp_path / "a.zip", {"readme": "x"})
    assert "no samples" in refusal(tmp_path / "a.zip", tmp_path / "out")
    write_zip(tmp_path / "b.zip", {"a.png": GOOD, "b.npy": npy(moments(1)[0])})
    assert "--kind" in refusal(tmp_path / "b.zip", tmp_path / "out")
    text = refusal(tmp_path / "b.zip", tmp_path / "out", kind="prompts")
    assert "--kind" in text
    assert "holds images" in refusal("digits", tmp_path / "out", kind="latents")
    (tmp_path / "mixed" / "cats").mkdir(parents=True)
    (tmp_path / "mixed" / "cats" / "a.png").write_bytes(GOOD)
    (tmp_path / "mixed" / "b.png").write_bytes(GOOD)
    assert "b.png (sample 0) is in no class folder" in refusal(tmp_path / "mixed", tmp_path / "out")


def test_a_damaged_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setitem(FASHION_COUNT, "test", 3)
    source = f"fashion-mnist:{tmp_path}"
    assert "apt install" in refusal(source, tmp_path / "out", split="test")
    good = struct.pack(">4i", 2051, 3, 28, 28) + bytes(3 * 784)
    labels = struct.pack(">2i", 2049, 3) + bytes([1, 2, 3])
    label_file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    label_file.write_bytes(gzip.compress(labels))
    image_file = tmp_path / "t10k-images-idx3-ubyte.gz"
    for data, words in (
        (gzip.compress(good)[:-9], "damaged"),
        (gzip.compress(good[:-1]), "less than"),
        (gzip.compress(good + b"x"), "more than"),
        (gzip.compress(b"\0\0\x08\x01" + good[4:]), "begins with [2049, 3, 28, 28]"),
    ):
        image_file.write_bytes(data)
        assert words in refusal(source, tmp_path / "out", split="test")
    image_file.write_bytes(gzip.compress(good))
    label_file.write_bytes(gzip.compress(labels[:-1] + b"\x0b"))
    assert "label of sample 2 is 11" in refusal(source, tmp_path / "out", split="test")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("corpus"))


def test_a_place_that_no_file_has(sources, tmp_path):
    """Found by chance: the directory of a zip pointed before the file's start."""
    zipped = sources["zip"]
    for value in range(1, 256, 16):
        for place in (6716, zipped.data.index(b"PK\x01\x02") + 45):
            data = bytearray(zipped.data)
            data[place % len(data)] ^= value
            tried(zipped, bytes(data), tmp_path / f"{value}-{place}")


@pytest.mark.parametrize("start", [-1, 1 << 63, 1 << 80])
def test_a_window_anywhere(start, tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10)
    with pytest.raises(UserError, match="points to byte"):
        Window(Store.at(tmp_path), "a").read(start, 4)


NAMES = (
    "zip tar parquet metadata.jsonl metadata.csv metadata.parquet labels.csv dataset.json png jpg "
    "webp gif bmp tif avif ppm npy txt prompts npz set manifest"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_any_damage_is_refused_or_harmless(name, sources, tmp_path):
    """The same examples each time; benchmarks/fuzz_data.py makes new ones for as long as it may."""
    rng = random.Random(name)
    whole = [source.data for source in sources.values()]
    outcomes = Counter(
        tried(sources[name], mutated(sources[name].data, whole, rng), tmp_path / str(number))
        for number in range(12)
    )
    assert outcomes.total() == 12
    assert tried(sources[name], sources[name].data, tmp_path / "whole") == "prepared"


def test_a_bad_picture_leaves_nothing_in_s3_either(bucket, tmp_path):
    members = edm_members(pixels(8)) | {edm_name(5): GOOD[:-20]}
    options = PrepareOptions(
        str(write_zip(tmp_path / "a.zip", members)), f"{bucket}/out", workers=0
    )
    with pytest.raises(UserError, match="it is cut"):
        prepare_data(options)
    assert Store.at(bucket).files() == {}


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.binary(max_size=200))
def test_any_bytes_for_a_picture_are_refused_in_one_line(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    file = io.BytesIO()
    file.write(GOOD[:40] + data)
    source = write_zip(folder / "a.zip", {"a.png": GOOD, "b.png": file.getvalue()})
    assert "b.png (sample 1)" in refusal(source, folder / "out")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data"], "prepare or show is expected"),
        (["data", "prepair", "a", "b"], "prepare or show is expected"),
        (["data", "prepare", "a"], "DST"),
        (["data", "prepare", "a", "b", "--grey", "--rgb"], "contradict"),
        (["data", "prepare", "a", "b", "--resolution", "-1"], "--resolution -1"),
        (["data", "prepare", "/nowhere", "b"], "/nowhere does not exist"),
        (["data", "prepare", "digit", "b"], "Did you mean digits?"),
        (["data", "prepare", "ftp://x/y", "b"], "expected a path or s3://"),
        (["data", "prepare", "digits", "b", "--gpus", "1"], "--gpus is for --encode"),
        (["data", "show", "/nowhere"], "no prepared data set at /nowhere"),
    ],
)
def test_the_command_refuses_in_one_line(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(args)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.count("\n") == 1 and err.startswith("sid-ray: "), err
    assert words in err
    assert list(tmp_path.iterdir()) == []
