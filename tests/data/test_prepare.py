"""Preparing: what goes in comes out, in order, the same bytes however it was done."""

import csv
import hashlib
import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sid_ray.data import command, write
from sid_ray.data.check import check_set
from sid_ray.data.ingest import mixed
from sid_ray.data.layout import LEAST_GROUPS, MAX_ROWS, SHARD_BYTES, cut
from sid_ray.data.manifest import read_manifest
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.data.sheet import draw_sheet
from sid_ray.errors import UserError
from sid_ray.storage.errors import FullStoreError
from sid_ray.storage.store import Store
from tests.support.data_sources import (
    edm_members,
    edm_name,
    encoded,
    moments,
    npy,
    pixels,
    write_zip,
)


def prepare(source, destination, **options):
    """The manifest of a set that is whole; its samples stay in the source's order."""
    options = {"workers": 0, "shuffle": False} | options
    done = prepare_data(PrepareOptions(str(source), str(destination), **options))
    store = Store.at(str(destination))
    assert done.manifest == read_manifest(store)
    assert check_set(store, deep=True) == []
    return done.manifest


def rows(destination) -> dict[str, list]:
    """All columns of a prepared set."""
    store = Store.at(str(destination))
    names = [shard.name for shard in read_manifest(store).shards]
    tables = [pq.read_table(pa.BufferReader(store.read(name))) for name in names]
    return pa.concat_tables(tables).to_pydict()


