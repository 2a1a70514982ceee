"""SDXL: its denoiser against diffusers' own U-Net, its prompts against diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.prompt_layout import Prompt
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.registry import family_of, from_official
from sid_ray.denoisers.sdxl import SDXLDenoiser, build_sdxl
from sid_ray.denoisers.sdxl_text import layout_of_encoders
from sid_ray.diffusion.schedules import DiscreteVPSchedule
from sid_ray.errors import UserError
from sid_ray.types import Condition, Want
from sid_ray.weights.components import fingerprint_of_text
from sid_ray.weights.description import Components
from tests.denoisers.tiny_pipeline import UNET, write_xl_pipeline, xl_unet

NARROW = UNET | xl_unet(24, 12)
# The hub's config; what is not listed is the class's default.
SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
LIKE_SDXL = SDXL | {
    "block_out_channels": [16, 32, 32],
    "attention_head_dim": [1, 2, 2],
    "transformer_layers_per_block": [1, 1, 2],
    "cross_attention_dim": 24,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 60,
    "norm_num_groups": 8,
}


def family():
    return family_of("sdxl")


def made(network: dict) -> SDXLDenoiser:
    torch.manual_seed(0)
    denoiser = build_sdxl(network)
    assert isinstance(denoiser, SDXLDenoiser)
    return denoiser.eval()


def inputs(denoiser: SDXLDenoiser, size: int = 16) -> tuple[Tensor, Tensor, Prompt]:
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 77, 24, generator=rng)
    prompt = Prompt(tokens, torch.randn(2, 12, generator=rng))
    return torch.randn(2, 4, size, size, generator=rng), torch.tensor([20, 979]), prompt


@pytest.mark.parametrize(
    ("network", "size"),
    [(NARROW, 16), (NARROW, 15), (LIKE_SDXL, 16)],
    ids=["even", "odd", "levels"],
)
def test_raw_is_the_unets_own_forward_to_the_bit(network, size):
    denoiser = made(network)
    x_t, t, prompt = inputs(denoiser, size)
    side = 8.0 * network["sample_size"]
    told = {
        "text_embeds": prompt.pooled,
        "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * 2),
    }
    cond = Condition(text=denoiser.layout.pack(prompt))
    with torch.no_grad():
        out = denoiser(x_t, DiscreteVPSchedule().level(t), cond, Want.RAW | Want.LOGITS)
        theirs = denoiser.unet(
            x_t, t, encoder_hidden_states=prompt.tokens, added_cond_kwargs=told
        ).sample
        other = denoiser.unet(
            x_t, t, encoder_hidden_states=prompt.tokens,
            added_cond_kwargs=told | {"time_ids": told["time_ids"].roll(2, 1)},
        ).sample  # fmt: skip
    assert torch.equal(out.raw, theirs)
    assert not torch.equal(other, theirs), "sizes change nothing: the comparison shows nothing"


def test_nothing_of_the_sizes_is_state():
    denoiser = made(NARROW)
    assert list(denoiser.buffers()) == []
    assert all(name.startswith("unet.") for name in denoiser.state_dict())
    assert "unet.add_embedding.linear_1.weight" in denoiser.state_dict()


def test_logits_are_the_channel_mean_of_the_mid_block_for_real_images_too():
    """Real images with prompts of their own are told those, pooled ones included."""
    denoiser = made(NARROW)
    x_t, t, prompt = inputs(denoiser)
    level, text = DiscreteVPSchedule().level(t), denoiser.layout.pack(prompt)
    real, real_text = x_t.flip(0), text.flip(0) * 2
    cond = Condition(text=text, real=real, real_text=real_text)
    with torch.no_grad():
        both = denoiser(x_t, level, cond, Want.X0 | Want.LOGITS)
        alone = denoiser(x_t, level, Condition(text=text), Want.X0 | Want.LOGITS)
        apart = denoiser(real, level, Condition(text=real_text), Want.LOGITS)
    assert alone.logits.shape == (2, 1, 8, 8)
    torch.testing.assert_close(both.logits, alone.logits)
    torch.testing.assert_close(both.x0, alone.x0)
    torch.testing.assert_close(both.real_logits, apart.logits)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_x0_is_the_schedules(prediction_type):
    denoiser = made(NARROW | {"prediction_type": prediction_type})
    x_t, t, prompt = inputs(denoiser)
    level = DiscreteVPSchedule(prediction_type=prediction_type).level(t)
    with torch.no_grad():
        out = denoiser(x_t, level, Condition(text=denoiser.layout.pack(prompt)), Want.X0 | Want.RAW)
    alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in (level.alpha, level.sigma))
    velocity = alpha * x_t - sigma * out.raw
    expected = (x_t - sigma * out.raw) / alpha if prediction_type == "epsilon" else velocity
    assert torch.equal(out.x0, expected)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near_and_embeddings_keep_theirs(precision):
    denoiser = made(NARROW)
    x_t, t, prompt = inputs(denoiser)
    level, cond = DiscreteVPSchedule().level(t), Condition(text=denoiser.layout.pack(prompt))
    seen = []
    hook = denoiser.unet.add_embedding.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        wide = denoiser(x_t, level, cond).x0
        set_precision(denoiser, precision)
        half = denoiser(x_t, level, cond).x0
    hook.remove()
    assert half.dtype == torch.float32 and {value.dtype for value in seen} == {torch.float32}
    assert 0 < float((half - wide).norm() / wide.norm()) < 0.05


def test_recomputed_blocks_change_no_gradient():
    denoiser, gradients = made(NARROW), []
    x_t, t, prompt = inputs(denoiser)
    level, cond = DiscreteVPSchedule().level(t), Condition(text=denoiser.layout.pack(prompt))
    for recompute in (False, True):
        set_recompute(denoiser, recompute)
        x = x_t.clone().requires_grad_()
        denoiser(x, level, cond).x0.square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_the_unet_has_the_published_number_of_parameters():
    with torch.device("meta"):
        denoiser = family().build(SDXL)
    assert sum(value.numel() for value in denoiser.parameters()) == 2_567_463_684
    assert len(denoiser.state_dict()) == 1680
    assert denoiser.latent_shape == family().shape(SDXL) == (4, 128, 128)
    assert family().text_shape(SDXL) == (78, 2048)


# Which family takes a U-Net, and what is refused


@pytest.mark.parametrize(
    ("network", "name"), [(SDXL, "sdxl"), (UNET, "stable-diffusion")], ids=["sdxl", "sd"]
)
def test_a_unet_is_taken_by_what_its_config_says(network, name):
    found, arguments = from_official("UNet2DConditionModel", network)
    assert (found, arguments["prediction_type"]) == (name, "epsilon")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "9 input and 4 output channels: inpainting"),
        (
            {"cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560},
            "is SDXL's refiner",
        ),
        (
            {"projection_class_embeddings_input_dim": None},
            r"are \[None, 256, 2048\]; whole numbers",
        ),
        ({"projection_class_embeddings_input_dim": 1536}, "more than 6 times 256 are expected"),
        ({"time_cond_proj_dim": 256}, "U-Net option 'time_cond_proj_dim' = 256 is not supported"),
        ({"addition_embed_type": "image"}, 'expected "text_time"'),
    ],
)
def test_what_is_no_base_model_is_refused_in_one_line(change, message):
    with torch.device("meta"), pytest.raises(UserError, match=message) as caught:
        family().build(SDXL | change)
    assert "\n" not in str(caught.value)


# Auto-encoder


@pytest.mark.parametrize(
    ("upcast", "precision", "expected"),
    [
        (True, "float16", torch.float32),
        (True, "bfloat16", torch.float32),
        (False, "float16", torch.float16),
        (False, "float32", torch.float32),
    ],
)
def test_the_auto_encoder_computes_in_what_its_config_says(upcast, precision, expected):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, force_upcast=upcast, scaling_factor=0.13025
    )
    convention = family().latent_convention()
    assert convention.dtype(precision, vae) == expected
    assert convention.codec(vae, 2).scale == (0.13025,)


# Prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("made") / "pipeline"
    write_xl_pipeline(made)
    return made


def copy_of(folder: Path, tmp_path: Path, **index: object) -> Path:
    """A pipeline like ``folder`` whose index says something else."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    return copy


