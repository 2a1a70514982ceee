"""SD3, SANA and FLUX as denoisers: what their numbers (test_flow_vectors.py) do not show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sid_ray.denoisers.attention import set_attention
from sid_ray.denoisers.compiled import blocks_to_compile
from sid_ray.denoisers.flux import packed, positions, unpacked
from sid_ray.denoisers.guidance import Guided
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.prompt_layout import Prompt
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.registry import family_of
from sid_ray.diffusion.flow import FlowSchedule
from sid_ray.errors import UserError
from sid_ray.types import Condition, Level, Want
from tests.conftest import relative_error
from tests.support.fake_cuda.cases import NETWORKS

NETS = [name for name in NETWORKS if name[0] in ("sd3", "sana", "flux")]
PLAIN = [(name, variant) for name, variant in NETS if not variant]
ALL = Want.X0 | Want.RAW | Want.LOGITS
COUNT, SIZE = 2, (8, 12)


def named(net: tuple[str, str]) -> str:
    return "-".join(filter(None, net))


def network(name: tuple[str, str], **more: Any) -> Any:
    """With weights that are not zero anywhere."""
    torch.manual_seed(0)
    net = family_of(name[0]).build(NETWORKS[name] | more)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def inputs(net: Any, seed: int = 0, size: tuple[int, int] = SIZE) -> tuple[Tensor, Level, Tensor]:
    """x_t, its level, and packed prompts; latents are not square."""
    rng = torch.Generator().manual_seed(seed)
    layout = net.layout
    tokens = torch.randn(COUNT, layout.tokens, layout.width, generator=rng)
    pooled = torch.randn(COUNT, layout.pooled, generator=rng) if layout.pooled else None
    mask = torch.arange(layout.tokens) < torch.tensor([[2], [layout.tokens]])
    prompt = Prompt(tokens, pooled, mask.float() if layout.masked else None)
    x_t, t = torch.randn(COUNT, 4, *size, generator=rng), torch.rand(COUNT, generator=rng)
    return x_t, FlowSchedule().level(t), layout.pack(prompt)


@pytest.fixture(params=NETS, ids=named)
def net(request):
    return network(request.param)


@pytest.fixture(params=PLAIN, ids=named)
def plain_net(request):
    return network(request.param)


# What is predicted


@torch.no_grad()
def test_the_velocity_is_that_of_diffusers_own_pass(net):
    """Its forward as its pipelines call it, on latents that are not square."""
    x_t, level, text = inputs(net)
    out, own = net(x_t, level, Condition(text=text), ALL), net.transformer
    prompt, kind = net.layout.unpack(text), type(own).__name__
    given: dict[str, Any] = {"encoder_hidden_states": prompt.tokens, "return_dict": False}
    if kind == "SanaBody":
        time = 1000 * own.config.timestep_scale * level.t
        (v,) = type(own).__base__.forward(
            own, x_t, timestep=time, encoder_attention_mask=prompt.mask, **given
        )
    elif kind == "FluxTransformer2DModel":
        ids = positions(net.layout.tokens, *SIZE, x_t.device)
        given |= {"txt_ids": ids[: net.layout.tokens], "img_ids": ids[net.layout.tokens :]}
        given["guidance"] = torch.ones(COUNT) if own.config.guidance_embeds else None
        (v,) = own(packed(x_t), pooled_projections=prompt.pooled, timestep=level.t, **given)
        v = unpacked(v, *SIZE)
    else:
        (v,) = own(x_t, pooled_projections=prompt.pooled, timestep=1000 * level.t, **given)
    assert relative_error(out.raw, v) < 1e-6
    assert relative_error(out.x0, x_t - level.t[:, None, None, None] * v) < 1e-6
    assert out.logits.shape == (COUNT, 1, own.inner_dim if hasattr(own, "inner_dim") else 16)


@torch.no_grad()
def test_what_is_not_wanted_is_not_computed(plain_net):
    x_t, level, text = inputs(plain_net)
    calls: list[int] = []
    plain_net.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    both = plain_net(x_t, level, Condition(text=text), ALL)
    alone = plain_net(x_t, level, Condition(text=text), Want.LOGITS)
    assert len(calls) == 1
    assert alone.x0 is alone.raw is None
    assert torch.equal(alone.logits, both.logits)
    raw = plain_net(x_t, level, Condition(text=text), Want.RAW)
    assert raw.x0 is raw.logits is None
    assert torch.equal(raw.raw, both.raw)


@torch.no_grad()
def test_real_images_are_judged_in_the_same_pass_by_their_own_prompts(plain_net):
    x_t, level, text = inputs(plain_net)
    real, _, theirs = inputs(plain_net, seed=1)
    alone = plain_net(x_t, level, Condition(text=text), ALL)
    for own, cond in (
        (theirs, Condition(text=text, real=real, real_text=theirs)),
        (text, Condition(text=text, real=real)),
    ):
        out = plain_net(x_t, level, cond, ALL)
        judged = plain_net(real, level, Condition(text=own), Want.LOGITS)
        assert relative_error(out.real_logits, judged.logits) < 1e-6
        assert relative_error(out.logits, alone.logits) < 1e-6
        assert relative_error(out.x0, alone.x0) < 1e-6
        assert out.x0.shape == x_t.shape


@torch.no_grad()
def test_masked_tokens_change_nothing():
    net = network(("sana", ""))
    x_t, level, text = inputs(net)
    other = text.clone()
    other[0, 2:, :-1] += 1  # the first prompt has two tokens
    first, second = (net(x_t, level, Condition(text=t)).x0 for t in (text, other))
    assert relative_error(first, second) < 1e-6
    other[0, 0, 0] += 1
    assert relative_error(first, net(x_t, level, Condition(text=other)).x0) > 1e-4


def test_a_missing_text_is_named(plain_net):
    x_t, level, _ = inputs(plain_net)
    with pytest.raises(ValueError, match=r"needs cond\.text"):
        plain_net(x_t, level, Condition())


# Guidance told to the network


@torch.no_grad()
def test_flux_is_told_the_guidance_scale_and_1_without():
    net = network(("flux", ""))
    x_t, level, text = inputs(net)

    def x0(scale: float | None, text: Tensor = text) -> Tensor:
        told = None if scale is None else torch.full((COUNT,), scale)
        return net(x_t, level, Condition(text=text, guidance=told)).x0

    assert torch.equal(x0(None), x0(1.0))
    assert relative_error(x0(4.5), x0(1.0)) > 1e-3
    # Both halves are told; scale 0 is the empty prompt, not the text told 0 as officially.
    null = torch.zeros_like(text[0])
    empty = null.expand(COUNT, -1, -1)
    expected = x0(4.5, empty) + 4.5 * (x0(4.5) - x0(4.5, empty))
    assert relative_error(Guided(net, 4.5, null)(x_t, level, Condition(text=text)).x0, expected) < (
        1e-5
    )
    zero = Guided(net, 0.0, null)(x_t, level, Condition(text=text)).x0
    assert torch.equal(zero, x0(0.0, empty))
    assert relative_error(zero, x0(0.0)) > 1e-3


@torch.no_grad()
def test_a_network_without_an_embedded_scale_is_not_told_one():
    net = network(("flux", "schnell"))
    x_t, level, text = inputs(net)
    told = Condition(text=text, guidance=torch.full((COUNT,), 4.5))
    assert torch.equal(net(x_t, level, told).x0, net(x_t, level, told._replace(guidance=None)).x0)


# Packing


def test_packing_is_four_latents_a_token():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = packed(x)
    assert tokens.shape == (2, 6, 12)
    for row, column, channel, dy, dx in ((0, 0, 0, 0, 0), (1, 2, 1, 0, 1), (0, 1, 2, 1, 0)):
        found = tokens[:, 3 * row + column, 4 * channel + 2 * dy + dx]
        assert torch.equal(found, x[:, channel, 2 * row + dy, 2 * column + dx])
    assert torch.equal(unpacked(tokens, 4, 6), x)
    places = positions(2, 4, 6, x.device)
    assert places[:2].eq(0).all()
    assert places[2:].tolist() == [[0, row, column] for row in range(2) for column in range(3)]


# Precision, memory, engines


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@torch.no_grad()
def test_half_precision_is_of_the_body_alone(plain_net, precision):
    x_t, level, text = inputs(plain_net)
    wide = plain_net(x_t, level, Condition(text=text), ALL)
    set_precision(plain_net, precision)
    out = plain_net(x_t, level, Condition(text=text), ALL)
    for found, expected in ((out.x0, wide.x0), (out.raw, wide.raw), (out.logits, wide.logits)):
        assert found.dtype == torch.float32
        assert 0 < relative_error(found, expected) < 0.05


@torch.no_grad()
def test_times_are_told_apart_in_half_precision(plain_net):
    """bfloat16 has no number between .9961 and 1."""
    set_precision(plain_net, "bfloat16")
    x_t, _, text = inputs(plain_net)
    emb: list[Tensor] = []
    linear = next(m for n, m in plain_net.named_modules() if n.endswith("timestep_embedder"))
    linear.register_forward_pre_hook(lambda _, given: emb.append(given[0].float()))
    for t in (0.9991, 1.0):
        plain_net(x_t, FlowSchedule().level(torch.full((COUNT,), t)), Condition(text=text))
    assert relative_error(*emb) > 0.01


@torch.no_grad()
def test_weights_of_half_precision_give_images_in_float32(plain_net):
    x_t, level, text = inputs(plain_net)
    wide = plain_net(x_t, level, Condition(text=text), ALL)
    out = plain_net.to(torch.bfloat16)(x_t, level, Condition(text=text), ALL)
    assert {value.dtype for value in (out.x0, out.raw, out.logits)} == {torch.float32}
    assert relative_error(out.x0, wide.x0) < 0.1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputed_blocks_give_the_same_bits(plain_net, precision):
    set_precision(plain_net, precision)
    x_t, level, text = inputs(plain_net)
    found = []
    for on in (False, True):
        set_recompute(plain_net, on)
        assert plain_net.recompute is on
        x, kept = x_t.clone().requires_grad_(True), []

        def keep(value: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(value)
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            out = plain_net(x, level, Condition(text=text), ALL)
        (out.x0.square().sum() + out.logits.sum()).backward()
        found.append((len(kept), [x.grad, *(p.grad.clone() for p in with_gradient(plain_net))]))
        plain_net.zero_grad()
    (many, plain), (few, again) = found
    assert few < many
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def with_gradient(net: nn.Module) -> list[Any]:
    return [parameter for parameter in net.parameters() if parameter.grad is not None]


@torch.no_grad()
def test_weights_are_read_within_a_call_of_their_own_module(net):
    """As ZeRO-3 needs: it gathers a module's own weights for a call of it, and frees them."""
    x_t, level, text = inputs(net)
    expected = net(x_t, level, Condition(text=text), ALL)
    for module in net.modules():
        own = {p: p.data for p in module.parameters(recurse=False)}
        if not own:
            continue

        def gather(*_: Any, own: dict = own) -> None:
            for parameter, value in own.items():
                parameter.data = value

        def free(*_: Any, own: dict = own) -> None:
            for parameter, value in own.items():
                parameter.data = value.new_zeros(0)

        free()
        module.register_forward_pre_hook(gather)
        module.register_forward_hook(free)
    for found, wanted in zip(net(x_t, level, Condition(text=text), ALL), expected, strict=True):
        assert found is wanted is None or torch.equal(found, wanted)


