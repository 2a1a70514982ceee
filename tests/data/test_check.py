"""``data show`` and the check of a prepared set: damage is found and named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sid_ray.cli import main
from sid_ray.data.check import check_set, sha256_of_column
from sid_ray.data.columns import arrow_schema
from sid_ray.data.manifest import MANIFEST, DataManifest, Shard, read_manifest
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.storage.store import Store
from tests.support.data_sources import edm_members, encoded, moments, npy, pixels, write_zip


@pytest.fixture
def prepared(tmp_path):
    source = write_zip(tmp_path / "a.zip", edm_members(pixels(40), [n % 4 for n in range(40)]))
    prepare_data(PrepareOptions(str(source), str(tmp_path / "set"), workers=0))
    return tmp_path / "set"


def run(capsys, *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", "show", *args])
    return int(stop.value.code or 0), capsys.readouterr().out


def rewritten(folder, **columns) -> None:
    """The set with some columns replaced, and a manifest that fits the new file."""
    store, manifest = Store.at(folder), read_manifest(Store.at(folder))
    shard = manifest.shards[0]
    table = pq.read_table(folder / shard.name)
    for name, values in columns.items():
        field = table.schema.field(name)
        column = pa.array(values, field.type)
        place = table.schema.get_field_index(name)
        table = table.set_column(place, field.with_nullable(True), column)
    pq.write_table(table, folder / shard.name, row_group_size=shard.row_groups[0])
    size, digest = store.size(shard.name), sha256_of_column(store, shard.name)
    new = Shard(shard.name, size, digest, shard.row_groups)
    values = {f: getattr(manifest, f) for f in manifest.__dataclass_fields__} | {"shards": (new,)}
    store.write(MANIFEST, DataManifest(**values).to_json())


def test_a_whole_set_is_shown(prepared, capsys, tmp_path):
    sheet = tmp_path / "deep" / "sheet.png"
    code, out = run(capsys, str(prepared), "--out", str(sheet), "--verify")
    assert code == 0
    for words in ("samples     40", "3 x 8 x 8", "image, label, name", "4 of 10 to 10", "verified"):
        assert words in out
    assert Image.open(sheet).width > 8 * 100


def test_latents_are_drawn_too(tmp_path, capsys):
    members = {f"{n}.npy": npy(x) for n, x in enumerate(moments(3))}
    source = write_zip(tmp_path / "a.zip", members)
    prepare_data(PrepareOptions(str(source), str(tmp_path / "set"), workers=0))
    assert run(capsys, str(tmp_path / "set"), "--out", str(tmp_path / "x.png"), "--verify")[0] == 0
    assert (tmp_path / "x.png").is_file()


def test_damage_of_files_is_found_without_reading_all(prepared):
    store, name = Store.at(prepared), "part-00000.parquet"
    whole = store.read(name)
    for data, words in (
        (whole[:-1], "cut or changed"),
        (whole + b"x", "cut or changed"),
        (whole[:-8] + b"\0" * 8, "cannot be read"),
        (None, "is missing"),
    ):
        store.remove(name) if data is None else store.write(name, data)
        (finding,) = check_set(store)
        assert words in finding and name in finding and "\n" not in finding
    store.write(name, whole)
    assert check_set(store, deep=True) == []
    store.write(MANIFEST, store.read_text(MANIFEST)[:-20])
    assert "damaged" in check_set(store)[0]


def test_every_changed_byte_is_found_by_reading_all(prepared, capsys):
    store, name = Store.at(prepared), "part-00000.parquet"
    whole = store.read(name)
    for place in range(4, len(whole), len(whole) // 12):
        store.write(name, whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        findings = check_set(store, deep=True)
        assert findings and all("\n" not in line and name in line for line in findings)
    code, out = run(capsys, str(prepared), "--verify")
    assert code == 1 and "checksum is wrong" in out


@pytest.mark.parametrize(
    ("column", "row", "value", "words"),
    [
        ("image", 5, b"x", "not an image"),
        ("image", 5, encoded(pixels(1, 4)[0]), "(4, 4, 'RGB'), expected PNG (8, 8, 'RGB')"),
        ("image", 5, encoded(pixels(1, 8, 1)[0]), "'L'"),
        ("label", 5, 4, "label is 4, expected 0 to 3"),
        ("label", 5, None, "label is None"),
        ("name", 5, None, "name is missing"),
    ],
)
def test_a_bad_row_is_named(prepared, column, row, value, words):
    """Row 5 is row 1 of row group 2: groups have 2 rows."""
    values = pq.read_table(prepared / "part-00000.parquet")[column].to_pylist()
    values[row] = value
    rewritten(prepared, **{column: values})
    (finding,) = check_set(Store.at(prepared), deep=True)
    assert words in finding and f"row group 2, row 1: {column}" in finding


def test_labels_that_were_swapped_contradict_their_counts(prepared):
    rewritten(prepared, label=[0] * 40)
    (finding,) = check_set(Store.at(prepared), deep=True)
    assert "10 samples of class 0, the files hold 40" in finding


def test_numbers_that_are_not_finite(tmp_path):
    members = {f"{n}.npy": npy(x) for n, x in enumerate(moments(4))}
    source = write_zip(tmp_path / "a.zip", members)
    prepare_data(PrepareOptions(str(source), str(tmp_path / "set"), workers=0))
    values = pq.read_table(tmp_path / "set" / "part-00000.parquet")["latent"].to_pylist()
    for place, number, words in ((5, float("nan"), "NaN"), (-1, -1.0, "negative")):
        changed = [list(row) for row in values]
        changed[2][place] = number
        rewritten(tmp_path / "set", latent=[np.array(row, np.float16) for row in changed])
        (finding,) = check_set(Store.at(tmp_path / "set"), deep=True)
        assert words in finding and "row group 2, row 0" in finding


def test_the_manifest_is_small_and_readable(prepared):
    values = json.loads((prepared / MANIFEST).read_text())
    assert values["source"]["path"].endswith("a.zip")
    schema = arrow_schema(values["columns"], values["shape"])
    assert pq.read_schema(prepared / "part-00000.parquet").equals(schema)
