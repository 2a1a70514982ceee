"""The reference vectors that ship: cases, how they are computed anywhere, and how far off one is.

A case is a network of one family, or an objective on three of them. Weights and inputs are numbers
of numpy's RandomState, whose streams never change, so that a case ships what comes out alone:
outputs, losses, and gradients of which SAMPLES elements are kept. benchmarks/device_vectors.py
writes the files, in float64 on a CPU; assets/device-vectors/README.md says what they rest on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.registry import family_of
from sid_ray.objectives.spec import objective_spec
from sid_ray.tensor_files.tensors import read_safetensors
from sid_ray.training.assemble import objective_of, schedule_of
from sid_ray.types import Batch, Condition, Draw, Networks, Scope, Want
from sid_ray.weights.sources import ASSETS

FOLDER, CASES, TENSORS = "device-vectors", "vectors.json", "vectors.safetensors"
SAMPLES = 2048  # elements of a gradient
SPREAD = 0.1  # relative difference of the three networks' weights
LATE = Scope(images_seen=1 << 40)  # every warm-up is over: all terms of a loss count
DRAWN = ("freqs", "phases")  # buffers of random numbers, drawn where a network is built
STRIDE = 2_654_435_761  # a prime: samples lie everywhere in a gradient


@dataclass(frozen=True)
class VectorCase:
    """A network (``changes`` empty) or, with changes to the default config, an objective.

    ``bounds`` by precision, and in that by the name of what comes out: relative errors.
    """

    name: str
    family: str
    network: Mapping[str, Any]
    seed: int
    images: int = 4
    changes: Mapping[str, Any] = field(default_factory=dict)
    bounds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def config(self) -> DistillConfig:
        kind = family_of(self.family).noise.kind
        return replace(DistillConfig(), schedule__kind=kind, **self.changes)


def read_cases() -> tuple[list[VectorCase], dict[str, Tensor]]:
    """The cases that ship, and CASE/NAME -> what comes out."""
    folder = ASSETS / FOLDER
    cases = json.loads((folder / CASES).read_text())["cases"]
    return [VectorCase(**case) for case in cases], read_safetensors(folder / TENSORS)


class Numbers64:
    """Normal and uniform numbers by a seed, the same ones whatever takes them."""

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype):
        self._random = np.random.RandomState(seed)
        self.device, self.dtype = device, dtype

    def normal(self, *size: int) -> Tensor:
        # Rounded to float32 for float64's sake: both compute with the same numbers.
        return (
            torch.from_numpy(self._random.standard_normal(size)).float().to(self.device, self.dtype)
        )

    def uniform(self, *size: int) -> Tensor:
        return torch.from_numpy(self._random.uniform(size=size)).float().to(self.device, self.dtype)

    def one_hot(self, count: int, classes: int) -> Tensor:
        chosen = torch.from_numpy(self._random.randint(classes, size=count))
        return nn.functional.one_hot(chosen, classes).to(self.device, self.dtype)


def filled_network(case: VectorCase, numbers: Numbers64, like: nn.Module | None = None) -> Any:
    """The case's network with weights that are small nowhere; near those of ``like``."""
    net = family_of(case.family).build(case.network)
    net.to(numbers.device, numbers.dtype).eval().requires_grad_(False)
    others = dict(like.named_parameters()) if like is not None else {}
    tensors = {**dict(net.named_buffers()), **dict(net.named_parameters())}
    for name in sorted(tensors):
        value = tensors[name]
        if name in others:
            value.copy_(others[name] * (1 + SPREAD * numbers.normal(*value.shape)))
        elif isinstance(value, nn.Parameter):
            value.copy_(weight_like(value, numbers))
        elif name.rpartition(".")[2] in DRAWN:
            drawn = numbers.uniform(*value.shape) if like is None else like.get_buffer(name)
            value.copy_(drawn)
    return net


def weight_like(value: Tensor, numbers: Numbers64) -> Tensor:
    """Matrices by their number of inputs, gains around 1, or 0.4 for a single one."""
    drawn = numbers.normal(*value.shape)
    if value.ndim > 1:
        return drawn / value[0].numel() ** 0.5
    return 0.1 * drawn + (1.0 if value.ndim else 0.4)