def test_attention_that_cannot_run_is_refused(plain_net, monkeypatch):
    set_attention(plain_net, "sdpa")
    with pytest.raises(UserError, match="NVIDIA GPUs only"):
        set_attention(plain_net, "xformers")
    assert plain_net.attention_backend == "sdpa"
    x_t, level, text = inputs(plain_net)
    plain_net(x_t, level, Condition(text=text))


def test_sana_has_no_xformers(monkeypatch):
    net = network(("sana", ""))
    with pytest.raises(UserError, match="linear attention: set"):
        net.choose_attention("xformers")


# Arguments


@pytest.mark.parametrize(
    ("name", "network", "shape", "text"),
    [
        ("sd3", {}, (16, 128, 128), (155, 4096)),
        ("sd3", {"latent_size": 64}, (16, 64, 64), (155, 4096)),
        ("sana", {"sample_size": 16}, (32, 16, 16), (300, 2305)),
        ("flux", {}, (16, 64, 64), (513, 4096)),
        ("flux", {"latent_size": 128, "text_tokens": 256}, (16, 128, 128), (257, 4096)),
    ],
)
def test_shapes_of_the_published_networks(name, network, shape, text):
    family = family_of(name)
    assert family.shape(network) == shape
    assert family.text_shape(network) == text
    assert family.makes_latents(network)


