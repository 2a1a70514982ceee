"""What each switch of speed or memory changes: losses, gradients and seconds against float32.

    python -m benchmarks.switches [--switches bfloat16 compile ...] [--rounds 7] [--channels 16]

On small EDM2 and DDPM++ networks, here on whatever torch computes on: SiD's fake-score and
generator loss with each switch and without any, in turn, on the same weights and draws. Differences
are relative, of losses' values and of all gradients' norm; seconds are ratios of medians, after two
rounds that warm up (and compile). resources.overlap_comm is in benchmarks.overlap.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sid_ray.denoisers.attention import set_attention
from sid_ray.denoisers.compiled import keep_compiled, set_compile
from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network
from sid_ray.denoisers.precondition import set_memory_format, set_precision
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.diffusion.rng import GENERATOR, draw_group
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.objectives.sid import SiD
from sid_ray.types import Batch, Draw, Networks

SAMPLES, SIDE, CHANNELS, CLASSES, WARM = 8, 16, 3, 10, 2


@dataclass(frozen=True)
class Switch:
    """How a network is changed in place, and in how many passes its samples are computed."""

    apply: Callable[[nn.Module], None] = lambda network: None
    passes: int = 1
    needs_gpu: bool = False


SWITCHES = {
    "resources.memory_format channels_last": Switch(
        partial(set_memory_format, name="channels_last")
    ),
    "training.precision bfloat16": Switch(partial(set_precision, precision="bfloat16")),
    "training.precision float16": Switch(partial(set_precision, precision="float16")),
    "resources.compile default": Switch(partial(set_compile, mode="default")),
    "resources.compile cudagraphs": Switch(partial(set_compile, mode="cudagraphs"), 1, True),
    "resources.attention xformers": Switch(partial(set_attention, backend="xformers"), 1, True),
    "resources.activation_checkpointing": Switch(partial(set_recompute, on=True)),
    "resources.micro_batch, half": Switch(passes=2),
}


def network_of(family: str, width: int) -> nn.Module:
    """A teacher whose every path counts."""
    torch.manual_seed(0)
    shape = {"img_resolution": SIDE, "img_channels": CHANNELS, "label_dim": CLASSES}
    body = {"channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (8,), "dropout": 0.1}
    both = shape | body | {"model_channels": width}
    network: nn.Module
    if family == "EDM2":
        network = EDM2Denoiser(EDM2Network(**both, channels_per_head=width))  # type: ignore[arg-type]
    else:
        network = EDMDenoiser(EDMNetwork(**both))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 0:
                parameter.fill_(0.3)  # EDM2's gains start at 0
            elif parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * 0.03)
    return network


class Case:
    """Three networks under one switch, and the two phases of SiD on the same draws."""

    def __init__(self, family: str, width: int, switch: Switch, device: torch.device):
        self.switch, self.objective = switch, SiD(EDMSchedule())
        start = network_of(family, width).to(device)
        with torch.no_grad():
            other = copy.deepcopy(start)
            for parameter in other.parameters():
                parameter.mul_(1.02)  # teacher and fake score disagree
        self.networks = Networks(start, other, copy.deepcopy(start))
        for network in self.networks:
            switch.apply(network)
        shape = (CHANNELS, SIDE, SIDE)
        draw, _ = draw_group(0, GENERATOR, 0, 0, SAMPLES, shape)
        self.draw = Draw(*(None if part is None else part.to(device) for part in draw))  # type: ignore[arg-type]
        self.labels = torch.eye(CLASSES)[torch.arange(SAMPLES) % CLASSES].to(device)
        self.seconds: list[float] = []

    def phase(self, name: str, trained: nn.Module) -> tuple[Tensor, Tensor]:
        """The loss and all gradients of one phase, flat."""
        for network in self.networks:
            network.requires_grad_(network is trained)
        total, size = torch.zeros(()), SAMPLES // self.switch.passes
        for begin in range(0, SAMPLES, size):
            cut = slice(begin, begin + size)
            draw = Draw(*(None if part is None else part[cut] for part in self.draw))  # type: ignore[arg-type]
            loss = getattr(self.objective, name)(self.networks, Batch(self.labels[cut]), draw).total
            loss.backward()
            total = total + loss.detach().cpu()
        found = [p.grad.flatten() for p in trained.parameters() if p.grad is not None]
        trained.zero_grad(set_to_none=True)
        return total, torch.cat(found).cpu()

    def step(self) -> list[tuple[Tensor, Tensor]]:
        """Both phases, timed."""
        began = time.perf_counter()
        found = [
            self.phase("fake_loss", self.networks.fake_score),
            self.phase("generator_loss", self.networks.generator),
        ]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)
        return found


def row(family: str, width: int, switch: Switch, rounds: int, device: torch.device) -> list[float]:
    """Relative differences of both losses and both gradients, and the ratio of seconds."""
    plain, switched = (Case(family, width, s, device) for s in (Switch(), switch))
    for index in range(WARM + rounds):
        if index % 2:
            expected, found = plain.step(), switched.step()
        else:
            found, expected = switched.step(), plain.step()
    differences = []
    for ours, theirs in zip(found, expected, strict=True):
        differences += [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]
    medians = [statistics.median(case.seconds[WARM:]) for case in (switched, plain)]
    return [*differences, medians[0] / medians[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--switches", nargs="+", default=[""], help="parts of names; all without")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--channels", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    keep_compiled(Path(tempfile.gettempdir()) / f"sid_ray_switches_{os.getuid()}")
    print("| network | switch | fake loss | its gradient | generator loss | its gradient | s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for family in ("DDPM++", "EDM2"):
        for name, switch in SWITCHES.items():
            if (switch.needs_gpu and not gpu) or not any(p in name for p in options.switches):
                continue
            device = torch.device("cuda" if gpu else "cpu")
            *differences, ratio = row(family, options.channels, switch, options.rounds, device)
            cells = " | ".join(f"{value:.0e}" for value in differences)
            print(f"| {family} | {name} | {cells} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
