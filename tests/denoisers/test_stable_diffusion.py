"""The Stable Diffusion denoiser against SiD-LSG's own numbers, and what guidance must satisfy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("diffusers")

from sid_ray.denoisers.attention import set_attention
from sid_ray.denoisers.guidance import Guided
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.stable_diffusion import (
    StableDiffusionDenoiser,
    build_stable_diffusion,
    build_unet,
    network_arguments,
    use_attention,
)
from sid_ray.diffusion.schedules import DiscreteVPSchedule, read_scheduler_config
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import few_step
from sid_ray.types import Condition, Level, Prediction, Want

REFERENCE = Path(__file__).parents[1] / "reference" / "lsg"
TOLERANCE = {torch.float32: 4.0, torch.float64: 1e-13}  # times the official float32 error; absolute
GRADIENT_ERROR = 5e-6  # float32; the official weight gradients are float32 themselves


# The hub's configs; what is not listed is the class's default.
SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768}
SD21_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SD_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}


@pytest.fixture(scope="module")
def numbers() -> dict[str, Tensor]:
    return load_file(REFERENCE / "functions.safetensors")


@pytest.fixture(scope="module")
def official_error() -> dict[str, float]:
    """The official code's own float32-to-float64 difference, by output."""
    return json.loads((REFERENCE / "functions.json").read_text())["f32_vs_f64_rel"]


@pytest.fixture(scope="module")
def schedule() -> DiscreteVPSchedule:
    return read_scheduler_config(REFERENCE / "scheduler" / "scheduler_config.json")


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads((REFERENCE / "tiny_unet" / "config.json").read_text())


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def net(request, config) -> StableDiffusionDenoiser:
    weights = load_file(REFERENCE / "tiny_unet" / "diffusion_pytorch_model.safetensors")
    model = family_of("stable-diffusion").build(config)
    assert isinstance(model, StableDiffusionDenoiser)
    model.unet.load_state_dict(weights)
    return model.to(request.param)


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def check(found: Tensor, name: str, numbers: dict, official_error: dict) -> None:
    bound = TOLERANCE[found.dtype]
    if found.dtype == torch.float32:
        bound *= official_error[name]
    assert error(found, numbers[f"f64/{name}"]) < bound


def check_weight_gradients(net: StableDiffusionDenoiser, numbers: dict, name: str) -> int:
    parameters = dict(net.unet.named_parameters())
    prefix = f"gradw/{name}/"
    expected = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
    for key, value in expected.items():
        gradient = parameters[key].grad
        assert gradient is not None
        assert error(gradient, value) < 10 * GRADIENT_ERROR, key
    return len(expected)


@pytest.mark.parametrize("scale", ["1", "1.5", "2"])
@pytest.mark.parametrize(("what", "want"), [("x0", Want.X0), ("eps", Want.RAW)])
def test_denoise_equals_lsg(net, schedule, numbers, official_error, scale, what, want):
    dtype = net.unet.dtype
    images = numbers["in/images"].to(dtype, copy=True).requires_grad_()
    level = schedule.level(numbers["in/timesteps"], dtype)
    x_t = schedule.add_noise(images, numbers["in/noise"].to(dtype), level)
    guided = Guided(net, float(scale), numbers["in/uncond_embeddings"][0].to(dtype))
    cond = Condition(text=numbers["in/text_embeddings"].to(dtype))
    out = guided(x_t, level, cond, want)
    found = out.x0 if want is Want.X0 else out.raw
    assert found is not None and found.dtype == dtype
    name = f"denoise_k{scale}_{what}"
    check(found, f"out/{name}", numbers, official_error)
    (found * numbers["in/cot"].to(dtype)).sum().backward()
    bound = GRADIENT_ERROR if dtype == torch.float32 else 1e-13
    assert error(images.grad, numbers[f"f64/grad/{name}/images"]) < bound
    assert check_weight_gradients(net, numbers, name) == (10 if scale == "1.5" else 0)


def test_one_step_equals_lsg(net, schedule, numbers, official_error):
    dtype = net.unet.dtype
    z = numbers["in/z"].to(dtype, copy=True).requires_grad_()
    cond = Condition(text=numbers["in/text_embeddings"].to(dtype))
    y = few_step(net, schedule, z, cond)
    check(y, "out/sampler_1step", numbers, official_error)
    (y * numbers["in/cot"].to(dtype)).sum().backward()
    bound = GRADIENT_ERROR if dtype == torch.float32 else 1e-13
    assert error(z.grad, numbers["f64/grad/sampler_1step/z"]) < bound
    assert check_weight_gradients(net, numbers, "sampler_1step") > 100


