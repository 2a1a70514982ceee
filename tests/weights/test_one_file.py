"""Pipelines in one file: the same tensors as in a folder, whatever they are called in the file."""

from __future__ import annotations

import json
import struct
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.config.distill_config import replace
from sid_ray.denoisers.autoencoder import load_vae
from sid_ray.denoisers.clip_text import load_encoder
from sid_ray.denoisers.ldm_checkpoint import ldm_pipeline
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.evaluation.judge import codec_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import find_start
from sid_ray.weights import networks
from sid_ray.weights.command import inspect
from sid_ray.weights.components import Named, component_folder, find_components
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.sources import resolve_source
from sid_ray.weights.teacher import resolve_teacher
from tests.denoisers.tiny_pipeline import END, write_tokenizer
from tests.support import ldm_files as ldm


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def write(path: Path, tensors) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in tensors.items()}, path)
    else:
        torch.save({"epoch": 3, "state_dict": tensors, "callbacks": {}}, path)
    return path


def version_2():
    unet, text = ldm.make_unet(ldm.SD2), ldm.make_text(1024, "gelu")
    tensors = ldm.with_upsamplers(ldm.ldm_unet(unet)) | ldm.ldm_open_clip(text)
    return unet, text, tensors


@pytest.mark.parametrize("name", ["v1-5.safetensors", "v1-5-pruned.ckpt"])
def test_version_1_is_its_parts(name, tmp_path):
    unet, text, vae = ldm.make_unet(), ldm.make_text(), ldm.make_vae()
    path = write(tmp_path / name, ldm.pipeline_in_one(unet, text, vae))
    model, description = networks.load(str(path))
    same(model.unet.state_dict(), unet.state_dict())
    assert description.network["sample_size"] == 64
    folder = resolve_source(str(path))
    same(load_encoder(folder).state_dict(), text.state_dict())
    same(load_vae(folder).state_dict(), vae.state_dict())
    assert (folder / "vae").is_dir() and load_vae(folder).config.scaling_factor == 0.18215
    x, prompt = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 64)
    with torch.no_grad():  # heads of attention and norms are in no tensor
        assert torch.equal(model.unet(x, 7, prompt).sample, unet(x, 7, prompt).sample)
        tokens = torch.tensor([[0, 5, 7, 2]])
        encoded = load_encoder(folder)(tokens).last_hidden_state
        assert torch.equal(encoded, text.eval()(tokens).last_hidden_state)


def test_version_2_and_what_it_predicts(tmp_path, capsys):
    """The shapes are the same at 512 (epsilon) and 768 pixels (v): the config is believed."""
    unet, text, tensors = version_2()
    path = write(tmp_path / "v2.safetensors", tensors)
    for predicts, size in (("epsilon", 64), ("v_prediction", 96)):
        config = replace(
            recipe("sd15-lsg-kappa3"), teacher__source=str(path), schedule__prediction_type=predicts
        )
        folder = resolve_teacher(config)
        model, description = networks.load(str(folder))
        same(model.unet.state_dict(), unet.state_dict())
        assert description.network["prediction_type"] == model.prediction_type == predicts
        assert description.network["sample_size"] == size
        assert f"does not say what its U-Net predicts: {predicts}" in capsys.readouterr().err
    same(load_encoder(folder).state_dict(), text.state_dict())
    x, prompt = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 1024)
    with torch.no_grad():
        assert torch.equal(model.unet(x, 7, prompt).sample, unet(x, 7, prompt).sample)


def test_xl_is_its_unet_and_two_text_encoders():
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    unet, vae, first = ldm.make_unet(ldm.SDXL), ldm.make_vae(), ldm.make_text(64)
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=1, projection_dim=48,
        )
    )  # fmt: skip
    tensors = ldm.with_upsamplers(ldm.ldm_unet(unet)) | ldm.ldm_vae(vae)
    tensors |= ldm.ldm_clip(first, "conditioner.embedders.0.transformer.")
    tensors |= ldm.ldm_open_clip(second, "conditioner.embedders.1.model.")
    parts = ldm_pipeline(tensors, "epsilon").parts
    same(parts["unet"].tensors, unet.state_dict())
    config = {k: v for k, v in parts["unet"].config.items() if k != "_class_name"}
    rebuilt = ldm.make_unet(config)
    rebuilt.load_state_dict(parts["unet"].tensors)
    x, prompt = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 96)
    added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)}
    with torch.no_grad():
        outputs = [net(x, 7, prompt, added_cond_kwargs=added).sample for net in (rebuilt, unet)]
    assert torch.equal(*outputs)
    same(parts["text_encoder_2"].tensors, ldm.old_names(second))
    assert parts["text_encoder_2"].config["projection_dim"] == 48
    assert set(parts["text_encoder"].tensors) == set(ldm.old_names(first))
    assert parts["vae"].config["scaling_factor"] == 0.13025


