"""Every published layout loads exactly: keys, order, dtype, values; and says what network it is."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sid_ray.denoisers.edm import EDMDenoiser
from sid_ray.errors import UserError
from sid_ray.weights import command, networks
from sid_ray.weights.folder import ModelDescription, load_model, save_model
from sid_ray.weights.formats import read_weights
from tests.support import weights_writer as writer

CLASSES = {
    "edm_snapshot": "EDMPrecond",
    "edm_training_state": "EDMPrecond",
    "edm2_snapshot": "Precond",
    "sid_snapshot": "EDMPrecond",
    "sid_snapshot_protocol_2": "EDMPrecond",
    "sida_snapshot": "EDMPrecond_EncoderDecoder",
    "sida_edm2_snapshot": "EDM_2_Precond_Generator",
    "sid_training_state": "EDMPrecond",
    "lsg_snapshot": "UNet2DConditionModel",
    "lsg_training_state": "UNet2DConditionModel",
}


@pytest.fixture
def written(tmp_path):
    def write(name, suffix=".pkl"):
        data, expected = writer.LAYOUTS[name]()
        path = tmp_path / (name + suffix)
        path.write_bytes(data)
        return path, expected

    return write


@pytest.mark.parametrize("layout", writer.LAYOUTS)
def test_layout_loads_exactly(layout, written):
    path, expected = written(layout)
    before = set(sys.modules)
    loaded = read_weights(path)
    assert list(loaded.tensors) == list(expected)
    for name, value in expected.items():
        assert loaded.tensors[name].dtype == value.dtype
        assert torch.equal(loaded.tensors[name], value)
    assert loaded.class_name == CLASSES.get(layout, "")
    assert set(sys.modules) == before, "reading imports nothing that a file names"


def test_recorded_arguments_are_plain_json(written):
    assert read_weights(written("edm2_snapshot")[0]).arguments == writer.EDM2_ARGUMENTS
    found = read_weights(written("sida_snapshot")[0]).arguments
    assert found["model_type"] == "SongUNet_EncoderDecoder"
    assert json.loads(json.dumps(found)) == found
    assert read_weights(written("lsg_snapshot")[0]).arguments == {
        "sample_size": 64,
        "act_fn": "silu",
    }


def test_buffers_are_told_from_parameters(written):
    loaded = read_weights(written("edm2_snapshot")[0])
    assert loaded.buffers == {
        "unet.emb_fourier.freqs",
        "unet.emb_fourier.phases",
        "logvar_fourier.freqs",
        "logvar_fourier.phases",
    }


@pytest.mark.parametrize("part,seed", [("ema", 0), ("fake_score", 1), ("G", 2), (None, 0)])
@pytest.mark.parametrize("layout", ["sid_training_state", "sida_training_state"])
def test_part_of_a_training_state(layout, part, seed, written):
    loaded = read_weights(written(layout)[0], part)
    expected = writer.edm_network(seed).state_dict()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in expected.items())


def test_part_that_is_not_there(written):
    with pytest.raises(UserError, match=r"no part 'fake_score' in .* it holds: .*ema"):
        read_weights(written("edm_snapshot")[0], "fake_score")
    with pytest.raises(UserError, match="known: ema, G, fake_score, net"):
        read_weights(written("edm_snapshot")[0], "EMA")


@pytest.mark.parametrize("layout", ["edm_snapshot", "sida_snapshot", "sid_training_state"])
def test_network_is_built_from_its_own_record(layout, written):
    path, expected = written(layout)
    model, description = load_model(path)
    assert isinstance(model, EDMDenoiser) and description.family == "edm"
    assert all(torch.equal(model.state_dict()[n], v) for n, v in expected.items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_bare_state_dict_borrows_its_network(written):
    path, expected = written("sida_training_state", ".pt")
    teacher, _ = written("edm_snapshot")
    with pytest.raises(UserError, match="--like"):
        networks.load(str(path))
    model, description = networks.load(str(path), like=str(teacher))
    assert description.network["model_channels"] == 16
    assert all(torch.equal(model.state_dict()[n], v) for n, v in expected.items())


def test_half_precision_loads_as_float32(tmp_path):
    module = writer.edm_module().half()
    path = tmp_path / "half.pkl"
    path.write_bytes(writer.pickled({"ema": module}))
    model, _ = load_model(path)
    halved = {n: v.half().float() for n, v in writer.edm_network().state_dict().items()}
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[n], v) for n, v in halved.items())


def test_a_record_that_does_not_fit_its_tensors_is_named(written):
    with pytest.raises(UserError, match=r"does not fit the network: .* the first is 'unet\."):
        networks.load(str(written("lsg_snapshot")[0]))


LSG = Path(__file__).parents[1] / "reference" / "lsg"


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(str(LSG / "tiny_unet"))


def same_network(model, unet) -> None:
    found, expected = model.unet.state_dict(), unet.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_pickled_unet_of_diffusers_becomes_a_denoiser(tmp_path, unet):
    """SiD-LSG's own layout, written with diffusers' real classes."""
    (tmp_path / "lsg.pkl").write_bytes(pickle.dumps({"ema": unet}))
    model, description = networks.load(str(tmp_path / "lsg.pkl"))
    assert description.family == "stable-diffusion"
    assert description.network["prediction_type"] == "epsilon"
    same_network(model, unet)
    command.convert(str(tmp_path / "lsg.pkl"), tmp_path / "net")
    converted, _ = load_model(tmp_path / "net")
    same_network(converted, unet)


def test_a_diffusers_folder_becomes_a_denoiser(tmp_path, unet):
    unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    text = json.dumps({"prediction_type": "v_prediction"})
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
    model, description = networks.load(str(tmp_path))
    assert description.network["prediction_type"] == model.prediction_type == "v_prediction"
    same_network(model, unet)


def test_network_folder_and_self_describing_file(tmp_path):
    description = ModelDescription("edm", writer.TINY, {"sigma": 2.5}, {"a": 1})
    net = writer.edm_network()
    save_model(tmp_path / "net", net.state_dict(), description)
    for source in (tmp_path / "net", tmp_path / "net" / "model.safetensors"):
        model, found = load_model(source)
        assert found == description
        assert torch.equal(
            model.state_dict()["model.map_layer0.weight"], net.model.map_layer0.weight
        )
    moved = tmp_path / "alone.safetensors"
    moved.write_bytes((tmp_path / "net" / "model.safetensors").read_bytes())
    assert load_model(moved)[1] == description


def test_diffusers_folder(tmp_path):
    unet = tmp_path / "sd" / "unet"
    unet.mkdir(parents=True)
    config = {"_class_name": "UNet2DConditionModel", "sample_size": 64}
    (unet / "config.json").write_text(json.dumps(config))
    values = {"conv_in.weight": torch.randn(2, 2), "conv_in.bias": torch.randn(2)}
    save_file(values, unet / "diffusion_pytorch_model.safetensors")
    for source in (tmp_path / "sd", unet):
        loaded = read_weights(source)
        assert (loaded.class_name, loaded.arguments) == (
            "UNet2DConditionModel",
            {"sample_size": 64},
        )
        assert all(torch.equal(loaded.tensors[n], v) for n, v in values.items())
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(values, unet / "diffusion_pytorch_model.bin")
    assert torch.equal(read_weights(unet).tensors["conv_in.bias"], values["conv_in.bias"])


def test_diffusers_folder_in_several_files(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    names = {
        "a": "diffusion_pytorch_model-1.safetensors",
        "b": "diffusion_pytorch_model-2.safetensors",
    }
    for key, name in names.items():
        save_file({key: torch.ones(2)}, tmp_path / name)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert set(read_weights(tmp_path).tensors) == {"a", "b"}
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(UserError, match="its own folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "name,value",
    [
        ("num_blocks", 10**9),
        ("num_blocks", 10**6),
        ("model_channels", 10**12),
        ("channel_mult", [2] * 100),
    ],
)
def test_recorded_arguments_beyond_reason(name, value, tmp_path):
    module = writer.edm_module()
    module.__dict__["_init_kwargs"][name] = value
    path = tmp_path / "large.pkl"
    path.write_bytes(writer.pickled({"ema": module}))
    with pytest.raises(UserError, match=name):
        load_model(path)


def test_arguments_that_do_not_fit_the_tensors(tmp_path):
    module = writer.edm_module()
    module.__dict__["_init_kwargs"]["model_channels"] = 20_000
    path = tmp_path / "wide.pkl"
    path.write_bytes(writer.pickled({"ema": module}))
    with pytest.raises(UserError, match=r"does not fit the network: .* the first is"):
        load_model(path)  # without making the wide network


@pytest.mark.parametrize("data", [b"", b"hello, this is no weights file", b"\x89PNG\r\n\x1a\n" * 4])
def test_other_files_are_told_apart(data, tmp_path):
    path = tmp_path / "other.bin"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
