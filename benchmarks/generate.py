"""Images a second of a one-step generator, with and without decoding its latents.

    python -m benchmarks.generate --recipe img512-xs-sid --batch 4 --decode
    python -m benchmarks.generate --recipe img512-xxl-sida --batch 64 --decode --device cuda \\
        --precision bfloat16

Weights are random, which changes no time. ``--decode``: latents go through a decoder of the shape
of Stable Diffusion's, as EDM2's were made with.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.config.distill_config import replace, with_plain_resources
from sid_ray.denoisers.convolution import freeze
from sid_ray.denoisers.precondition import set_memory_format
from sid_ray.denoisers.registry import family_of
from sid_ray.evaluation.samplers import Inputs, generator_sampler
from sid_ray.planning.spec_networks import spec_network
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.allocator import keep_freed_memory
from sid_ray.training.assemble import network_of, schedule_of
from sid_ray.types import Condition

# The auto-encoder's published shape.
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def decoder(device: str, dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderKL

    vae: nn.Module = AutoencoderKL(**VAE).to(device, dtype).eval().requires_grad_(False)
    return vae.to(memory_format=torch.channels_last)


def seconds(run: Any, repeats: int, device: str) -> float:
    """Median of a few after one."""
    spent = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.device == "cpu":
        keep_freed_memory()
    config = replace(
        with_plain_resources(recipe(given.recipe)), training__precision=given.precision
    )
    description = network_of(config, teacher_of(config))
    network = spec_network(config, description, given.device).eval()
    set_memory_format(network, config.chosen.memory_format)
    freeze(network)
    spec = family_of(description.family)
    shape, classes = spec.shape(description.network), spec.label_dim(description.network)
    labels = torch.eye(classes)[torch.arange(given.batch) % classes] if classes else None
    sampler = generator_sampler(network, schedule_of(config), config.objective.num_steps)
    latents = torch.randn(given.batch, *shape, device=given.device)
    cond = Condition(None if labels is None else labels.to(given.device))
    inputs = Inputs(latents, cond)
    found: dict[str, float] = {}

    @torch.no_grad()
    def generate() -> Tensor:
        return sampler(inputs)

    found["generator"] = seconds(generate, given.repeats, given.device)
    if given.decode:
        dtype = getattr(torch, given.precision)
        vae: Any = decoder(given.device, dtype)

        @torch.no_grad()
        def both() -> Tensor:
            return vae.decode(generate().to(dtype)).sample

        found["generator and decoder"] = seconds(both, given.repeats, given.device)
    print(f"{given.recipe}, {given.batch} at once, {given.precision}, {given.device}, torch "
          f"{torch.__version__}\n\n| | images/s |\n|---|---:|")  # fmt: skip
    for name, spent in found.items():
        print(f"| {name} | {given.batch / spent:.3g} |")


if __name__ == "__main__":
    main()