def digests(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decoded(png: bytes) -> np.ndarray:
    picture = np.asarray(Image.open(io.BytesIO(png)))
    return picture[:, :, None] if picture.ndim == 2 else picture


def test_an_edm_archive_keeps_its_pngs_and_its_order(tmp_path):
    images, labels = pixels(20), [n % 3 for n in range(20)]
    members = edm_members(images, labels)
    backwards = dict(reversed(members.items()))
    source = write_zip(tmp_path / "a.zip", backwards)
    manifest = prepare(source, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert found["image"] == [members[edm_name(n)] for n in range(20)]
    assert found["label"] == labels
    assert found["name"] == [edm_name(n) for n in range(20)]
    assert (manifest.kind, manifest.count, manifest.shape) == ("images", 20, (3, 8, 8))
    assert manifest.class_counts == (7, 7, 6)
    scaled = images.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(manifest.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)
    assert sorted(digests(tmp_path / "out")) == ["manifest.json", "part-00000.parquet"]


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_folder_and_a_zip_from_anywhere_to_anywhere(where, tmp_path, request):
    members = edm_members(pixels(9, channels=1), [2, 0, 1] * 3)
    root = str(tmp_path) if where == "disk" else request.getfixturevalue("bucket")
    store = Store.at(f"{root}/folder")
    store.create()
    for name, data in members.items():
        store.write(name, data)
    Store.at(root).put(write_zip(tmp_path / "packed", members), "a.zip")
    one = prepare(f"{root}/folder", f"{root}/one")
    two = prepare(f"{root}/a.zip", f"{root}/two/deeper")
    assert one.fingerprint == two.fingerprint
    assert one.shape == (1, 8, 8)
    assert rows(f"{root}/one") == rows(f"{root}/two/deeper")


def test_the_archive_may_be_packed(tmp_path):
    members = edm_members(pixels(5))
    one = prepare(write_zip(tmp_path / "a.zip", members), tmp_path / "one")
    two = prepare(write_zip(tmp_path / "b.zip", members, 8), tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert one.label_dim == 0


def test_class_folders_are_classes_in_alphabetical_order(tmp_path):
    for number, name in enumerate(("zebra", "ant", "bee")):
        folder = tmp_path / "animals" / name
        folder.mkdir(parents=True)
        for index in range(2):
            (folder / f"{index}.png").write_bytes(encoded(pixels(1, seed=number)[0]))
    (tmp_path / "animals" / ".DS_Store").write_bytes(b"x")
    manifest = prepare(tmp_path / "animals", tmp_path / "out")
    assert manifest.class_names == ("ant", "bee", "zebra")
    assert rows(tmp_path / "out")["label"] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("form", ["labels.csv", "metadata.jsonl", "metadata.csv"])
def test_labels_and_captions_beside_the_images(form, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(encoded(pixels(1, seed=index)[0]))
    texts = ["a cat, asleep", "ein Käfer", "三"]
    listed = [{"file_name": f"{n}.png", "text": texts[n], "label": 2 - n} for n in (2, 0, 1)]
    if form == "metadata.jsonl":
        text = "\n".join(json.dumps(row) for row in listed)
    else:
        file = io.StringIO()
        if form == "labels.csv":
            csv.writer(file).writerows([row["file_name"], row["label"]] for row in listed)
        else:
            table = csv.DictWriter(file, ["file_name", "text", "label"])
            table.writeheader()
            table.writerows(listed)
        text = file.getvalue()
    (folder / form).write_text(text, encoding="utf-8")
    manifest = prepare(folder, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert found["label"] == [2, 1, 0]
    assert manifest.label_dim == 3
    assert found.get("prompt") == (None if form == "labels.csv" else texts)


def test_latents_become_half_precision(tmp_path):
    values = moments(10)
    members = {f"00000/img-mean-std-{n:08d}.npy": npy(v) for n, v in enumerate(values)}
    members["dataset.json"] = json.dumps({"labels": [[name, 1] for name in members]})
    manifest = prepare(write_zip(tmp_path / "a.zip", members), tmp_path / "out")
    half = values.astype(np.float16)
    found = np.array(rows(tmp_path / "out")["latent"], np.float16)
    np.testing.assert_array_equal(found, half.reshape(10, -1))
    assert (manifest.kind, manifest.shape, manifest.label_dim) == ("latents", (2, 4, 4), 2)
    mean = half[:, :2].astype(np.float64)
    np.testing.assert_allclose(manifest.mean, mean.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(manifest.std, mean.std(axis=(0, 2, 3)), rtol=1e-9)


def test_labels_alone_and_prompts_alone(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": [["b", 4], ["a", 0], ["c", 4]]}')
    manifest = prepare(tmp_path / "dataset.json", tmp_path / "labels")
    assert (manifest.kind, manifest.class_counts) == ("labels", (1, 0, 0, 0, 2))
    assert rows(tmp_path / "labels") == {"label": [0, 4, 4]}
    (tmp_path / "p.txt").write_bytes("a cat\r\n\n  ein Käfer\n".encode())
    manifest = prepare(tmp_path / "p.txt", tmp_path / "prompts")
    assert (manifest.kind, manifest.columns) == ("prompts", ("prompt",))
    assert rows(tmp_path / "prompts") == {"prompt": ["a cat", "ein Käfer"]}
    pq.write_table(pa.table({"caption": ["x", None, "y"]}), tmp_path / "c.parquet")
    prepare(tmp_path / "c.parquet", tmp_path / "columns")
    assert rows(tmp_path / "columns") == {"prompt": ["x", "y"]}


def test_sets_by_name(tmp_path):
    assert prepare("digits", tmp_path / "digits").class_counts[3] == 183
    emoji = prepare("emoji", tmp_path / "emoji", max_images=100)
    assert (emoji.count, emoji.label_dim) == (100, 10)
    again = prepare("emoji", tmp_path / "again", max_images=100)
    other = prepare("emoji", tmp_path / "other", max_images=100, seed=1)
    assert emoji.fingerprint == again.fingerprint != other.fingerprint


def test_sizes_modes_and_crops(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    wide = np.zeros((40, 60, 3), np.uint8)
    wide[:, 10:50] = 200  # the centre square
    (folder / "a.png").write_bytes(encoded(wide))
    (folder / "b.jpg").write_bytes(encoded(wide, "JPEG", quality=100))
    (folder / "c.webp").write_bytes(encoded(wide, "WEBP", lossless=True))
    clear = np.zeros((20, 20, 4), np.uint8)
    (folder / "d.png").write_bytes(encoded(clear))
    (folder / "e.png").write_bytes(encoded(np.full((20, 20), 65535, np.uint16)))
    Image.fromarray(wide).quantize(4).save(folder / "f.png")
    Image.fromarray(wide).convert("CMYK").save(folder / "g.jpg", quality=100)
    Image.new("1", (16, 16), 1).save(folder / "h.png")
    manifest = prepare(folder, tmp_path / "out", resolution=16)
    found = [decoded(png) for png in rows(tmp_path / "out")["image"]]
    assert manifest.shape == (3, 16, 16)
    for index, level in enumerate([200, 200, 200, 255, 255, 200, 200, 255]):
        assert abs(found[index].astype(int) - level).max() <= 3, index
    grey = prepare(folder, tmp_path / "grey", resolution=16, grey=True)
    assert grey.shape == (1, 16, 16)
    halved = prepare(folder, tmp_path / "halved", resolution=16, crop="dhariwal")
    assert halved.count == 8


def test_a_photograph_on_its_side_is_turned(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(encoded(image, "JPEG", exif=exif, quality=100))
    prepare(tmp_path / "in", tmp_path / "out")
    found = decoded(rows(tmp_path / "out")["image"][0])
    assert found[:4].mean() < 5 and found[4:].mean() > 250


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(1, 60), seed=st.integers(0, 9), stop=st.integers(0, 5))
def test_the_same_bytes_after_any_interruption(count, seed, stop, tmp_path_factory, monkeypatch):
    """Killed after any unit, with one file half-written and one cut: the bytes do not change."""
    monkeypatch.setattr("sid_ray.data.layout.SHARD_ROWS", 4)
    folder = tmp_path_factory.mktemp("resume")
    labels = [n % 2 for n in range(count)]
    source = write_zip(folder / "a.zip", edm_members(pixels(count, 4, seed=seed), labels))
    prepare(source, folder / "whole", shuffle=True)
    expected = digests(folder / "whole")

    class Killed(BaseException):
        pass

    real, done = write.build_unit, []

    def build(unit, work):
        if len(done) >= stop:
            raise Killed
        done.append(unit.index)
        return real(unit, work)

    with monkeypatch.context() as patched:
        patched.setattr(write, "build_unit", build)
        options = PrepareOptions(str(source), str(folder / "cut"), workers=0)
        try:
            prepare_data(options)
        except Killed:
            (folder / "cut" / "part-00009.parquet.1-abc.part").write_bytes(b"half")
            if done:
                first = folder / "cut" / "part-00000.parquet"
                first.write_bytes(first.read_bytes()[:-1])
    prepare(source, folder / "cut", shuffle=True)
    assert digests(folder / "cut") == expected
    assert prepare_data(options).resumed == count


def test_storage_that_fails_leaves_what_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("sid_ray.data.layout.SHARD_ROWS", 4)
    source = write_zip(tmp_path / "a.zip", edm_members(pixels(40)))
    options = PrepareOptions(str(source), str(tmp_path / "out"), workers=0)
    real = write.build_unit

    def build(unit, work):
        if unit.index == 3:
            raise FullStoreError("s3://x/y: no space left")
        return real(unit, work)

    with monkeypatch.context() as patched:
        patched.setattr(write, "build_unit", build)
        with pytest.raises(UserError, match="no space left; what is finished stays"):
            command.prepare(options)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3
    assert prepare_data(options).resumed == 3 * 4


@given(
    count=st.integers(1, 3_000_000),
    size=st.integers(1, 1 << 24),
    group=st.integers(1, 64),
    shard_rows=st.sampled_from([256, 4096]),
)
def test_row_groups_and_files_hold_their_bounds(count, size, group, shard_rows):
    layout = cut(count, size, group << 20, shard_rows)
    groups = [rows for part in layout for rows in part]
    assert sum(groups) == count
    assert len(set(groups[:-1])) <= 1 and groups[-1] <= groups[0] <= MAX_ROWS
    assert len(groups) >= min(LEAST_GROUPS, count)
    assert all(len(part) == 1 or sum(part) * size <= SHARD_BYTES for part in layout)


def test_another_plan_and_other_files_are_not_overwritten(tmp_path):
    source = write_zip(tmp_path / "a.zip", edm_members(pixels(4)))
    prepare(source, tmp_path / "out")
    with pytest.raises(UserError, match="--force"):
        prepare(source, tmp_path / "out", grey=True)
    assert prepare(source, tmp_path / "out", grey=True, force=True).shape[0] == 1
    (tmp_path / "half" / ".progress").mkdir(parents=True)
    (tmp_path / "half" / ".progress" / "plan.json").write_text('{"plan": "other"}')
    with pytest.raises(UserError, match="half-prepared"):
        prepare(source, tmp_path / "half")
    prepare(source, tmp_path / "half", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(UserError, match=r"other files \(thesis.tex\)"):
            prepare(source, tmp_path / "mine", force=force)
    for inside in ("", "/deeper"):
        with pytest.raises(UserError, match="lies in the source"):
            prepare(tmp_path, f"{tmp_path}{inside}")


def test_encoders_make_latents_and_embeddings(tmp_path):
    pytest.importorskip("diffusers")
    import torch

    from sid_ray.denoisers.autoencoder import load_vae
    from sid_ray.denoisers.clip_text import load_text
    from tests.denoisers.tiny_pipeline import TEXT_WIDTH, write_pipeline

    write_pipeline(tmp_path / "teacher")
    images = pixels(10, 32)
    members = edm_members(images)
    texts = ["a cat", "a red dog"] * 5
    lines = [{"file_name": edm_name(n), "text": text} for n, text in enumerate(texts)]
    members["metadata.jsonl"] = "\n".join(map(json.dumps, lines))
    source = write_zip(tmp_path / "a.zip", members)
    teacher = str(tmp_path / "teacher")
    manifest = prepare(source, tmp_path / "out", encode=teacher, encode_text=teacher)
    assert (manifest.kind, manifest.shape) == ("latents", (4, 16, 16))
    assert manifest.text is not None and manifest.text.shape == (77, TEXT_WIDTH)
    found = rows(tmp_path / "out")
    posterior = load_vae(tmp_path / "teacher").encode(
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    )
    expected = torch.cat([posterior.latent_dist.mean, posterior.latent_dist.std], 1).half()
    latents = torch.tensor(found["latent"]).reshape(10, 8, 16, 16)
    torch.testing.assert_close(latents, expected.double(), rtol=2e-3, atol=2e-4, check_dtype=False)
    embedded = load_text(tmp_path / "teacher").embed(texts).half().double()
    torch.testing.assert_close(
        torch.tensor(found["text"]).reshape(10, 77, TEXT_WIDTH).double(), embedded, rtol=0, atol=0
    )
    assert found["prompt"] == texts
    for decode in (teacher, ""):
        shown = draw_sheet(Store.at(tmp_path / "out"), manifest, tmp_path / "x.png", decode)
        assert shown == 10 and Image.open(tmp_path / "x.png").width > 500
    other = prepare(source, tmp_path / "sd", encode=teacher, convention="sd")
    assert other.fingerprint != replace(manifest, text=None).fingerprint


def test_prompts_are_embedded_by_the_family_of_the_encoders(tmp_path, monkeypatch):
    """Told by the folder, which holds nothing else."""
    pytest.importorskip("diffusers")
    import torch

    from sid_ray.denoisers import flow_prompts
    from sid_ray.weights.components import text_encoder_sha256
    from tests.denoisers.tiny_text import GEMMA_WIDTH, write_gemma

    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flow_prompts, "instruction", lambda: "longer: ")
    write_gemma(tmp_path / "encoders")
    (tmp_path / "a.txt").write_text("a cat\na red dog\n")
    manifest = prepare(tmp_path / "a.txt", tmp_path / "out", encode_text=str(tmp_path / "encoders"))
    shape = (300, GEMMA_WIDTH + 1)
    assert manifest.text is not None and manifest.text.shape == shape
    assert manifest.text.sha256 == text_encoder_sha256(tmp_path / "encoders", "sana")
    found = torch.tensor(rows(tmp_path / "out")["text"]).reshape(2, *shape)
    expected = flow_prompts.SANA_PROMPTS.load_text(tmp_path / "encoders").embed(
        ["a cat", "a red dog"]
    )
    assert torch.equal(found.half(), expected.half())
    assert found[:, :, -1].sum(1).tolist() == [6, 10]  # the first token, and all but 7 behind it


def test_it_refuses_what_does_not_suit_the_encoders(tmp_path):
    pytest.importorskip("diffusers")
    from tests.denoisers.tiny_pipeline import write_pipeline

    write_pipeline(tmp_path / "teacher")
    odd = write_zip(tmp_path / "a.zip", edm_members(pixels(2, 9)))
    with pytest.raises(UserError, match="--resolution 8"):
        prepare(odd, tmp_path / "out", encode=str(tmp_path / "teacher"))
    with pytest.raises(UserError, match="no prompts"):
        prepare(odd, tmp_path / "out", encode_text=str(tmp_path / "teacher"))
    with pytest.raises(UserError, match="no vae"):
        prepare(odd, tmp_path / "out", encode=str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_samples_are_mixed_and_keep_what_is_theirs(tmp_path):
    source = tmp_path / "edm.zip"
    labels = [index // 20 for index in range(200)]  # class by class, as folders are
    write_zip(source, edm_members(pixels(200), labels))
    prepare(source, tmp_path / "plain")
    prepare(source, tmp_path / "mixed", shuffle=True)
    prepare(source, tmp_path / "again", shuffle=True)
    prepare(source, tmp_path / "other", shuffle=True, seed=1)
    plain, mixed, other = (rows(tmp_path / name) for name in ("plain", "mixed", "other"))
    assert digests(tmp_path / "mixed") == digests(tmp_path / "again")
    assert mixed != other and mixed != plain

    def samples(columns):
        return sorted(zip(columns["image"], columns["label"], strict=True))

    assert samples(plain) == samples(mixed) == samples(other)
    assert all(len(set(mixed["label"][start : start + 50])) == 10 for start in range(0, 200, 50))


@given(count=st.integers(1, 40_000), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_mixing_is_a_permutation_of_short_runs(count, seed):
    order = mixed(count, seed)
    assert sorted(order) == list(range(count))
    breaks = sum(after != before + 1 for before, after in itertools.pairwise(order))
    assert breaks < -(-count // min(max(count // 1024, 1), 16))
