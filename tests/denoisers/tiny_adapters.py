"""A tiny network of each family, and adapters over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.config.sections import ScheduleConfig
from sid_ray.denoisers.adapter_names import DOWN
from sid_ray.denoisers.adapters import Adapter
from sid_ray.denoisers.registry import family_of
from sid_ray.types import Condition, Want
from tests.support.fake_cuda.cases import NETWORKS

FAMILIES = ("edm", "edm2", "stable-diffusion", "sdxl", "sd3", "sana", "flux")
COUNT = 2


def tiny(family: str) -> Any:
    """A network with weights that are near zero nowhere, so that every layer counts."""
    torch.manual_seed(0)
    net: Any = family_of(family).build(NETWORKS[family, ""])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


def adapter_of(family: str, rank: int = 2) -> Adapter:
    return Adapter(rank, 1.5 * rank, family_of(family).adapter_targets)


def changed(tree: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """The tree with A and B drawn anew."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in tree.named_parameters():
            fan_in = value[0].numel() if name.endswith(DOWN) else value.shape[1]
            value.copy_(torch.randn(value.shape, generator=rng) * size / fan_in**0.5)
    return tree


def called(
    net: nn.Module, family: str, keys: Tensor | None = None, want: Want = Want.X0
) -> tuple[Tensor, Tensor]:
    """(image in, image or log-variance out), of the same numbers at every call; float64 where the
    network is.
    """
    kind, arguments = family_of(family), NETWORKS[family, ""]
    held = {value.dtype for value in (*net.buffers(), *net.parameters())}
    dtype = torch.float64 if torch.float64 in held else torch.float32
    rng = torch.Generator().manual_seed(5)
    x = torch.randn((COUNT, *kind.shape(arguments)), generator=rng).to(dtype).requires_grad_()
    text = labels = None
    if kind.reads_text:
        text = torch.randn((COUNT, *kind.text_shape(arguments)), generator=rng).to(dtype)
    else:
        labels = torch.eye(10, dtype=dtype)[:COUNT]
    schedule = kind.noise.schedule(ScheduleConfig(kind=kind.noise.kind))
    times = [300, 700] if kind.noise.kind == "vp" else [0.3, 0.7]  # timesteps are integers
    level = schedule.level(torch.tensor(times))
    found = net(x, level, Condition(labels, dropout_keys=keys, text=text), want)
    out = found.x0 if Want.X0 in want else found.logvar
    assert out is not None
    return x, out
