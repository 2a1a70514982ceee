"""A diffusers folder from end to end: loading, text, codec, images; and what a damaged one says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.denoisers.autoencoder import load_vae
from sid_ray.denoisers.clip_text import load_text, load_tokenizer
from sid_ray.denoisers.codecs import stable_diffusion_codec
from sid_ray.denoisers.guidance import Guided
from sid_ray.denoisers.stable_diffusion import load_denoiser, load_schedule
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import few_step
from sid_ray.types import Condition
from tests.denoisers.tiny_pipeline import END, START, write_pipeline, write_tokenizer

TEXT_WEIGHTS = "text_encoder/model.safetensors"


def load_whole(folder: Path, **timesteps: int) -> SimpleNamespace:
    schedule = load_schedule(folder, **timesteps)
    return SimpleNamespace(
        schedule=schedule,
        denoiser=load_denoiser(folder, schedule.prediction_type),
        codec=stable_diffusion_codec(load_vae(folder)),
        text=load_text(folder),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "pipeline"
    write_pipeline(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "pipeline"))


def test_from_a_prompt_to_pixels(made):
    pipeline = load_whole(made, t_max=900)
    assert pipeline.schedule.t_max == 900
    for module in (pipeline.denoiser, pipeline.codec.vae):
        assert not module.training
        assert {(p.requires_grad, p.dtype) for p in module.parameters()} == {(False, torch.float32)}
    text = pipeline.text.embed(["a photo of a cat", "a red dog"])
    assert text.shape == (2, 77, 24)
    latents = torch.randn(2, *pipeline.denoiser.latent_shape)
    generator = Guided(pipeline.denoiser, 1.5, pipeline.text.null())
    noises = [torch.randn_like(latents)]
    y = few_step(generator, pipeline.schedule, latents, Condition(text=text), 2, noises)
    pixels = pipeline.codec.decode_uint8(y)
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == torch.uint8


def test_the_denoiser_is_the_folders(made):
    denoiser = load_denoiser(made)
    saved = load_file(made / "unet" / "diffusion_pytorch_model.safetensors")
    found = denoiser.unet.state_dict()
    assert found.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in found.items())


def test_v_prediction_comes_from_the_scheduler(tmp_path):
    write_pipeline(tmp_path / "v", prediction_type="v_prediction")
    pipeline = load_whole(tmp_path / "v")
    assert pipeline.schedule.prediction_type == "v_prediction"
    assert pipeline.denoiser.prediction_type == "v_prediction"


# Text


def test_prompts_are_encoded_once_and_as_transformers_would(made):
    from transformers import CLIPTextModel, CLIPTokenizer

    text, calls = load_text(made, batch=2), []
    encode = text.encode
    text.encode = lambda tokens: calls.append(len(tokens)) or encode(tokens)
    first = text.embed(["a cat", "a dog", "a cat"])
    again = text.embed(["a dog", "", "a cat"])
    assert calls == [2, 2]  # cat and dog; the empty prompt
    assert torch.equal(first[0], first[2])
    assert torch.equal(again[0], first[1])
    assert torch.equal(again[1], text.null())

    tokenizer = CLIPTokenizer.from_pretrained(made / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(made / "text_encoder").eval()
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    tokens = tokenizer(["a cat", "a dog"], return_tensors="pt", **options).input_ids
    with torch.no_grad():
        expected = encoder(tokens).last_hidden_state
    assert torch.equal(first[:2], expected)


@pytest.mark.parametrize(("pad", "index"), [(END, -1), ("!", 0)], ids=["SD 1.5", "SD 2"])
@pytest.mark.parametrize("layout", ["hub", "saved"])
def test_padding_is_the_tokenizers_own(made, tmp_path, pad, index, layout):
    """SD 2 pads with "!", although its tokenizer_config.json names the end token."""
    shutil.copytree(made / "text_encoder", tmp_path / "text_encoder")
    vocabulary = write_tokenizer(tmp_path / "tokenizer", pad)
    if layout == "saved":
        tokenizer = load_tokenizer(tmp_path / "tokenizer")
        shutil.rmtree(tmp_path / "tokenizer")
        tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokens = load_text(tmp_path).tokenize(["a cat", "a " * 200])
    start, end = vocabulary[START], vocabulary[END]
    ids = [vocabulary["a</w>"], vocabulary["cat</w>"]]
    padding = list(vocabulary.values())[index]
    assert tokens[0].tolist() == [start, *ids, end] + [padding] * 73
    assert tokens[1].tolist() == [start] + [ids[0]] * 75 + [end]


def test_hub_names_of_the_text_encoder_load(made, folder):
    """Hub files prefix the names with text_model., and older ones hold position_ids."""
    weights = load_file(folder / TEXT_WEIGHTS)
    old = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, folder / TEXT_WEIGHTS)
    found, expected = (load_text(path).embed(["a red dog"]) for path in (folder, made))
    assert torch.equal(found, expected)


# Weights


def test_old_names_of_the_vaes_attention_load(made, folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in load_file(path).items():
        if "mid_block.attentions" in name:
            for new, before in names.items():
                name = name.replace(f".{new}.", f".{before}.")
        old[name] = value
    assert any("proj_attn" in name for name in old)
    save_file(old, path)
    expected = load_vae(made).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in load_vae(folder).state_dict().items())


def test_a_vae_alone_in_a_folder_loads(made):
    assert parameters_of(load_vae(made / "vae")) == parameters_of(load_vae(made))


def parameters_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


BIN = [
    ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model", load_denoiser),
    ("text_encoder", "model", "pytorch_model", load_text),
]


@pytest.mark.parametrize(("part", "stem", "bin_stem", "load"), BIN, ids=["unet", "text"])
def test_a_bin_file_is_read_without_executing_it(made, folder, part, stem, bin_stem, load):
    weights = load_file(folder / part / f"{stem}.safetensors")
    (folder / part / f"{stem}.safetensors").unlink()
    torch.save(weights, folder / part / f"{bin_stem}.bin")
    loaded = load(folder)
    if part == "unet":
        expected = load(made).state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    else:
        assert torch.equal(loaded.embed(["a cat"]), load(made).embed(["a cat"]))


class Hostile:
    """Unpickling it runs a command that leaves a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize(("part", "stem", "bin_stem", "load"), BIN, ids=["unet", "text"])
