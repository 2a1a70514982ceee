"""The page with a run's pictures, of a small run that is kept in tests/reference."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sid_ray.cli import run_command
from sid_ray.commands.compare import Compared
from sid_ray.commands.gallery import chosen_evaluation, evenly, kept_sheets, scores_of
from sid_ray.commands.gallery_options import GalleryOptions
from sid_ray.commands.gallery_page import Frame, Gallery, data_uri, gallery_page
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.config.sections import DataConfig
from sid_ray.data.digits import load_digits
from sid_ray.data.prepared import open_prepared
from sid_ray.data.source import DataSource
from sid_ray.errors import UserError
from sid_ray.evaluation import neighbours
from sid_ray.evaluation.gallery import (
    Asked,
    NearImages,
    Picture,
    PictureRow,
    Ranking,
    Studio,
    conditions,
)
from sid_ray.evaluation.neighbours import pictures_at
from sid_ray.evaluation.pictures import tile
from sid_ray.recipes.registry import recipe
from sid_ray.storage.store import Store
from tests.support.data_writer import write_set

EARLIER = Path(__file__).parents[1] / "reference" / "run_before_the_map" / "run"
NEWEST = "checkpoint_000000000352_000001-fd74e0"
CPU = torch.device("cpu")


class Page(HTMLParser):
    """Tags of a page with their attributes, and the text outside scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        found = [attrs for name, attrs in self.tags if name == tag]
        return [a for a in found if all(value in (a.get(k) or "") for k, value in wanted.items())]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(EARLIER, folder)
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Page:
    out = tmp_path_factory.mktemp("page") / "gallery.html"
    assert run_command(["gallery", str(run), "--out", str(out), "--images", "16"]) == 0
    return Page(out.read_text())


def picture_in(attrs: dict[str, str | None]) -> Image.Image:
    kind, _, data = str(attrs["src"]).partition(";base64,")
    assert kind in ("data:image/png", "data:image/webp")
    return Image.open(io.BytesIO(b64decode(data)))


def test_it_needs_nothing_beside_it_and_every_picture_has_words(page):
    assert not page.all("link")
    assert [attrs for attrs in page.all("script") if attrs] == []
    images = page.all("img")
    assert all(picture_in(attrs).size[0] >= 8 and attrs["alt"] for attrs in images)
    assert not any((attrs.get("href") or "#")[0] != "#" for _, attrs in page.tags)


def test_sheets_are_those_of_the_run_and_of_a_checkpoint_between_them(page, run):
    """Evaluated at 0, 128 and 256 images; a checkpoint is kept at 352."""
    frames = page.all("figure", **{"class": "frame"})
    seen = [frame["data-seen"] for frame in frames]
    assert seen == [f"{count} images seen" for count in (0, 128, 256, 352)]
    sheets = [picture_in(attrs) for attrs in page.all("img", **{"class": "sheet"})]
    kept = Image.open(run / "pictures" / "samples-000000000256.png")
    assert np.array_equal(np.asarray(sheets[2]), np.asarray(kept))
    assert sheets[3].size == kept.size and np.asarray(sheets[3]).std() > 1
    (control,) = page.all("input", type="range")
    assert (control["max"], control["value"], control["aria-label"]) == ("3", "3", "Images seen")


def test_a_sheet_made_of_a_checkpoint_is_the_evaluators(run, monkeypatch):
    """So that it does not matter which of the two a page shows."""
    monkeypatch.chdir(EARLIER.parent)
    chosen = chosen_evaluation(GalleryOptions(str(run)), config_of(run))
    studio = Studio(str(run), Asked(chosen, 8), CPU, lambda text: None)
    older = next(run.glob("checkpoint_000000000256_*"))
    columns, images = studio.sheet(str(older))
    kept = np.asarray(Image.open(run / "pictures" / "samples-000000000256.png"), np.int16)
    found = np.asarray(tile(images, columns, 5), np.int16)
    assert np.abs(found - kept).max() <= 1  # another processor rounded
    assert studio.images_seen == 352


def test_a_grid_has_every_class_and_the_same_seeds(page):
    rows = [attrs["alt"] for attrs in page.all("img", alt="class 7, seed")]
    assert [f"class 7, seed {seed}" for seed in range(8)] == rows[:8]
    copies = page.all("img", alt="training image ")
    assert len(copies) == 12 * 3


