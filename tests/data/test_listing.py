"""A source is understood as a whole: nothing is left out, reordered or reinterpreted in silence."""

import io
import json
import os
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from sid_ray.data.command import prepare
from sid_ray.data.ingest import open_samples
from sid_ray.data.left_out import account_lines, class_line
from sid_ray.data.names import in_natural_order, natural
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.data.show import lines_of_set
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from tests.support.data_sources import encoded, pixels, write_zip

PNG = encoded(pixels(1)[0])


def write(root, *names, data=PNG):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def samples(source, **options):
    return open_samples(PrepareOptions(str(source), "x", shuffle=False, **options))


def refusal(source, **options) -> str:
    with pytest.raises(UserError) as caught:
        samples(source, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def not_used(found) -> dict[str, int]:
    return {one["why"]: one["count"] for one in found.account.get("left_out", [])}


# Order of classes ---------------------------------------------------------------------------------


def test_class_folders_of_numbers_sort_as_numbers(tmp_path):
    write(tmp_path / "n", *(f"{number}/a.png" for number in range(12)))
    found = samples(tmp_path / "n")
    assert found.class_names == tuple(map(str, range(12)))
    assert found.labels == list(range(12))


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["a10", "a9", "b1"], ["a9", "a10", "b1"]),
        (["cat", "10", "2"], ["2", "10", "cat"]),
        (["0.5", "0.25", "-1"], ["-1", "0.25", "0.5"]),
        (["01", "1", "2"], ["01", "1", "2"]),
        (["n02", "n01"], ["n01", "n02"]),
        (["9" * 5000, "1" + "0" * 5000], ["9" * 5000, "1" + "0" * 5000]),
    ],
)
def test_the_order_of_names(names, ordered):
    assert in_natural_order(names) == ordered
    assert sorted(["img10", "img9", "img010"], key=natural) == ["img9", "img010", "img10"]


def test_a_line_says_where_numbers_are_not_the_classes():
    assert class_line(["0", "1", "2"]) == "3 in this order: 0, 1, 2"
    assert class_line(["0", "1", "3"]).endswith("(so class 2 is '3')")
    assert class_line([str(n) for n in range(100)]).endswith("7, 8, ..., 98, 99")


def test_the_line_the_manifest_and_show_say_the_same(tmp_path):
    source = write(tmp_path / "n", "cat/a.png", "dog/b.png", "dog/c.mov", "notes.txt", ".DS_Store")
    (source / "bird").mkdir()
    said = []
    options = PrepareOptions(str(source), str(tmp_path / "out"), workers=0)
    manifest = prepare_data(options, say=said.append).manifest
    assert said == [
        "classes     2 in this order: cat, dog",
        "labels      from the folders that samples lie in",
        "not used    1 hidden or of a system (.DS_Store), 1 .mov (dog/c.mov), "
        "1 .txt (notes.txt), 1 folder without samples (bird/)",
    ]
    shown = list(lines_of_set(manifest, "out"))
    assert all(line in shown for line in said)
    # A file that is no sample does not make another set of it.
    write(source, "more.xmp")
    assert prepare_data(options).resumed == manifest.count


# Splits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("train", "test"), ("Training", "validation"), ("train2017", "val2017"), ("trn", "dev"),
     ("training_set", "test_set"), ("train-images", "eval")],
)  # fmt: skip
def test_splits_are_asked_about_and_taken(first, second, tmp_path):
    names = [f"{split}/{kind}/{split}.png" for split in (first, second) for kind in ("cat", "dog")]
    source = write(tmp_path / "n", *names)
    text = refusal(source)
    assert "is split" in text and f"{first} (2)" in text and "--split train" in text
    found = samples(source, split="train")
    assert found.class_names == ("cat", "dog") and found.labels == [0, 1]
    assert not_used(found) == {"in other splits": 2}
    assert samples(source, split=second).count == 2
    both = samples(source, split="all")
    assert (both.count, both.class_names) == (4, ("cat", "dog"))
    assert "--split x: " in refusal(source, split="x")