@pytest.mark.parametrize("name", NETS, ids=named)
def test_written_out_arguments_say_which_network_it_is(name):
    family = family_of(name[0])
    short = family.written_out(NETWORKS[name])
    assert family.written_out(short) == short, "written out once is written out"
    recorded = dict(family.build(NETWORKS[name]).transformer.config)
    given = NETWORKS[name]
    ours = {key: given[key] for key in ("text_tokens", "latent_size") if key in given}
    again = family.written_out(family.from_official("", recorded) | ours)
    assert again == short


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd3", {"_class_name": "AuraFlow"}, "expected a SD3Transformer2DModel, found 'AuraFlow'"),
        ("sd3", {"sample_sise": 8}, "not an option .*'sample_sise'. Did you mean sample_size"),
        ("sd3", {"in_channels": 9}, "9 input and 4 output channels: inpainting"),
        ("sd3", {"latent_size": 7}, "7x7 do not split into patches of 2x2"),
        ("sd3", {"latent_size": 16}, "8 patches a side; the network has positions for 6"),
        ("sd3", {"caption_projection_dim": 8}, "must be the width of its heads together, 16"),
        ("sd3", {"num_layers": 10**6}, "'num_layers' = 1000000 is not supported"),
        ("sd3", {"qk_norm": "other"}, "not a SD3Transformer2DModel's config: unknown qk_norm"),
        ("sd3", {"text_tokens": 0}, "'text_tokens' = 0 is not supported"),
        ("sana", {"dropout": 0.1}, "'dropout' = 0.1 .* expected 0.0"),
        ("sana", {"guidance_embeds": True}, "'guidance_embeds' = true .* expected false"),
        ("sana", {"cross_attention_dim": None}, "'cross_attention_dim' = None"),
        ("sana", {"time_scale": "sprint"}, "'time_scale' = 'sprint' .* expected 1000 or 1"),
        ("flux", {"in_channels": 384, "out_channels": 64}, "384 input and 64 output channels"),
        ("flux", {"in_channels": 6}, "'in_channels' = 6 .* expected 4 times"),
        ("flux", {"patch_size": 2}, "'patch_size' = 2 .* expected 1"),
        ("flux", {"latent_size": 9}, "9x9 do not split into patches"),
        ("flux", {"axes_dims_rope": [2, 2]}, "add up to 'attention_head_dim', 8"),
    ],
)
def test_networks_that_cannot_be_built_are_refused_in_words(name, change, message):
    with pytest.raises(UserError, match=message) as caught:
        family_of(name).build(NETWORKS[name, ""] | change)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_sprints_teachers_are_told_t():
    sana = family_of("sana")
    assert network(("sana", "")).time_scale == 1000
    assert network(("sana", "sprint")).time_scale == 1
    assert network(("sana", ""), time_scale=1).time_scale == 1
    assert sana.written_out(NETWORKS["sana", "sprint"])["time_scale"] == 1


def test_importing_a_family_imports_neither_torch_nor_diffusers():
    import subprocess
    import sys

    code = (
        "import sys, sid_ray.denoisers.families.flux, sid_ray.denoisers.families.sana,"
        "sid_ray.denoisers.families.sd3;"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_their_blocks_are_what_is_compiled(net):
    own = net.transformer
    blocks = [*own.transformer_blocks, *getattr(own, "single_transformer_blocks", [])]
    assert list(blocks_to_compile(net)) == blocks