@pytest.mark.parametrize("num_steps", [2, 4])
def test_few_steps_equal_lsg(net, schedule, numbers, official_error, num_steps):
    dtype = net.unet.dtype
    names = [f"draw/sampler_{num_steps}step_{step:02d}" for step in range(num_steps - 1)]
    cond = Condition(text=numbers["in/text_embeddings"].to(dtype))
    with torch.no_grad():
        noises = [numbers[name].to(dtype) for name in names]
        y = few_step(net, schedule, numbers["in/z"].to(dtype), cond, num_steps, noises)
    check(y, f"out/sampler_eval_{num_steps}step", numbers, official_error)


def test_few_step_wants_as_many_noises_as_steps(schedule):
    with pytest.raises(ValueError, match="3 steps need 2 noises, got 0"):
        few_step(lambda *_: Prediction(), schedule, torch.zeros(1, 4, 8, 8), Condition(), 3)


# The pass that is composed of the U-Net's submodules


def inputs(config: dict, batch: int = 2, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, config["in_channels"], size, size, generator=rng)
    text = torch.randn(batch, 5, config["cross_attention_dim"], generator=rng)
    return x_t, torch.tensor([20, 979])[:batch], text


@pytest.mark.parametrize("size", [16, 15], ids=["even", "odd"])
def test_raw_is_the_unets_own_forward_to_the_bit(config, size):
    denoiser = build_stable_diffusion(config)
    x_t, t, text = inputs(config, size=size)
    level = DiscreteVPSchedule().level(t)
    with torch.no_grad():
        raw = denoiser(x_t, level, Condition(text=text), Want.RAW).raw
        assert torch.equal(raw, denoiser.unet(x_t, t, encoder_hidden_states=text).sample)


@pytest.mark.parametrize(
    "config",
    [SD15_UNET, SD21_UNET | {"attention_head_dim": [1, 2, 4, 4]}],
    ids=["1.5", "2.1"],
)
def test_raw_is_the_unets_own_forward_in_the_published_layouts(config):
    """The four levels of SD 1.5 and 2.1, with a tenth of the channels."""
    narrow = {"block_out_channels": [32, 64, 128, 128], "cross_attention_dim": 24}
    config = config | narrow | {"norm_num_groups": 8, "in_channels": 4}
    denoiser = build_stable_diffusion(config)
    x_t, t, text = inputs(config, size=24)  # 24 / 8: odd below
    level = DiscreteVPSchedule().level(t)
    with torch.no_grad():
        out = denoiser(x_t, level, Condition(text=text), Want.RAW | Want.LOGITS)
        assert torch.equal(out.raw, denoiser.unet(x_t, t, encoder_hidden_states=text).sample)
    assert out.logits.shape == (2, 1, 3, 3)


def test_logits_are_the_channel_mean_of_the_mid_block(config):
    denoiser = build_stable_diffusion(config)
    x_t, t, text = inputs(config)
    level, cond = DiscreteVPSchedule().level(t), Condition(text=text)
    seen = []
    hook = denoiser.unet.mid_block.register_forward_hook(lambda *args: seen.append(args[2]))
    denoiser.unet(x_t, t, encoder_hidden_states=text)
    hook.remove()
    x_t.requires_grad_()
    alone = denoiser(x_t, level, cond, Want.LOGITS)
    assert alone.x0 is None and alone.raw is None
    assert alone.logits.shape == (2, 1, 8, 8)
    assert torch.equal(alone.logits, seen[0].mean(1, keepdim=True))
    (gradient,) = torch.autograd.grad(alone.logits.sum(), x_t)
    assert gradient.abs().min() > 0

    both = denoiser(x_t, level, cond, Want.X0 | Want.LOGITS)
    assert torch.equal(both.logits, alone.logits)
    assert torch.equal(both.x0, denoiser(x_t, level, cond).x0)
    (together,) = torch.autograd.grad(both.logits.sum(), x_t, retain_graph=True)
    assert torch.equal(together, gradient)
    (other,) = torch.autograd.grad(both.x0.sum(), x_t)
    assert other.abs().max() > 0


def test_logits_alone_leave_the_decoder_out(config):
    denoiser = build_stable_diffusion(config)
    x_t, t, text = inputs(config)
    for block in denoiser.unet.up_blocks:
        block.forward = lambda *_, **__: pytest.fail("the decoder ran")
    level = DiscreteVPSchedule().level(t)
    assert denoiser(x_t, level, Condition(text=text), Want.LOGITS).logits is not None


