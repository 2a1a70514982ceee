"""Weights in several files and in variants: the same tensors as in one file, or a refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.denoisers.clip_text import load_encoder
from sid_ray.errors import UserError
from sid_ray.tensor_files.tensors import read_component
from sid_ray.weights import networks
from sid_ray.weights.fetch import network_files
from tests.denoisers.tiny_pipeline import write_pipeline

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "pipeline"
    write_pipeline(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pipeline"))


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def saved_by_diffusers(folder: Path, **options) -> dict:
    """The U-Net saved again by the library itself; its tensors."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", **options)
    return unet.state_dict()


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_as_diffusers_writes_them(variant, pickled, folder):
    options = {"variant": variant, "safe_serialization": not pickled, "max_shard_size": "20KB"}
    expected = saved_by_diffusers(folder, **options)
    names = [path.name for path in (folder / "unet").iterdir()]
    assert len(names) > 3 and any(".index." in name for name in names)
    same(networks.load(str(folder))[0].unet.state_dict(), expected)
    assert networks.read(str(folder)).notes == ({"variant": variant} if variant else {})


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_as_transformers_writes_them(variant, folder):
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    (folder / "text_encoder" / "model.safetensors").unlink()
    text.save_pretrained(folder / "text_encoder", max_shard_size="10KB", variant=variant)
    assert list((folder / "text_encoder").glob("model.safetensors.index*.json"))
    same(load_encoder(folder).state_dict(), text.state_dict())


def test_the_older_name_of_a_variants_index(folder):
    saved_by_diffusers(folder, variant="fp16", max_shard_size="20KB")
    index = next((folder / "unet").glob("*.index.*"))
    before = networks.read(str(folder)).tensors
    index.rename(folder / "unet" / f"{STEM}.fp16.safetensors.index.json")
    same(networks.read(str(folder)).tensors, before)


def test_whole_precision_is_taken_before_a_variant(folder):
    weights = load_file(folder / "unet" / f"{STEM}.safetensors")
    halved = {name: value.half() for name, value in weights.items()}
    save_file(halved, folder / "unet" / f"{STEM}.fp16.safetensors")
    same(networks.read(str(folder)).tensors, weights)
    (folder / "unet" / f"{STEM}.safetensors").unlink()
    same(networks.read(str(folder)).tensors, halved)
    torch.save(weights, folder / "unet" / f"{STEM}.bin")  # whole, though pickled
    same(networks.read(str(folder)).tensors, weights)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("form", ["one", "shards"])
def test_of_the_hub_a_variant_alone_is_fetched(form, ending):
    """And beside the whole weights it is left there."""
    numbers = [""] if form == "one" else ["-00001-of-00002", "-00002-of-00002"]

    def names(variant: str) -> list[str]:
        found = [f"unet/{STEM}{variant}{number}.{ending}" for number in numbers]
        return found + ([f"unet/{STEM}.{ending}.index{variant}.json"] if len(numbers) > 1 else [])

    half, whole = names(".fp16"), names("")
    config = ["model_index.json", "unet/config.json"]
    assert set(network_files([*config, *half])) == {*config, *half}
    kept = set(network_files([*config, *half, *whole])) - {n for n in half if n.endswith(".json")}
    assert kept == {*config, *whole}


# Shards that are none -----------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path) -> Path:
    names = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    for name, file in names.items():
        save_file({name: torch.ones(40)}, tmp_path / file)
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def refused(folder: Path) -> str:
    lines = []
    for numbers in (True, False):
        with pytest.raises(UserError) as caught:
            read_component(folder, ("m",), numbers)
        lines.append(str(caught.value))
    assert "\n" not in lines[0] and str(folder) in lines[0]
    return lines[0]


def listed(folder: Path, **names) -> None:
    text = json.dumps({"weight_map": names})
    (folder / "m.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    "name", ["../m-1.safetensors", "/etc/passwd", "..", ".", "", "sub/m-1.safetensors", 3, None]
)
def test_an_index_names_files_of_its_own_folder(name, shards):
    listed(shards, a="m-1.safetensors", b=name)
    assert "does not list files of its own folder" in refused(shards)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "not"])
def test_an_index_that_is_none(text, shards):
    (shards / "m.safetensors.index.json").write_text(text)
    assert "index.json" in refused(shards)


def test_a_shard_that_is_missing(shards):
    (shards / "m-2.safetensors").unlink()
    assert "no weights at" in refused(shards) and "m-2.safetensors" in refused(shards)


def test_a_shard_that_is_cut(shards):
    path = shards / "m-2.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    assert "m-2.safetensors is not a whole safetensors file" in refused(shards)


def test_shards_of_two_networks(shards):
    listed(shards, a="m-1.safetensors", b="m-2.safetensors", c="m-2.safetensors")
    assert "says that m-2.safetensors holds 'c', which lies in none of its files" in refused(shards)
    listed(shards, a="m-2.safetensors", b="m-1.safetensors")
    assert "holds 'a', which lies in m-1.safetensors" in refused(shards)
    listed(shards, a="m-1.safetensors", b="m-2.safetensors")
    save_file({"a": torch.zeros(1), "b": torch.ones(1)}, shards / "m-2.safetensors")
    assert "'a' lies in m-1.safetensors and in m-2.safetensors" in refused(shards)