@pytest.mark.parametrize(
    ("suffix", "markers"),
    [(".safetensors", ()), (".safetensors", ("v_pred", "ztsnr")), (".ckpt", ("v_pred",))],
)
def test_markers_say_what_xl_predicts(markers, suffix, tmp_path, capsys):
    """A file without them is of epsilon as far as it says, and that is told."""
    tensors = ldm.with_upsamplers(ldm.ldm_unet(ldm.make_unet(ldm.SDXL)))
    path = write(tmp_path / f"xl{suffix}", tensors | {name: torch.tensor([]) for name in markers})
    folder = resolve_source(str(path))
    description = networks.describe(folder)
    predicts = "v_prediction" if markers else "epsilon"
    levels = family_of(description.family).noise.of_network(folder, description.network, 128)
    assert (description.family, description.network["prediction_type"]) == ("sdxl", predicts)
    assert levels.prediction_type == predicts and levels.rescale_zero_snr == ("ztsnr" in markers)
    line = "does not say what its U-Net predicts: epsilon at 1024 pixels is assumed"
    assert (line in capsys.readouterr().err) == (not markers)


def test_averaged_weights_are_taken(tmp_path):
    unet = ldm.make_unet()
    tensors = ldm.pipeline_in_one(unet)
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value + 1
        for name, value in tensors.items()
    }
    path = write(tmp_path / "full.ckpt", tensors | averaged | {"model_ema.decay": torch.ones(())})
    model, _ = networks.load(str(path))
    same(model.unet.state_dict(), {n: v + 1 for n, v in unet.state_dict().items()})


def test_half_precision_stays_in_the_folder(tmp_path):
    tensors = {n: v.half() for n, v in ldm.pipeline_in_one(ldm.make_unet()).items()}
    folder = resolve_source(str(write(tmp_path / "half.safetensors", tensors)))
    kinds = {v.dtype for v in networks.read(str(folder)).tensors.values()}
    assert kinds == {torch.float16}


def test_a_file_is_unpacked_once_and_again_where_it_changed(tmp_path):
    path = write(tmp_path / "a.safetensors", ldm.pipeline_in_one(ldm.make_unet()))
    first = resolve_source(str(path))
    weights = first / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert resolve_source(str(path)) == first and weights.stat().st_mtime_ns == before
    write(path, ldm.pipeline_in_one(ldm.make_unet(ldm.SD1, cross_attention_dim=32)))
    assert networks.describe(resolve_source(str(path))).network["cross_attention_dim"] == 32


# Beside the network -------------------------------------------------------------------------------


@pytest.fixture
def one_file(tmp_path) -> Path:
    vocabulary = len(write_tokenizer(tmp_path / "words" / "tokenizer", END))
    text = ldm.make_text(vocabulary=vocabulary)
    parts = ldm.make_unet(), text, ldm.make_vae()
    return write(tmp_path / "v1.safetensors", ldm.pipeline_in_one(*parts))


@pytest.mark.parametrize("given", ["words", "words/tokenizer"])
def test_a_tokenizer_from_elsewhere_serves_the_files_own_encoder(given, one_file, tmp_path):
    folder = resolve_source(str(one_file))
    named = Named(str(tmp_path / given), "", "--teacher.text-encoder", "--teacher.vae")
    found = find_components(networks.describe(folder), folder, named)
    assert (found.text / "text_encoder").resolve() == folder / "text_encoder"
    assert (found.text / "tokenizer").resolve() == tmp_path / "words" / "tokenizer"
    assert found.vae == folder


def test_a_lora_on_one_file(one_file, tmp_path):
    name = "unet.mid_block.attentions.0.proj_in"
    halves = {
        f"{name}.lora_A.weight": torch.ones(1, 64),
        f"{name}.lora_B.weight": torch.ones(64, 1),
    }
    save_file(halves, tmp_path / "style.safetensors")
    config = replace(
        recipe("sd15-lsg-kappa3"),
        teacher__source=str(one_file),
        teacher__lora=str(tmp_path / "style.safetensors"),
        teacher__text_encoder=str(tmp_path / "words"),
    )
    start = find_start(config, with_data=False)
    key = "unet.mid_block.attentions.0.proj_in.weight"
    found, own = (networks.load_path(p)[0] for p in (start.teacher, resolve_source(str(one_file))))
    close = torch.testing.assert_close
    close(found.state_dict()[key], own.state_dict()[key] + 1, rtol=0, atol=1e-6)
    assert (start.components.text / "tokenizer").resolve() == tmp_path / "words" / "tokenizer"


