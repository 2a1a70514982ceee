"""Half precision of every family: the body alone, near float32, from the same float32 weights.

Errors are relative, of a whole tensor, in units of the format's rounding (2^-11 of float16, 2^-8 of
bfloat16): 6 to 10 units here, 3e-3 to 5e-3 and 2e-2 to 4e-2.
"""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")

from sid_ray.denoisers.convolution import freeze, weights_of
from sid_ray.denoisers.precondition import precision_beside, set_precision
from sid_ray.denoisers.registry import family_of
from sid_ray.diffusion.schedules import DiscreteVPSchedule, EDMSchedule
from sid_ray.errors import UserError
from sid_ray.objectives.functional import denoising_loss
from sid_ray.types import Condition, Level, Prediction, Want
from sid_ray.weights.components import open_vae
from tests.conftest import relative_error
from tests.denoisers.tiny_pipeline import write_pipeline
from tests.support.networks import tiny_edm2, tiny_network
from tests.support.trajectories import edm2_network

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
UNITS = 20.0  # twice the largest error
FAMILIES = ("edm", "edm2", "stable-diffusion")


@functools.cache
def built(family: str) -> nn.Module:
    if family == "edm":
        return tiny_network(augment_dim=9)
    if family == "edm2":
        return tiny_edm2()
    torch.manual_seed(0)
    return family_of(family).build(UNET)


def network(family: str, precision: str = "float32") -> nn.Module:
    found = copy.deepcopy(built(family)).requires_grad_(True)
    set_precision(found, precision)
    return found


def inputs(family: str) -> tuple[Tensor, Level, Condition]:
    random = torch.Generator().manual_seed(1)
    draw = torch.tensor([0.2, 0.7, 0.4])
    if family == "stable-diffusion":
        text = torch.randn(3, 7, 16, generator=random)
        x, level = torch.randn(3, 4, 8, 8, generator=random), DiscreteVPSchedule().fake_level(draw)
        return x, level, Condition(text=text)
    level = EDMSchedule().fake_level(draw)
    x = torch.randn(3, 1, 8, 8, generator=random) * level.sigma[:, None, None, None]
    return x, level, Condition(labels=torch.eye(10)[:3])


def wanted(family: str) -> Want:
    own = {"edm2": Want.LOGVAR, "stable-diffusion": Want.RAW}.get(family)
    return Want.X0 | Want.LOGITS | (own or Want.X0)


def passed(net: nn.Module, family: str) -> tuple[Prediction, Tensor, Tensor]:
    """(prediction, gradient of the input, gradients of all weights) of one pass there and back."""
    x, level, cond = inputs(family)
    x.requires_grad_(True)
    found = net(x, level, cond, wanted(family))
    sum(part.square().sum() for part in found if part is not None).backward()
    weights = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    assert x.grad is not None
    return found, x.grad, torch.cat(weights)


@functools.cache
def in_float32(family: str) -> tuple[Prediction, Tensor, Tensor]:
    return passed(network(family), family)


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("family", FAMILIES)
def test_passes_and_gradients_are_float32s_to_rounding(family, precision):
    assert precision in family_of(family).precisions
    (found, of_input, of_weights), expected = (
        passed(network(family, precision), family),
        in_float32(family),
    )
    pairs = {name: (getattr(found, name), getattr(expected[0], name)) for name in found._fields}
    pairs |= {"input": (of_input, expected[1]), "weights": (of_weights, expected[2])}
    for name, (own, wide) in pairs.items():
        if own is None:
            continue
        assert own.dtype == torch.float32, name
        error = relative_error(own.detach(), wide.detach())
        if name == "logvar":
            assert error == 0  # its head is float32
        else:
            assert 0.01 * ROUNDING[precision] < error < UNITS * ROUNDING[precision], name


