"""sid-ray evaluate DIR: images that are there already, by the same protocol."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sid_ray.cli import main
from sid_ray.commands.generate import generate_pictures
from sid_ray.data.picture_sets import open_pictures
from sid_ray.errors import UserError
from sid_ray.weights.description import ModelDescription, save_model
from tests.support.networks import TINY, tiny_network

COUNT = 300  # two blocks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a generator's weights, the folder of its pictures)."""
    folder = tmp_path_factory.mktemp("made")
    description = ModelDescription("edm", TINY.to_json(), {"sigma": 2.5})
    save_model(folder / "network", tiny_network().state_dict(), description)
    generate_pictures(folder / "network", range(COUNT), None, (), folder / "pictures", 64)
    return folder / "network", folder / "pictures"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def evaluate(capsys, source, *flags, code: int = 0) -> tuple[dict, str]:
    """The result, and what was said."""
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(source), "--actors", "1", *map(str, flags)])
    said = capsys.readouterr()
    assert stop.value.code == code, said.err
    if code:
        assert said.err.count("\n") == 1
        return {}, said.err
    return json.loads(Path("evaluation.json").read_text()), said.out


def test_the_scores_are_those_of_the_generator_itself(made, capsys):
    network, pictures = made
    of_network, _ = evaluate(capsys, network, "--num-images", COUNT, "--metrics", "fd,is")
    of_folder, said = evaluate(capsys, pictures, "--metrics", "fd,is")
    assert of_folder["scores"] == of_network["scores"]
    assert (of_folder["num_images"], of_folder["shape"]) == (COUNT, [1, 8, 8])
    assert of_folder["left_out"] == ["grid.png"] and "left out: grid.png" in said
    assert of_folder["feature_space"] == "digits-cnn" and "seeds" not in of_folder
    again, _ = evaluate(capsys, pictures)
    assert again["images_made"] == 0  # they were looked at already


def test_nested_folders_zips_and_a_part_of_them(made, capsys, tmp_path):
    _, pictures = made
    whole, _ = evaluate(capsys, pictures)
    for number, path in enumerate(sorted(pictures.glob("seed*.png"))):
        target = tmp_path / "nested" / f"{number // 100}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "nested" / ".hidden.png").write_bytes(b"none")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "nested").rglob("seed*.png")):
            archive.write(path, path.relative_to(tmp_path / "nested"))
    for place in ("nested", "all.zip"):
        assert evaluate(capsys, tmp_path / place)[0]["scores"] == whole["scores"]
    some, _ = evaluate(capsys, pictures, "--num-images", 100)
    assert (some["num_images"], some["drawn"]) == (100, "100 of 300")


def test_other_formats_are_looked_at_in_the_resolution_that_was_asked_for(tmp_path, capsys):
    random = np.random.default_rng(0)
    for index in range(70):
        suffix, side = (("png", 20), ("jpg", 24), ("webp", 16))[index % 3]
        pixels = random.integers(0, 255, (side, side + 4, 3), np.uint8)
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "x" / f"{index:03}.{suffix}")
    _, said = evaluate(capsys, tmp_path / "x", code=2)
    assert "000.png has 24x20 pixels, 001.jpg 28x24" in said and "--resolution" in said
    result, _ = evaluate(capsys, tmp_path / "x", "--resolution", 16)
    assert (result["feature_space"], result["resolution"]) == ("emoji-cnn", 16)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", 4], "--steps is for networks"),
        (["--trials", 2], "--trials is for networks"),
        (["--num-images", 400], "holds 300 images, --num-images asks for 400"),
        (["--metrics", "fdd"], "unknown metric 'fdd'"),
        (["--feature-space", "lite"], "unknown feature extractor 'lite'"),
        (["--feature-space", "emoji-cnn"], "images of shape"),
        (["--feature-space", "lite0"], "reference"),
        (["--metrics", "pr"], "need real images"),
        (["--metrics", "clip"], "--clip-weights"),
        (["--reference", "nowhere"], "nowhere"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_choices_are_refused_before_pictures_are_looked_at(made, capsys, flags, words):
    _, said = evaluate(capsys, made[1], *flags, code=2)
    assert words in said
    assert not list(Path("cache").glob("evaluations/*/*.npz"))


def test_damaged_pictures_few_pictures_and_networks_options(made, capsys, tmp_path):
    network, pictures = made
    assert (
        "--resolution is for a folder of images"
        in evaluate(capsys, network, "--resolution", 8, code=2)[1]
    )
    shutil.copytree(pictures, tmp_path / "damaged")
    file = tmp_path / "damaged" / "seed000042.png"
    file.write_bytes(file.read_bytes()[:-20])
    assert (
        "seed000042.png (sample 42): a damaged PNG"
        in evaluate(capsys, tmp_path / "damaged", code=2)[1]
    )
    (tmp_path / "few").mkdir()
    shutil.copy(pictures / "seed000000.png", tmp_path / "few")
    assert (
        "holds 1 images; scores need at least 65" in evaluate(capsys, tmp_path / "few", code=2)[1]
    )


def test_captions_lie_beside_are_named_or_were_recorded(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name)
    assert open_pictures(str(folder), with_captions=True).captions is None
    (tmp_path / "p.txt").write_bytes("\ufeffone\r\ntwo \u2028 of them\r\nthree\r\n".encode())
    found = open_pictures(str(folder), prompts=tmp_path / "p.txt")
    assert found.captions == ["one", "two \u2028 of them", "three"]
    (folder / "a.txt").write_text("a cat\n")
    with pytest.raises(UserError, match=r"b.png \(sample 1\): there is no b.txt beside it"):
        open_pictures(str(folder), with_captions=True)
    for name in ("b", "c"):
        (folder / f"{name}.txt").write_text(name)
    assert open_pictures(str(folder), with_captions=True).captions == ["a cat", "b", "c"]
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"holds 2 prompts, .* 3 images"):
        open_pictures(str(folder), prompts=tmp_path / "p.txt")
    made = tmp_path / "made"
    made.mkdir()
    for seed in (4, 7):
        Image.new("RGB", (4, 4)).save(made / f"seed{seed:06}.png")
    record = {"format": 1, "network": "x", "made_of": {"prompts": ["even", "odd"]}}
    (made / "generated.json").write_text(json.dumps(record))
    assert open_pictures(str(made), with_captions=True).captions == ["even", "odd"]


def test_what_is_missing_is_named_by_flags_that_the_command_has(capsys, tmp_path):
    for index in range(70):
        pixels = np.full((9, 9), index, np.uint8)
        (tmp_path / "odd").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "odd" / f"{index}.png")
    _, said = evaluate(capsys, "odd", code=2)
    assert "--reference is empty" in said and "evaluation." not in said
    (tmp_path / "file.zip").write_bytes(b"PK")
    _, said = evaluate(capsys, "odd", "--reference", "file.zip", code=2)
    assert said.startswith("sid-ray: --reference: ") and "is no prepared data set" in said
    _, said = evaluate(capsys, "odd", "--metrics", "clip", code=2)
    assert "--clip-weights" in said
