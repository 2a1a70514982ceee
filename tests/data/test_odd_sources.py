"""Sources that nobody listed: each is taken as it is meant, or refused in one line."""

import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sid_ray.data.manifest import read_manifest
from sid_ray.data.picture_sets import open_pictures
from sid_ray.data.prompts import prompts_of
from sid_ray.errors import UserError
from sid_ray.storage.store import Store
from tests.data.test_listing import PNG, not_used, refusal, samples, write


def table(**columns) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"file_name": "a.png", "label": NaN}', "label nan is not a whole number"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "'text' stands twice"),
    ],
)
def test_lists_that_say_nothing_clear_are_refused(tmp_path, data, words):
    write(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(data)
    said = refusal(tmp_path)
    assert words in said and "line 1" in said


def test_paths_of_windows_in_a_list(tmp_path):
    write(tmp_path, "a.png", "b/c.png")
    rows = [{"file_name": ".\\a.png", "text": "x"}, {"file_name": "b\\c.png", "text": "y"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert samples(tmp_path, labels="none").prompts == ["x", "y"]


@pytest.mark.parametrize("text", ["", "file_name,text\n"])
def test_a_list_without_rows_is_named(tmp_path, text):
    write(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(text)
    assert not_used(samples(tmp_path)) == {".csv": 1}


@pytest.mark.parametrize("text", ["caption\nred\rroof\n", "caption\rred\rroof\r"])
def test_a_carriage_return_alone_ends_no_row(text):
    with pytest.raises(UserError, match="a carriage return alone"):
        prompts_of(text.encode(), ".csv", "p.csv")
    quoted = prompts_of(b'caption\r\n"red\rroof"\r\n"a\nb"\n', ".csv", "p.csv")
    assert quoted.prompts == ["red\rroof", "a\nb"]


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(UserError, match="two columns 'caption'"):
        prompts_of(b"caption,caption\na,b\n", ".csv", "p.csv")


def test_parquet_without_rows_or_without_its_other_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(table(image=pa.array([], pa.binary()), label=pa.array([])))
    assert "hold no rows" in refusal(tmp_path)
    (tmp_path / "a.parquet").rename(tmp_path / "a.txt")
    (tmp_path / "train-00001-of-00003.parquet").write_bytes(table(image=[PNG]))
    notes = samples(tmp_path).account["notes"]
    assert notes == ["1 of 3 files train-*-of-00003.parquet are there"]


def test_folders_of_a_zip_that_hold_folders_are_not_empty(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("top/", "top/train/", "top/train/x/", "top/test/"):
            archive.writestr(name, b"")
        archive.writestr("top/train/x/a.png", PNG)
        archive.writestr("top/test/b.png", PNG)
    assert not_used(samples(tmp_path / "a.zip", split="test")) == {"in other splits": 1}


def test_words_before_a_split_are_understood(tmp_path):
    write(tmp_path, "images_train/a.png", "images_val/b.png")
    assert "--split train" in refusal(tmp_path)
    assert samples(tmp_path, split="val").names == ["images_val/b.png"]


@pytest.mark.parametrize(
    "names", [("train/x/a.png", "extra/x/b.png"), ("x/train/a.png", "y/b.png")]
)
def test_a_part_beside_what_is_none_is_told_and_taken_where_it_is_asked_for(tmp_path, names):
    write(tmp_path, *names)
    (note,) = samples(tmp_path).account["notes"]
    assert "--split train takes it alone" in note
    found = samples(tmp_path, split="train")
    assert found.names == [names[0]]
    assert not_used(found)["in other splits"] == 1


def test_one_caption_a_file_for_every_command(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert "2 lines, one caption is expected" in refusal(tmp_path)
    with pytest.raises(UserError, match="2 lines, one caption is expected"):
        open_pictures(str(tmp_path), with_captions=True)


def test_the_advice_about_a_missing_set_would_not_write_among_pictures(tmp_path):
    write(tmp_path, "a.png")
    with pytest.raises(UserError, match="prepare SRC DST makes one") as told:
        read_manifest(Store.at(tmp_path))
    assert f"SRC {tmp_path}" not in str(told.value)