def outcome_of(
    case: VectorCase, device: torch.device, precision: str, wide: bool = False
) -> dict[str, Tensor]:
    """What comes out of a case, by name, on the CPU; ``wide`` computes in float64."""
    numbers = Numbers64(case.seed, device, torch.float64 if wide else torch.float32)
    first = filled_network(case, numbers)
    nets = [first, *(filled_network(case, numbers, first) for _ in range(2 * bool(case.changes)))]
    for net in nets:
        set_precision(net, precision)
    found = (
        outcome_of_objective(case, nets, numbers)
        if case.changes
        else outcome_of_network(case, first, numbers)
    )
    return {name: value.detach().double().cpu() for name, value in found.items()}


def outcome_of_network(case: VectorCase, net: nn.Module, numbers: Numbers64) -> dict[str, Tensor]:
    """Every output of a network, and gradients of their sum with random weights."""
    family, network = family_of(case.family), case.network
    schedule, count = schedule_of(case.config), case.images
    x = numbers.normal(count, *family.shape(network)).requires_grad_()
    level = schedule.generator_level(numbers.uniform(count))
    text, labels = family.text_shape(network), family.label_dim(network)
    condition = Condition(
        numbers.one_hot(count, labels) if labels else None,
        text=numbers.normal(count, *text) if text else None,
    )
    wanted = [Want.X0, *[Want.LOGITS] * bool(family.adversarial_features)]
    wanted += [Want.LOGVAR] * family.logvar(network)
    net.requires_grad_(True)
    made = net(x, level, condition, reduce(lambda a, b: a | b, wanted))
    shown = {"x0": made.x0, "logits": made.logits, "logvar": made.logvar}
    found = {name: value for name, value in shown.items() if value is not None}
    sum((value * numbers.normal(*value.shape)).sum() for value in found.values()).backward()
    assert x.grad is not None
    return found | {"input's gradient": x.grad, "weights' gradient": sampled(gradients_of(net))}


def outcome_of_objective(
    case: VectorCase, nets: list[Any], numbers: Numbers64
) -> dict[str, Tensor]:
    """Both losses of an objective, and samples of their gradients."""
    family, network, config = family_of(case.family), case.network, case.config
    text, labels = family.text_shape(network), family.label_dim(network)
    shape, count = family.shape(network), case.images
    reads_images = objective_spec(config.objective.name).reads_images
    objective = objective_of(config, numbers.normal(*text) if text else None)
    batch = Batch(
        numbers.one_hot(count, labels) if labels else None,
        numbers.normal(count, *shape) if reads_images else None,
        numbers.normal(count, *text) if text else None,
    )
    found: dict[str, Tensor] = {}
    for phase, net, loss in (
        ("fake score", nets[1], objective.fake_loss),
        ("generator", nets[2], objective.generator_loss),
    ):
        spec = objective.draw_spec
        normal = spec.normal_fake_time if phase == "fake score" else spec.normal_generator_time
        draw = Draw(
            numbers.normal(count, *shape),
            numbers.normal(count, *shape),
            (numbers.normal if normal else numbers.uniform)(count),
            text_uniform=numbers.uniform(count) if objective.draw_spec.text else None,
        )
        net.requires_grad_(True)
        total = loss(Networks(*nets), batch, draw, LATE).total
        total.backward()
        net.requires_grad_(False)
        found |= {f"{phase}'s loss": total, f"{phase}'s gradient": sampled(gradients_of(net))}
    return found


def gradients_of(net: nn.Module) -> Tensor:
    """All gradients one after another by the names of their weights; 0 where none arrived."""
    named = sorted(net.named_parameters())
    return torch.cat([(p.grad if p.grad is not None else p * 0).flatten() for _, p in named])


def sampled(flat: Tensor) -> Tensor:
    """SAMPLES elements of a vector, or all of a short one."""
    if len(flat) <= SAMPLES:
        return flat
    places = [index * STRIDE % len(flat) for index in range(SAMPLES)]
    return flat[torch.tensor(places, device=flat.device)]


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; nan where it is not finite."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def precisions_of(case: VectorCase) -> Iterable[str]:
    """Those that the case has bounds for and its family computes in."""
    return [name for name in case.bounds if name in family_of(case.family).precisions]