@pytest.mark.parametrize(
    "layout",
    ["{s}/{c}.png", "a/b/{s}/{c}/x.png", "{c}/{s}/x.png", "images/{s}/{c}.png"],
)
def test_splits_at_any_level(layout, tmp_path):
    names = [layout.format(s=s, c=c) for s in ("train", "val") for c in ("cat", "dog")]
    source = write(tmp_path / "n", *names)
    assert "is split" in refusal(source)
    found = samples(source, split="val")
    assert found.count == 2
    assert found.class_names == (("cat", "dog") if "{c}/" in layout else ())


def test_captions_of_each_split_are_kept(tmp_path):
    source = write(tmp_path / "n", "train/a.png", "test/a.png")
    for split in ("train", "test"):
        row = {"file_name": "a.png", "text": f"of {split}"}
        (source / split / "metadata.jsonl").write_text(json.dumps(row))
    assert samples(source, split="test").prompts == ["of test"]
    assert samples(source, split="all").prompts == ["of test", "of train"]
    # One list above them for all.
    for split in ("train", "test"):
        (source / split / "metadata.jsonl").unlink()
    (source / "metadata.csv").write_text("file_name,text\ntrain/a.png,x\ntest/a.png,y\n")
    assert samples(source, split="train").prompts == ["x"]


def test_two_domains_in_splits(tmp_path):
    source = write(tmp_path / "n", *(f"{s}{d}/a.png" for s in ("train", "test") for d in "AB"))
    assert samples(source, split="train").class_names == ("A", "B")
    assert samples(source, split="trainA").count == 1


def test_what_only_looks_like_a_split_is_none(tmp_path):
    source = write(tmp_path / "vehicles", "train/a.png", "car/a.png", "bus/a.png")
    assert samples(source).class_names == ("bus", "car", "train")
    wrapped = write(tmp_path / "one", "train/cat/a.png", "train/dog/b.png")
    assert samples(wrapped).class_names == ("cat", "dog")
    assert samples(wrapped, split="train").count == 2
    assert "no such parts" in refusal(wrapped, split="test")
    assert "digits has no parts" in refusal("digits", split="train")


def test_what_lies_beside_splits_is_counted(tmp_path):
    source = write(tmp_path / "n", "train/cat/a.png", "test/cat/b.png", "extra/c.png", "d.png")
    assert not_used(samples(source, split="all")) == {"in other splits": 2}


# Wrapping folders, and folders that are no classes ------------------------------------------------


@pytest.mark.parametrize("wrap", ["", "one/", "a/b/c/"])
def test_wrapping_folders_are_looked_through(wrap, tmp_path):
    source = write(tmp_path / "n", f"{wrap}cat/a.png", f"{wrap}dog/b.png")
    write(source, "README.md", "__MACOSX/._a.png", f"{wrap}Thumbs.db", f"{wrap}cat/@eaDir/t.jpg")
    found = samples(source)
    assert found.class_names == ("cat", "dog") and found.count == 2
    assert not_used(found) == {"hidden or of a system": 3, ".md": 1}
    packed = {f.relative_to(source).as_posix(): f.read_bytes() for f in source.rglob("*.*")
              if f.is_file()}  # fmt: skip
    packed[f"{wrap}bird/"] = b""
    zipped = samples(write_zip(tmp_path / "a.zip", packed))
    assert zipped.labels == found.labels
    assert not_used(zipped) == not_used(found) | {"folder without samples": 1}