def config_of(run: Path) -> DistillConfig:
    return DistillConfig.from_json(json.loads((run / "run.json").read_text())["config"])


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ((), "is no run"),
        (("--metrics", "fd"), "fd: it scores sets of images"),
        (("--metrics", "clip"), r"needs evaluation\.clip_weights"),
        (("--feature-space", "digits"), "unknown feature extractor"),
        (("--images", "7"), "--images"),
        (("--out", "s3://x/y.html"), "a file on this machine's disk"),
        (("--prompt", "a cat"), "reads no text"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(run, tmp_path, flags, what):
    place = str(run) if flags else str(tmp_path)
    out = () if "--out" in flags else ("--out", str(tmp_path / "g.html"))
    with pytest.raises(UserError, match=what) as error:
        run_command(["gallery", place, *flags, *out])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "g.html").exists()


def damaged(run: Path, folder: Path, *names: str) -> Path:
    copy = folder / "run"
    shutil.copytree(run, copy)
    for name in names:
        (copy / name).write_bytes(b"x" * 40)
    return copy


def test_a_run_without_a_whole_checkpoint_is_refused(run, tmp_path):
    copy = damaged(run, tmp_path)
    for folder in copy.glob("checkpoint_*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="no whole checkpoint"):
        run_command(["gallery", str(copy), "--out", str(tmp_path / "g.html")])


def test_what_is_damaged_is_left_out_with_a_word(run, tmp_path, capsys):
    weights = f"{NEWEST}/generator_ema/model.safetensors"
    copy = damaged(run, tmp_path, weights, "pictures/samples-000000000128.png")
    out = tmp_path / "g.html"
    assert run_command(["gallery", str(copy), "--out", str(out), "--images", "8"]) == 0
    frames = Page(out.read_text()).all("figure", **{"class": "frame"})
    assert [frame["data-seen"] for frame in frames] == ["0 images seen", "256 images seen"]
    assert "left out" in capsys.readouterr().out


def test_scores_are_those_of_the_runs_own_file(run):
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    points = scores_of(Store.at(run))["eval/FD-digits-cnn"]
    expected = {line["images_seen"]: line["scores"]["FD-digits-cnn"] for line in lines}
    assert {point.images_seen: point.value for point in points} == expected
    assert scores_of(Store.at(run / "pictures")) == {}
    assert set(kept_sheets(Store.at(run))) == {0, 128, 256}


def test_curves_say_in_words_what_they_show(page):
    (drawn,) = page.all("svg")
    assert drawn["role"] == "img"
    assert str(drawn["aria-label"]).startswith("FD-digits-cnn over images seen: ")
    assert "at best" in str(drawn["aria-label"]) and "256" in str(drawn["aria-label"])


@pytest.mark.slow
def test_a_run_in_s3_shows_what_its_checkpoints_make(run, bucket, tmp_path, monkeypatch):
    """Its sheets are on the disk of the machine that drove it: they are made anew. Without them,
    the page is that of the same run on a disk.
    """
    monkeypatch.chdir(EARLIER.parent)
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    here, there = damaged(run, tmp_path), Store.at(f"{bucket}/run")
    shutil.rmtree(here / "pictures")
    for path in here.rglob("*"):
        if path.is_file():
            there.write(path.relative_to(here).as_posix(), path.read_bytes())
    pages = []
    for place in (there.url, str(here)):
        out = tmp_path / "g.html"
        assert run_command(["gallery", place, "--out", str(out), "--images", "8"]) == 0
        pages.append(Page(out.read_text()))
    frames = [frame["data-seen"] for frame in pages[0].all("figure", **{"class": "frame"})]
    assert frames == ["256 images seen", "352 images seen"]
    in_s3, on_disk = ([attrs["src"] for attrs in page.all("img")] for page in pages)
    assert in_s3 == on_disk and len(in_s3) > 80


def test_names_and_prompts_are_text_wherever_they_stand():
    evil = '<script>alert(1)</script>"'
    image = Picture(torch.zeros(3, 8, 8, dtype=torch.uint8), evil)
    found = Gallery(
        run=Compared(evil, "x", recipe("emoji-lsg"), {}),
        images_seen=0,
        frames=[Frame(0, Image.new("RGB", (9, 9)))],
        by="prompt",
        grid=[PictureRow(evil, [image])],
        copies=NearImages([PictureRow(evil, [image, image])], 1.0, "x"),
        rankings=[Ranking("S", [image], [image])],
    )
    text = gallery_page(found)
    assert text.count("<script>") == 1 and "alert(1)&lt;/script&gt;" in text
    assert {attrs["alt"] for attrs in Page(text).all("img")[1:]} == {evil}
    refused = dataclasses.replace(found, copies=NearImages(trouble="no <GPU>"), frames=[])
    assert "no &lt;GPU&gt;" in gallery_page(refused)


def test_large_pictures_are_compressed():
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    smooth = Image.fromarray(noise).resize((64, 64)).resize((1024, 1024))
    assert data_uri(smooth).startswith("data:image/webp")
    assert data_uri(smooth.resize((256, 256))).startswith("data:image/png")


# What is near ----------------------------------------------------------------


def test_neighbours_are_the_nearest_of_all(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 100)  # fewer than there are are compared at once
    rng = np.random.default_rng(0)
    real = rng.normal(size=(450, 4)).astype(np.float32)
    made = np.concatenate([real[[420, 3]], rng.normal(size=(3, 4)).astype(np.float32)])
    found = neighbours.find_neighbours(made, real, 3)
    apart = np.linalg.norm(made[:, None].astype(np.float64) - real[None], axis=2)
    assert np.array_equal(found.numbers, apart.argsort(1)[:, :3])
    assert found.distances == pytest.approx(np.sort(apart, 1)[:, :3], abs=1e-6)
    assert (found.distances[:2, 0] == 0).all()  # copies
    among = np.sort(np.linalg.norm(real[:, None].astype(np.float64) - real[None], axis=2), 1)[:, 1]
    assert found.usual == pytest.approx(np.median(among), rel=1e-2)


def test_some_pictures_of_a_set_without_reading_on():
    def parts():
        yield torch.arange(4)[:, None]
        yield torch.arange(4, 8)[:, None]
        raise AssertionError("all are there already")

    found = pictures_at(parts(), [5, 0, 3, 5])
    assert {number: int(value) for number, value in found.items()} == {0: 0, 3: 3, 5: 5}


def test_conditions_of_a_grid():
    images, classes = load_digits()
    _, titles, index = conditions(DataSource((1, 8, 8), 10, classes, images), ())
    assert titles == [f"class {number}" for number in range(10)]
    assert classes[index].tolist() == list(range(10))
    texts = [f"prompt {number}" for number in range(100)]
    told = DataSource((3, 16, 16), prompts=texts, embed=lambda prompts: torch.zeros(1))
    _, titles, index = conditions(told, ())
    assert titles == [texts[place] for place in index.tolist()] and len(titles) == 10
    own, titles, _ = conditions(told, ["a cat"])
    assert titles == ["a cat"] and own.captions(torch.zeros(1, dtype=torch.long)) == ["a cat"]
    assert conditions(DataSource((3, 16, 16)), ())[1] == [""]


def test_classes_of_a_prepared_set_go_by_their_names(tmp_path):
    store = Store.at(tmp_path / "set")
    store.create()
    columns = {"image": np.zeros((6, 3, 8, 8), np.uint8), "label": [0, 1, 2, 2, 1, 0]}
    write_set(store, "images", [[6]], label_dim=3, **columns)
    source = open_prepared(DataConfig(name="prepared", source=str(store)), (3, 8, 8))
    assert conditions(source, ())[1] == ["class 0", "class 1", "class 2"]
    names = ("cat", "dog", "owl")
    named = dataclasses.replace(
        source, manifest=dataclasses.replace(source.manifest, class_names=names)
    )
    assert conditions(named, ())[1] == list(names)


def test_frames_are_evenly_apart():
    assert evenly([1, 2, 3], 3) == [1, 2, 3]
    assert evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert evenly([1, 2, 3], 1) == [3]


def test_a_runs_metrics_of_sets_are_left_out():
    config = replace(recipe("emoji-lsg"), evaluation__metrics="fd,clip,kid")
    assert chosen_evaluation(GalleryOptions("x"), config).metrics == "clip"
    assert chosen_evaluation(GalleryOptions("x"), recipe("emoji-lsg")).metrics == "fd"
    nothing = replace(config, evaluation__feature_space="")
    with pytest.raises(UserError, match="--feature-space"):
        chosen_evaluation(GalleryOptions("x"), nothing)
