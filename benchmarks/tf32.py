"""What TF32 would do to a step's gradients: python -m benchmarks.tf32 [RECIPE]

TF32 rounds the inputs of a product to 10 bits of mantissa and adds in float32. Here the inputs of
every convolution, forward and backward, are rounded so on a CPU: torch's default on NVIDIA GPUs,
which this project switches off. Networks have random weights, fake score and generator one percent
off; noise and latents are 0, as in a plan of memory.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_side import Side, networks
from sid_ray.config.distill_config import replace
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.planning.trace_memory import trace_phase
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import network_of

IMAGES = 2
DROPPED = 13  # of the 23 bits of float32's mantissa


def rounded(value: Any) -> Any:
    """A tensor to TF32, to nearest; anything else as it is."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return (
        ((bits + (1 << (DROPPED - 1))) & ~((1 << DROPPED) - 1))
        .view(torch.float32)
        .view(value.shape)
    )


class TF32(TorchDispatchMode):
    """Convolutions whose inputs are rounded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname in ("convolution", "convolution_backward"):
            args = tuple(rounded(value) for value in args)
        return func(*args, **(kwargs or {}))


def gradients(name: str, phase: str, tf32: bool) -> Tensor:
    """Of the weights that a phase trains, as one vector."""
    config = replace(recipe(name), training__precision="float32")
    nets = networks(Side(config, official=True, device="cpu", threads=1))
    trained = nets[1] if phase == FAKE_SCORE else nets[2]
    for net in nets:
        net.requires_grad_(net is trained)
    description = network_of(config, teacher_of(config))
    torch.manual_seed(0)
    if tf32:
        with TF32():
            trace_phase(config, description, nets, phase, IMAGES)
    else:
        trace_phase(config, description, nets, phase, IMAGES)
    return torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or ["cifar10-uncond-sid"]:
        for phase in (FAKE_SCORE, GENERATOR):
            plain, other = (gradients(name, phase, tf32) for tf32 in (False, True))
            error = float((other - plain).norm() / plain.norm())
            print(
                f"{name}, {phase}: gradients of the weights {error:.1e} off with TF32 convolutions"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