@pytest.mark.parametrize("zeros", [True, False])
def test_prompts_are_the_pipelines_own(folder, tmp_path, zeros):
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = copy_of(folder, tmp_path, force_zeros_for_empty_prompt=zeros)
    theirs = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
    prompts = ["a photo of a cat", "a red dog " * 30, "a dog"]
    eight = prompts + [""] * 5  # as many as are encoded here at once: others round otherwise
    with torch.no_grad():
        tokens, no_tokens, pooled, no_pooled = theirs.encode_prompt(eight, device="cpu")
    layout = layout_of_encoders(folder)
    text = family().load_text(folder)
    found, null = layout.unpack(text.embed(prompts)), layout.unpack(text.null()[None])
    assert torch.equal(found.tokens, tokens[:3]) and torch.equal(found.pooled, pooled[:3])
    torch.testing.assert_close(null.tokens[0], no_tokens[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(null.pooled[0], no_pooled[0], rtol=0, atol=1e-6)
    assert bool(null.tokens.any()) is not zeros


def test_a_run_keeps_the_second_encoder_and_what_the_empty_prompt_is(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    found = {fingerprint_of_text(Components(place), "sdxl") for place in (folder, copy)}
    assert len(found) == 1, "the same content elsewhere"
    path = copy / "text_encoder_2" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"text_projection.weight": weights["text_projection.weight"] + 1}, path)
    found.add(fingerprint_of_text(Components(copy), "sdxl"))
    index = copy / "model_index.json"
    index.unlink()  # a single file's, for one: zeros, as in diffusers
    found.add(fingerprint_of_text(Components(copy), "sdxl"))
    assert len(found) == 2
    index.write_text(json.dumps({"force_zeros_for_empty_prompt": False}))
    found.add(fingerprint_of_text(Components(copy), "sdxl"))
    assert len(found) == 3


def test_text_encoders_of_another_pipeline_are_named(folder):
    family().check_text(NARROW, folder)
    with pytest.raises(UserError, match="of width 24 and a pooled one of 12, the network reads"):
        family().check_text(NARROW | {"projection_class_embeddings_input_dim": 62}, folder)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("text_encoder_2", "no CLIPTextModelWithProjection in .*text_encoder_2"),
        ("tokenizer_2", "no tokenizer in .*tokenizer_2"),
    ],
)
def test_the_second_encoder_is_missed(folder, tmp_path, gone, message):
    copy = copy_of(folder, tmp_path)
    shutil.rmtree(copy / gone)
    with pytest.raises(UserError, match=message) as caught:
        family().check_text(NARROW, copy)
    assert "\n" not in str(caught.value)