def test_without_a_tokenizer_the_line_says_which(one_file, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = replace(recipe("sd15-lsg-kappa3"), teacher__source=str(one_file))
    with pytest.raises(UserError) as caught:
        find_start(config, with_data=False)
    line = str(caught.value)
    assert "v1.safetensors holds text encoders, and no tokenizer" in line and "\n" not in line
    assert "--teacher.text-encoder FOLDER with the tokenizer of hf://stable-diffusion-v1-5" in line


@pytest.mark.parametrize("names", ["old", "old with prefix", "diffusers"])
def test_a_vae_alone_in_a_file(names, tmp_path):
    vae = ldm.make_vae()
    tensors = vae.state_dict()
    if names != "diffusers":
        tensors = ldm.ldm_vae(vae, "first_stage_model." if "prefix" in names else "")
    path = write(tmp_path / "vae.safetensors", tensors)
    found = load_vae(component_folder(str(path), "vae"))
    same(found.state_dict(), vae.state_dict())
    x = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(found.decode(x).sample, vae.decode(x).sample)


def test_a_vae_alone_does_not_pass_for_one_of_another_scale(one_file, tmp_path):
    path = write(tmp_path / "vae.safetensors", ldm.ldm_vae(ldm.make_vae(), ""))
    folder = resolve_source(str(one_file))
    description, words = networks.describe(folder), str(tmp_path / "words")
    assert find_components(description, folder, Named(words, str(path))).vae.name == "vae"
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.13025"))
    with pytest.raises(UserError, match="does not say how its latents are scaled"):
        find_components(description, folder, Named(words, str(path)))


@pytest.mark.parametrize(("family", "expected"), [("stable-diffusion", 0.18215), ("sdxl", 0.13025)])
def test_a_vae_alone_is_scaled_as_the_networks_family_is(family, expected, tmp_path):
    """A generator's folder holds no VAE that could say it."""
    path = str(write(tmp_path / "vae.safetensors", ldm.make_vae().state_dict()))
    network = ldm.SDXL if family == "sdxl" else ldm.SD1
    found = codec_of(ModelDescription(family, network), path)
    assert found.scale == (expected,)
    folder = component_folder(path, "vae")
    assert family_of(family).latents.standard(folder).scale == (expected,)


def test_a_vae_alone_that_must_say_its_shift_is_refused(tmp_path):
    vae = ldm.make_vae(latent_channels=16)
    path = write(tmp_path / "vae.safetensors", vae.state_dict())
    with pytest.raises(UserError, match="does not say how its latents are scaled"):
        codec_of(ModelDescription("sd3", {"in_channels": 16}), str(path))


# Files that cannot be used ------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        networks.load(str(path))
    line = str(caught.value)
    assert "\n" not in line and path.name.partition(".")[0] in line
    return line


def test_inpainting_is_told_before_anything_is_written(tmp_path):
    unet = ldm.make_unet(in_channels=9)
    path = write(tmp_path / "inpaint.safetensors", ldm.pipeline_in_one(unet))
    assert "9 input and 4 output channels: inpainting" in refusal(path)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("missing", ["input_blocks.4.", "middle_block.1.", "input_blocks.0.0.bias"])
def test_a_checkpoint_that_is_not_whole(missing, tmp_path):
    tensors = ldm.pipeline_in_one(ldm.make_unet())
    prefix = "model.diffusion_model." + missing
    kept = {n: v for n, v in tensors.items() if not n.startswith(prefix)}
    line = refusal(write(tmp_path / "part.safetensors", kept))
    assert "no whole checkpoint" in line or "it lacks 1 tensor" in line


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.ckpt"])
def test_a_checkpoint_that_is_cut(name, tmp_path):
    path = write(tmp_path / name, ldm.pipeline_in_one(ldm.make_unet()))
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cut" in refusal(path)


def test_shapes_beyond_reason_make_nothing(tmp_path):
    """A file whose header asks for more than it holds, in a name that decides the config."""
    tensors = ldm.pipeline_in_one(ldm.make_unet())
    path = write(tmp_path / "huge.safetensors", tensors)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["model.diffusion_model.input_blocks.0.0.weight"]["shape"] = [2**40, 4, 3, 3]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    assert "not a whole safetensors file" in refusal(path)
    wide = {n: v for n, v in tensors.items() if "attn2.to_k" not in n}
    keys = [n for n in tensors if "attn2.to_k" in n]
    wide |= {n: torch.empty(1, 10**6) for n in keys}
    assert "which no network has" in refusal(write(tmp_path / "wide.safetensors", wide))


class Runs:
    """Unpickled naively it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    values = {"state_dict": ldm.pipeline_in_one(ldm.make_unet()), "x": Runs(tmp_path / "ran")}
    torch.save(values, path)
    assert "nothing was run" in refusal(path)
    with pytest.raises(UserError, match="nothing was run"):
        list(inspect(str(path)))
    assert not (tmp_path / "ran").exists()


class Callback:
    """Its class is a key of what pytorch_lightning saves beside the tensors."""


def test_classes_of_callbacks_are_read_as_names(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for module in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(Callback, "__module__", name)
    sys.modules[name].Callback = Callback
    unet = ldm.make_unet()
    path = tmp_path / "sd-v1-4.ckpt"
    values = {"state_dict": ldm.pipeline_in_one(unet), "callbacks": {Callback: {"best": 1.0}}}
    torch.save(values, path)
    same(networks.load(str(path))[0].unet.state_dict(), unet.state_dict())