def test_gradient_checkpointing_changes_no_gradient(config):
    denoiser = build_stable_diffusion(config)
    x_t, t, text = inputs(config)
    level, cond, gradients = DiscreteVPSchedule().level(t), Condition(text=text), []
    for checkpointing in (False, True):
        set_recompute(denoiser, checkpointing)
        x = x_t.clone().requires_grad_()
        denoiser(x, level, cond).x0.square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_closed_form_x0_equals_diffusers(config, prediction_type):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
    )
    denoiser = build_stable_diffusion(config | {"prediction_type": prediction_type})
    for t in (0, 20, 625, 979, 999):
        x_t, _, text = inputs(config)
        steps = torch.full((2,), t)
        out = denoiser(
            x_t, DiscreteVPSchedule().level(steps), Condition(text=text), Want.X0 | Want.RAW
        )
        expected = scheduler.step(out.raw, t, x_t).pred_original_sample
        assert error(out.x0, expected) < 1e-6


def test_bfloat16_network_gives_float32_images(config):
    denoiser = build_stable_diffusion(config).to(torch.bfloat16)
    x_t, t, text = inputs(config)
    level = DiscreteVPSchedule().level(t)
    out = denoiser(x_t, level, Condition(text=text), Want.X0 | Want.LOGITS)
    assert out.x0.dtype == out.logits.dtype == torch.float32
    wide = denoiser.float()(x_t, level, Condition(text=text)).x0
    assert error(out.x0, wide) < 0.05


# Guidance


class Counting:
    """A denoiser that remembers the conditions it was called with."""

    def __init__(self, net):
        self.net, self.calls = net, []

    def __call__(self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0):
        self.calls.append(cond)
        return self.net(x_t, level, cond, want)


@pytest.fixture
def guidance(config):
    torch.manual_seed(3)
    net = Counting(build_stable_diffusion(config))
    x_t, t, text = inputs(config)
    null = torch.randn(5, config["cross_attention_dim"])
    return net, x_t, DiscreteVPSchedule().level(t), text, null


@torch.no_grad()
def test_scale_one_is_the_text_alone(guidance):
    net, x_t, level, text, null = guidance
    cond = Condition(text=text)
    assert torch.equal(Guided(net, 1.0, null)(x_t, level, cond).x0, net(x_t, level, cond).x0)
    assert [len(cond.text) for cond in net.calls] == [2, 2]


@torch.no_grad()
def test_scale_zero_is_the_empty_prompt_alone(guidance):
    net, x_t, level, text, null = guidance
    expected = net.net(x_t, level, Condition(text=null.expand(2, -1, -1))).x0
    for cond in (Condition(text=text), Condition()):
        assert torch.equal(Guided(net, 0.0, null)(x_t, level, cond).x0, expected)
    assert [len(cond.text) for cond in net.calls] == [2, 2]


@torch.no_grad()
def test_guidance_is_linear_in_the_scale(guidance):
    net, x_t, level, text, null = guidance
    net.net.double()
    x_t, level = x_t.double(), DiscreteVPSchedule().level(level.t, torch.float64)
    cond, want = Condition(text=text.double()), Want.X0 | Want.RAW
    outs = {k: Guided(net, k, null)(x_t, level, cond, want) for k in (-1.0, 0.0, 1.0, 1.5, 4.5)}
    assert [len(cond.text) for cond in net.calls] == [4, 2, 2, 4, 4]
    for field in ("x0", "raw"):
        zero, one = getattr(outs[0.0], field), getattr(outs[1.0], field)
        for scale, out in outs.items():
            assert error(getattr(out, field), zero + scale * (one - zero)) < 1e-13


@torch.no_grad()
def test_logits_under_guidance_are_the_texts(guidance):
    net, x_t, level, text, null = guidance
    cond = Condition(text=text)
    expected = net(x_t, level, cond, Want.LOGITS).logits
    for scale in (0.0, 1.0, 3.0):
        for want in (Want.LOGITS, Want.LOGITS | Want.X0):
            logits = Guided(net, scale, null)(x_t, level, cond, want).logits
            assert error(logits, expected) < 1e-6


def test_a_missing_text_is_named(guidance):
    net, x_t, level, _, null = guidance
    with pytest.raises(ValueError, match=r"scale 2 needs cond\.text"):
        Guided(net, 2, null)(x_t, level, Condition())
    with pytest.raises(ValueError, match=r"needs cond\.text"):
        net(x_t, level, Condition())


# Configs and sizes