class Dtypes(TorchDispatchMode):
    """Of the results of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, Tensor):
            self.found.setdefault(func._opname, set()).add(first.dtype)
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_convolution_and_norm_of_the_body_computes_in_half_precision(family):
    net = network(family, "bfloat16").requires_grad_(False)
    with Dtypes() as dtypes:
        net(*inputs(family), Want.X0 | Want.LOGITS)
    for name in ("convolution", "native_group_norm", "native_layer_norm"):
        assert dtypes.found.get(name, {torch.bfloat16}) == {torch.bfloat16}, name


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_networks_keep_half_of_the_memory_and_the_same_numbers(family):
    net, frozen = network(family, "float16"), network(family, "float16")
    before = sum(tensor.nbytes for tensor in weights_of(frozen))
    freeze(frozen)
    after = sum(tensor.nbytes for tensor in weights_of(frozen))
    assert after < 0.7 * before  # embeddings and biases stay as they are
    want = Want.X0 | Want.LOGITS
    own, other = (each(*inputs(family), want) for each in (net, frozen))
    assert torch.equal(own.x0, other.x0)
    assert torch.equal(own.logits, other.logits)


def test_a_unet_with_layers_that_are_not_cast_says_so():
    net = network("stable-diffusion")
    net.unet.mid_block.other = nn.PReLU()
    with pytest.raises(UserError, match=r"other.*--training\.precision float32"):
        set_precision(net, "float16")


def test_a_network_without_another_precision_says_so():
    with pytest.raises(UserError, match="Linear computes in float32 only"):
        set_precision(nn.Linear(1, 1), "bfloat16")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    write_pipeline(folder)
    return folder


@pytest.mark.parametrize("precision", ROUNDING)
def test_a_text_encoder_in_half_precision_gives_float32_embeddings_near_its_own(
    pipeline, precision
):
    family = family_of("stable-diffusion")
    prompts = ["a red cat", "photo of a dog"]
    half = family.load_text(pipeline, "cpu", precision).embed(prompts)
    wide = family.load_text(pipeline).embed(prompts)
    assert half.dtype == torch.float32
    error = relative_error(half, wide)
    assert 0.01 * ROUNDING[precision] < error < UNITS * ROUNDING[precision]


@pytest.mark.parametrize("precision", ROUNDING)
def test_stable_diffusions_vae_in_half_precision_is_within_a_grey_level(pipeline, precision):
    """float16 beside bfloat16, too."""
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    half, wide = (
        open_vae(str(pipeline), "sd", "cpu", own).decode_uint8(latents).int()
        for own in (precision, "float32")
    )
    assert open_vae(str(pipeline), "sd", "cpu", precision).vae.dtype == torch.float16
    assert (half - wide).abs().max() <= 1
    assert (half != wide).float().mean() < 0.1


def test_edm2s_vae_stays_float32_as_published(pipeline):
    assert open_vae(str(pipeline), "edm2", "cpu", "float16").vae.dtype == torch.float32


@pytest.mark.parametrize(("device", "found"), [("cpu", "float32"), ("cuda:1", "float16")])
def test_what_is_beside_the_networks_follows_them_on_gpus_alone(device, found):
    assert precision_beside("float16", device) == found
    assert precision_beside("float32", device) == "float32"


def test_float16_needs_no_loss_scaling_at_the_published_batch_size():
    """The published runs have none. A loss is divided by the batch size before its backward pass:
    by 2048, the largest, gradients in float16 lose a quarter more than by 1, and none is 0.
    """
    random = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 8, 4, 8, 8, generator=random).unbind()
    level = EDMSchedule().fake_level(torch.rand(8, generator=random))
    sigma = level.sigma[:, None, None, None]
    weight = (level.sigma**2 + 0.25) / (level.sigma * 0.5) ** 2

    def gradients(precision: str, scale: float) -> Tensor:
        net = edm2_network().requires_grad_(True)
        set_precision(net, precision)
        found = net(clean / 2 + sigma * noise, level, Condition(labels=torch.eye(10)[:8]), Want.X0)
        (denoising_loss(found.x0, clean / 2, weight).sum() * scale).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]) / scale

    wide = gradients("float32", 1.0)
    plain, scaled = (gradients("float16", scale) for scale in (1.0, 1 / 2048))
    assert relative_error(scaled, wide) < 2 * relative_error(plain, wide)
    assert scaled.count_nonzero() == wide.count_nonzero()