def test_folders_of_five_digits_and_of_cameras_are_said(tmp_path):
    signs = write(tmp_path / "signs", "00000/a.png", "00001/b.png")
    found = samples(signs)
    assert found.labels is None and "--labels folders" in found.account["notes"][0]
    assert samples(signs, labels="folders").class_names == ("00000", "00001")
    camera = write(tmp_path / "card", "DCIM/100CANON/IMG_0001.JPG", "DCIM/101CANON/IMG_0002.JPG")
    write(camera, "DCIM/100CANON/IMG_0001.CR2", "DCIM/100CANON/MVI_0003.MOV", "MISC/x.xmp")
    found = samples(camera)
    assert found.labels is None and "cameras" in found.account["notes"][0]
    assert not_used(found) == {".cr2": 1, ".mov": 1, ".xmp": 1}
    assert samples(camera, labels="folders").label_dim == 2
    assert samples(write(tmp_path / "k", "a/1.png", "b/2.png"), labels="none").labels is None


# Formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.BMP", "BMP"), ("a.gif", "GIF"), ("a.tif", "TIFF"), ("a.TIFF", "TIFF"), ("a.jpe", "JPEG"),
     ("a.jfif", "JPEG"), ("a.JPG", "JPEG"), ("a.avif", "AVIF"), ("a.webp", "WEBP"),
     ("a.ppm", "PPM"), ("a.jpg", "PNG")],
)  # fmt: skip
def test_other_formats_are_read(name, form, tmp_path):
    flat = np.full((8, 8, 3), 200, np.uint8)
    write(tmp_path / "n", name, data=encoded(flat, form))
    manifest = prepare_data(
        PrepareOptions(str(tmp_path / "n"), str(tmp_path / "out"), workers=0)
    ).manifest
    assert manifest.shape == (3, 8, 8) and abs(manifest.mean[0] - (200 / 127.5 - 1)) < 0.02


def test_what_is_no_sample_is_named_where_there_is_none(tmp_path):
    text = refusal(write(tmp_path / "n", "a.heic", "b.heic", "c.mov"))
    assert "it holds 2 .heic (first a.heic), 1 .mov (c.mov)" in text


def prepared_pixels(folder, tmp_path, **options):
    import pyarrow.parquet as pq

    prepare_data(PrepareOptions(str(folder), str(tmp_path / "out"), workers=0, **options))
    stored = pq.read_table(tmp_path / "out" / "part-00000.parquet")["image"][0].as_py()
    return np.asarray(Image.open(io.BytesIO(stored)))


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
def test_a_picture_on_its_side_is_turned_in_every_format(form, tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.fromarray(image)]} if form == "MPO" else {}
    Image.fromarray(image).save(file, form, exif=exif, **more)
    write(tmp_path / "n", f"a.{'jpg' if form == 'MPO' else form.lower()}", data=file.getvalue())
    found = prepared_pixels(tmp_path / "n", tmp_path)
    assert found[:3].mean() < 20 and found[5:].mean() > 235


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_several_pictures_in_one_file_are_refused(form, tmp_path):
    frames = [Image.fromarray(x) for x in pixels(3)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    write(tmp_path / "n", f"a.{form.lower()}", data=file.getvalue())
    with pytest.raises(UserError, match="animation or several pages"):
        prepared_pixels(tmp_path / "n", tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "the file is empty"), (PNG[:50], "it is cut"), (b"x" * 99, "not an image"),
     (encoded(np.full((8, 8), 70_000, np.int32), "TIFF"), "beyond 16 bit")],
)  # fmt: skip
def test_a_file_that_is_no_picture_is_named(data, words, tmp_path):
    write(tmp_path / "n", "a.png", data=data)
    with pytest.raises(UserError, match=words) as caught:
        prepared_pixels(tmp_path / "n", tmp_path)
    assert "a.png (sample 0)" in str(caught.value)


# Names and links ----------------------------------------------------------------------------------