def test_a_hostile_bin_file_is_refused(folder, tmp_path, part, stem, bin_stem, load):
    (folder / part / f"{stem}.safetensors").unlink()
    trace = tmp_path / "executed"
    torch.save({"conv_in.weight": Hostile(trace)}, folder / part / f"{bin_stem}.bin")
    with pytest.raises(UserError, match=f"{part}.* was not loaded: ") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(("part", "load"), [("unet", load_denoiser), ("text_encoder", load_text)])
@pytest.mark.parametrize("damage", ["truncated", "missing", "unknown", "shape"])
def test_damaged_weights_are_named(folder, part, load, damage):
    path = next((folder / part).glob("*.safetensors"))
    weights = load_file(path)
    name = next(n for n, v in sorted(weights.items()) if v.ndim == 2)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        message = "is not a whole safetensors file"
    elif damage == "missing":
        del weights[name]
        message = f"it lacks 1 tensor, the first is '.*{name.removeprefix('text_model.')}'"
    elif damage == "unknown":
        weights["nonsense"] = torch.zeros(1)
        message = "it holds 1 tensor unknown, the first is '.*nonsense'"
    else:
        weights[name] = torch.zeros(weights[name].shape[0] + 1, weights[name].shape[1])
        message = "it holds 1 tensor of another shape"
    if damage != "truncated":
        save_file(weights, path)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


# What is missing


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("unet", "no UNet2DConditionModel in .*config.json is missing"),
        ("vae", "no AutoencoderKL in .*config.json is missing"),
        ("text_encoder", "no CLIPTextModel in .*text_encoder: config.json is missing"),
        ("tokenizer", "no tokenizer in .*vocab.json is missing"),
        ("tokenizer/merges.txt", "no tokenizer in .*merges.txt is missing"),
        ("scheduler", "no scheduler at .*scheduler_config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "no weights in .*diffusion_pytorch_model.saf"),
        (TEXT_WEIGHTS, "no weights in .*text_encoder: model.safetensors is missing"),
    ],
)
def test_a_missing_part_is_named(folder, gone, message):
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message) as caught:
        load_whole(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"_class_name": "SD3Transformer2DModel"}, "SD3.*expected UNet2DConditionModel"),
        ("unet", {"addition_embed_type": "text_time"}, "config.json: U-Net option 'addition_emb"),
        (
            "vae",
            {"_class_name": "AutoencoderDC"},
            "describes AutoencoderDC, expected AutoencoderKL",
        ),
        ("vae", {"shift_factor": 0.1}, "VAE option 'shift_factor' is not supported"),
        ("text_encoder", {"architectures": ["T5EncoderModel"]}, "T5.*expected CLIPTextModel"),
        ("text_encoder", {"quantization_config": {}}, "quantised weights are not supported"),
    ],
)
def test_a_config_of_something_else_is_refused(folder, part, change, message):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        load_whole(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / "vae" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not"):
        load_whole(folder)
