"""resources.deterministic: what the losses compute has a deterministic kernel on GPUs.

torch's operations without one raise an error in that mode. Which they are stands in the
documentation of torch.use_deterministic_algorithms; here are their names as they are dispatched.
"""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sid_ray.config.distill_config import replace as with_fields
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.planning.choose import choose_resources
from sid_ray.planning.machine import Machine, Node
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.planning.profile import Profile
from sid_ray.planning.spec_networks import spec_network
from sid_ray.planning.trace_memory import trace_phase, trained_alone
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from tests.support import trajectories
from tests.support.trajectories import CASES, outcome, plain_trainee, train

NAMES = """
    avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward
    adaptive_max_pool2d_backward adaptive_max_pool3d_backward fractional_max_pool2d_backward
    fractional_max_pool3d_backward max_unpool2d max_unpool3d upsample_linear1d_backward
    upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_trilinear3d_backward
    _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward reflection_pad1d_backward
    reflection_pad2d_backward reflection_pad3d_backward nll_loss_forward nll_loss2d_forward
    _ctc_loss_backward put put_ histc bincount kthvalue median grid_sampler_2d_backward
    grid_sampler_3d_backward cumsum scatter_reduce
"""
RAISES = set(NAMES.split())
# The smallest networks that have every kind of layer.
SMALL = {
    "cifar10-uncond-sida": {
        "img_resolution": 8,
        "model_channels": 16,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
    },
    "img64-sid": {
        "img_resolution": 8,
        "model_channels": 64,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
    },
    "img512-xs-sida": {
        "img_resolution": 8,
        "model_channels": 64,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
    },
    "sd15-lsg-kappa1.5": {
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
}


class Recorded(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


@functools.cache
def recorded_of(name: str) -> set[str]:
    """What both phases of a recipe's iteration compute."""
    config = recipe(name)
    known = teacher_of(config)
    description = replace(known, network=dict(known.network) | SMALL[name])
    nets: list[nn.Module] = [spec_network(config, description, "cpu") for _ in range(3)]
    with Recorded() as recorded:
        for phase, trained in ((FAKE_SCORE, nets[1]), (GENERATOR, nets[2])):
            with trained_alone(trained):
                trace_phase(config, description, nets, phase, 4)
    return recorded.names


@pytest.mark.parametrize("name", SMALL)
def test_a_step_computes_nothing_that_torch_refuses_in_deterministic_mode(name):
    names = recorded_of(name)
    assert {"convolution", "convolution_backward"} <= names
    assert not names & RAISES


def test_augmentation_is_in_what_was_looked_at():
    """It samples at fractional places, whose gradient has no deterministic kernel: it may be given
    images without gradients only.
    """
    assert "grid_sampler_2d" in recorded_of("cifar10-uncond-sida")
    images = torch.zeros(1, 1, 4, 4, requires_grad=True)
    grid = torch.zeros(1, 4, 4, 2)
    with Recorded() as recorded:
        nn.functional.grid_sample(images, grid, align_corners=False).sum().backward()
    assert recorded.names & RAISES == {"grid_sampler_2d_backward"}


def test_names_are_torchs():
    for name in RAISES:
        assert hasattr(torch.ops.aten, name), name


def test_xformers_is_refused():
    """It does not promise the same bits; and what is left to auto never takes it."""
    config = recipe("digits-sid")
    fields = {"resources__deterministic": True, "resources__attention": "xformers"}
    with pytest.raises(UserError, match=r"resources\.attention is xformers"):
        with_fields(config, **fields).check()
    own = with_fields(config, resources__deterministic=True).check()
    machine = Machine((Node(1, 0, 0, 64 << 30),), fixed=True)
    profile = Profile("cpu", 1, "", "", "", {"attention": "xformers"}, 1.0, 1.0, {})
    for chosen, attention in ((own, "sdpa"), (config, "xformers")):
        choice = choose_resources(chosen, teacher_of(config), machine, profile=profile)
        assert choice.config.resources.attention == attention


def test_updates_and_averages_compute_nothing_of_it_either(monkeypatch):
    """A whole iteration: clipping, the check of gradients, Adam, EDM2's weights, the average."""
    monkeypatch.setattr(trajectories, "GROUPS", 1)
    case = CASES["sida-edm2"]
    with Recorded() as recorded:
        train(case, plain_trainee(case), 0, 1, 1)
    assert {"convolution_backward", "_fused_adam_", "_foreach_lerp_"} <= recorded.names
    assert not recorded.names & RAISES


@pytest.mark.parametrize("name", ["sid-edm", "sida-edm2"])
def test_on_cpus_the_mode_changes_no_bit(name, monkeypatch):
    """Nor is memory read that nobody has written: in this mode torch fills it with NaN."""
    monkeypatch.setattr(trajectories, "GROUPS", 1)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # and taken away at the end
    case, found = CASES[name], []
    for deterministic in (False, True):
        set_numerics(deterministic)
        try:
            trainee = plain_trainee(case)
            train(case, trainee, 0, 1, 2)
            found.append(outcome(trainee))
        finally:
            set_numerics()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