def test_links_and_what_is_no_file(tmp_path):
    source = write(tmp_path / "n", "cat/a.png", "dog/b.png")
    (source / "loop").symlink_to(source)
    (source / "cat" / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(source / "cat" / "pipe.png")
    write(tmp_path / "far", "c.png")
    (source / "bird").symlink_to(tmp_path / "far")
    found = samples(source)
    assert found.class_names == ("bird", "cat", "dog") and found.count == 3
    assert not_used(found) == {
        "link to nothing": 1, "neither file nor folder": 1,
        "link to a folder that it lies in": 1,
    }  # fmt: skip


def test_names_of_any_kind_end_in_one_line(tmp_path):
    odd = write(tmp_path / "odd", "a\nb.png", "c\u2028.png", "d\x1b[1m.png", "x\n/e.mov")
    found = samples(odd, labels="none")
    assert found.count == 3
    assert all(line.isprintable() for line in account_lines(found.account, ()))
    write(odd, "z\n.png", data=b"x")
    with pytest.raises(UserError) as caught:
        prepared_pixels(odd, tmp_path)
    assert str(caught.value).isprintable()
    folder = write(tmp_path / "bytes", "a.png")
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(PNG)
    assert "not UTF-8: rename" in refusal(folder)


def test_accents_stored_in_two_ways(tmp_path):
    apart = unicodedata.normalize("NFD", "café")
    together = unicodedata.normalize("NFC", "café")
    source = write(tmp_path / "n", f"{apart}.png")
    (source / "metadata.csv").write_text(f"file_name,text\n{together}.png,x\n", encoding="utf-8")
    assert samples(source).prompts == ["x"]
    twins = write(tmp_path / "t", f"{apart}/a.png", f"{together}/b.png")
    assert "accents stored in two ways" in refusal(twins)


def test_two_files_of_one_stem_are_two_samples(tmp_path):
    source = write(tmp_path / "n", "a.png", "a.jpg")
    write(source, "a.txt", data=b"a cat")
    assert samples(source).prompts == ["a cat", "a cat"]


# Lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dataset.json", "labels.csv", "metadata.jsonl", "metadata.csv"])
def test_class_names_are_labels(name, tmp_path):
    rows = [("a.png", "dog"), ("b.png", "cat"), ("c.png", "dog")]
    source = write(tmp_path / "n", *(file for file, _ in rows))
    texts = {
        "dataset.json": json.dumps({"labels": rows}),
        "labels.csv": "\n".join(map(",".join, rows)),
        "metadata.csv": "file_name,label\n" + "\n".join(map(",".join, rows)),
        "metadata.jsonl": "\n".join(json.dumps({"file_name": f, "label": n}) for f, n in rows),
    }
    (source / name).write_text(texts[name])
    found = samples(source)
    assert (found.class_names, found.labels) == (("cat", "dog"), [1, 0, 1])
    assert found.account["labels"] == f"from {name}"


@pytest.mark.parametrize(
    ("labels", "words"),
    [(["cat", "1"], "'cat' is not a whole number from 0: others have numbers"),
     (["1.5", "2.5"], "'1.5' is not a whole number"), (["", "1"], "no label, though others"),
     (["-1", "1"], "-1 is not in 0"), (["9" * 30, "1"], "is not a whole number")],
)  # fmt: skip
def test_labels_that_are_neither(labels, words, tmp_path):
    source = write(tmp_path / "n", "a.png", "b.png")
    (source / "labels.csv").write_text(f"a.png,{labels[0]}\nb.png,{labels[1]}\n")
    assert words in refusal(source)


def test_lists_that_contradict_each_other_and_columns_that_are_not_used(tmp_path):
    source = write(tmp_path / "n", "a.png")
    (source / "metadata.csv").write_text("file_name,text,box,caption\na.png,x,1 2,y\n")
    found = samples(source)
    assert not_used(found) == {"column of a list (box, caption)": 2}
    (source / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "z"}')
    assert "say different prompts of a.png" in refusal(source)


def test_a_list_of_windows_and_one_of_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = write(tmp_path / "n", "sub/a.png")
    (source / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,text\r\nsub\\a.png,x\r\n")
    assert samples(source).prompts == ["x"]
    (source / "metadata.csv").unlink()
    table = pa.table({"file_name": ["sub/a.png"], "text": ["y"], "label": ["cat"], "n": [1]})
    pq.write_table(table, source / "metadata.parquet")
    found = samples(source)
    assert (found.prompts, found.class_names) == (["y"], ("cat",))
    (source / "metadata.parquet").write_bytes(b"PAR1xxxxPAR1")
    assert "not a whole Parquet file" in refusal(source)


# Captions beside the pictures ---------------------------------------------------------------------


@pytest.mark.parametrize("end", [".txt", ".caption", ".png.txt", ".json", ".TXT"])
def test_captions_in_a_file_beside_each_picture(end, tmp_path):
    source = write(tmp_path / "n", "cat/a.png", "cat/b.png")
    for name in "ab":
        text = f"\ufeff{name} ein Käfer\u2028im Gras\r\n"
        told = json.dumps({"caption": text.strip("\ufeff\r\n")}) if end == ".json" else text
        write(source, f"cat/{name}{end}", data=told.encode())
    found = samples(source)
    assert found.prompts == [f"{name} ein Käfer\u2028im Gras" for name in "ab"]
    assert found.account["captions"].startswith("from a .")
    assert samples(source, captions="none").prompts is None
    zipped = {f.relative_to(source).as_posix(): f.read_bytes() for f in source.rglob("*.*")}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in zipped.items():
            archive.writestr(name, data)
    assert samples(tmp_path / "a.zip").prompts == found.prompts


@pytest.mark.parametrize(
    ("files", "words"),
    [({"a.txt": b"x"}, "b.png (sample 1) has no caption in a .txt file"),
     ({"a.txt": b"x\ny", "b.txt": b"z"}, "a.txt: 2 lines, one caption"),
     ({"a.txt": b"\xff", "b.txt": b"z"}, "a.txt, line 1: not UTF-8"),
     ({"a.txt": b"x" * 10_001, "b.txt": b"z"}, "10,001 characters"),
     ({"a.json": b"{", "b.json": b"{}"}, "a.json is not JSON"),
     ({"a.json": b'{"text": 1}', "b.json": b"{}"}, "expected a text"),
     ({"a.cls": b"1"}, "has no label in a .cls file")],
)  # fmt: skip
def test_captions_beside_pictures_that_are_wrong(files, words, tmp_path):
    source = write(tmp_path / "n", "a.png", "b.png")
    for name, data in files.items():
        write(source, name, data=data)
    assert words in refusal(source)


def test_boxes_of_detectors_are_no_captions_and_empty_ones_are_counted(tmp_path):
    source = write(tmp_path / "n", "a.png", "b.png")
    write(source, "a.txt", "b.txt", data=b"0 0.5 0.5 0.25 0.125\n3 0.1 0.2 0.3 0.4\n")
    write(source, "classes.txt", data=b"cat\ndog\n")
    found = samples(source)
    assert found.prompts is None
    assert not_used(found) == {".txt with numbers only, no captions": 2, ".txt": 1}
    write(source, "a.txt", data=b"a cat")
    write(source, "b.txt", data=b"")
    found = samples(source)
    assert found.prompts == ["a cat", ""] and "1 of them empty" in found.account["captions"]


@pytest.mark.parametrize("place", ["", "~nobody-of-this-name/x", "a\0b", "a\udcffb", "x" * 5000])
def test_places_that_are_none_are_one_line(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(place)
    with pytest.raises(UserError):
        prepare(PrepareOptions("digits", place or "~nobody-of-this-name", workers=0))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [(PermissionError(13, "Permission denied"), UserError, "may not be read"),
     (OSError(5, "Input/output error"), StoreError, "Input/output error"),
     (FileNotFoundError(2, "gone"), UserError, "is gone since")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(error, kind, words, tmp_path, monkeypatch):
    found = samples(write(tmp_path / "n", "a.png"))

    def read(self, name):
        raise error

    monkeypatch.setattr("sid_ray.storage.store.Store.read", read)
    with pytest.raises(kind, match=words) as caught:
        found.read(0)
    assert "a.png (sample 0)" in str(caught.value)