def parameters(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("config", "count"), [(SD15_UNET, 859_520_964), (SD21_UNET, 865_910_724)], ids=["1.5", "2.1"]
)
def test_unets_have_the_published_number_of_parameters(config, count):
    with torch.device("meta"):
        denoiser = family_of("stable-diffusion").build(config)
    assert parameters(denoiser) == count
    assert len(denoiser.state_dict()) == 686
    assert denoiser.latent_shape == (4, 64, 64)


def test_the_vae_has_the_published_number_of_parameters():
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**SD_VAE)
    assert (parameters(vae), len(vae.state_dict())) == (83_653_863, 248)
    assert vae.config.scaling_factor == 0.18215


@pytest.mark.parametrize(
    ("hidden", "intermediate", "layers", "heads", "count", "entries"),
    [(768, 3072, 12, 12, 123_060_480, 196), (1024, 4096, 23, 16, 340_387_840, 372)],
    ids=["1.5", "2.1"],
)
def test_text_encoders_have_the_published_number_of_parameters(
    hidden, intermediate, layers, heads, count, entries
):
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    with torch.device("meta"):
        encoder = CLIPTextModel(text)
    assert (parameters(encoder), len(encoder.state_dict())) == (count, entries)


def test_arguments_rebuild_the_network(config):
    arguments = {**config, "prediction_type": "v_prediction"}
    first = build_stable_diffusion(arguments)
    again = json.loads(json.dumps(network_arguments(first)))
    second = build_stable_diffusion(again)
    assert second.prediction_type == "v_prediction"
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (first, second)]
    assert shapes[0] == shapes[1]
    assert network_arguments(second) == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "expected a UNet2DConditionModel, found 'UNet2DModel'"),
        ({"addition_embed_type": "text_time"}, "'addition_embed_type' = 'text_time'"),
        ({"dropout": 0.1}, "'dropout' = 0.1 is not supported; expected 0.0"),
        ({"in_channels": 9}, "9 input and 4 output channels: inpainting"),
        ({"cross_atention_dim": 24}, "not a U-Net option: 'cross_atention_dim'. Did you mean"),
        ({"down_block_types": ["Nonsense", "DownBlock2D"]}, "not a U-Net's config"),
    ],
)
def test_other_unets_are_refused_by_name(config, change, message):
    with pytest.raises(UserError, match=message) as caught:
        build_unet(config | change)
    assert "\n" not in str(caught.value)


def test_unknown_prediction_type_is_refused(config):
    with pytest.raises(UserError, match="prediction_type 'sample' is not supported"):
        build_stable_diffusion(config | {"prediction_type": "sample"})


def test_missing_diffusers_is_one_line(config, monkeypatch):
    real = importlib_find_spec()
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "diffusers" else real(name)
    )
    with pytest.raises(UserError, match=r"needs diffusers, .*pip install 'sid_ray\[diffusers\]'"):
        build_unet(config)


def importlib_find_spec():
    import importlib.util

    return importlib.util.find_spec


def test_importing_the_file_imports_neither_library():
    import subprocess
    import sys

    code = (
        "import sys, sid_ray.denoisers.stable_diffusion, sid_ray.denoisers.registry;"
        "assert not {'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sdpa_can_be_chosen_and_unknown_attention_is_refused(config):
    unet = build_unet(config)
    use_attention(unet, "sdpa")
    kinds = {type(processor).__name__ for processor in unet.attn_processors.values()}
    assert kinds == {"AttnProcessor2_0"}
    with pytest.raises(UserError, match="unknown attention 'flash'; known: sdpa, xformers"):
        use_attention(unet, "flash")


def test_xformers_is_refused_with_a_reason(config, monkeypatch):
    denoiser = StableDiffusionDenoiser(build_unet(config))
    set_attention(denoiser, "sdpa")
    with pytest.raises(UserError, match="NVIDIA GPUs only"):
        set_attention(denoiser, "xformers")
    assert denoiser.attention_backend == "sdpa"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(UserError, match=r"pip install 'sid_ray\[xformers\]'"):
        set_attention(denoiser, "xformers")


def test_one_step_needs_no_change_for_this_schedule(schedule, numbers):
    """few_step asks the schedule alone: x = add_noise(0, z, level_0)."""
    z, seen = numbers["in/z"], []

    def net(x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0) -> Prediction:
        seen.append((x_t, level))
        return Prediction(x0=x_t)

    few_step(net, schedule, z, Condition())
    x_t, level = seen[0]
    assert level.t.tolist() == [625] * len(z)
    assert torch.equal(x_t, z * (1 - schedule.alphas_cumprod(z.device)[625]).sqrt())
