"""Numbers of the official code, and the deterministic weights of the known answers.

The files in tests/reference/nets hold inputs, outputs and gradients of small official networks in
float32 and, under f64/, float64. Three hold their weights too; those of the other two follow from
their seeds: initial weights (which also shows that a seed means the same network here), perturbed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sid_ray.denoisers.registry import family_of, from_official
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.types import Condition, Prediction, Want

FOLDER = Path(__file__).parents[1] / "reference" / "nets"


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64."""
    found, expected = found.detach().double(), expected.detach().double().reshape(found.shape)
    return float((found - expected).norm() / expected.norm())


def weights_from_seeds(
    family: str, arguments: Mapping[str, Any], seeds: Mapping[str, int], means: Mapping[str, float]
) -> dict[str, Tensor]:
    """Official initial weights, perturbed so that nothing is zero, to the bit.

    ``seeds`` are those of both, ``means`` recorded mean magnitudes half way through: a mean's last
    bit depends on the number of threads.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch.randn differs in the last bits on a CPU without AVX2")
    torch.manual_seed(seeds["init"])
    network = family_of(family).build(arguments)
    torch.manual_seed(seeds["randomise"])
    weights = dict(network.state_dict())
    for name, parameter in network.named_parameters():
        value, z = parameter.detach(), torch.randn(parameter.shape)
        weights[name] = _perturbed(name, value, z, means.get(name))
    return weights


def _perturbed(name: str, value: Tensor, z: Tensor, mean: float | None) -> Tensor:
    if value.ndim == 0:
        return 0.35 + 0.1 * z
    if value.ndim == 1:
        return 1 + 0.15 * z if name.endswith("weight") else 0.1 * z
    if value.std() < 1e-4:
        return 0.5 * z / math.sqrt(value[0].numel())
    value = value * (1 + 0.1 * z)
    return value + z * (0.02 * (value.abs().mean().item() if mean is None else mean))


class Official:
    """One network of the official code."""

    def __init__(self, name: str):
        with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.about = json.loads(file.metadata()["reference"])
        self.family, self.arguments = from_official(self.about["cls"], self.about["init_kwargs"])

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        network = family_of(self.family).build(self.arguments)
        network.load_state_dict(self.under("w/") or self.weights_from_seeds())
        return network.to(dtype)

    def weights_from_seeds(self) -> dict[str, Tensor]:
        seeds, means = self.about["seeds"], self.about["means"]
        return weights_from_seeds(self.family, self.arguments, seeds, means)

    def run(
        self,
        network: nn.Module,
        want: Want = Want.X0,
        labels: bool = True,
        augment: bool = True,
    ) -> tuple[Prediction, Tensor, Tensor]:
        """(prediction, gradients with respect to x and sigma) of the recorded inputs and loss."""
        dtype = next(network.parameters()).dtype
        x, sigma = (
            self[f"in/{key}"].to(dtype, copy=True).requires_grad_() for key in ("x", "sigma")
        )
        given = {
            "labels": self.tensors.get("in/class_labels") if labels else None,
            "augment": self.tensors.get("in/augment_labels") if augment else None,
        }
        cond = Condition(**{k: None if v is None else v.to(dtype) for k, v in given.items()})
        out = network(x, EDMSchedule().level(sigma), cond, want)
        loss = torch.zeros([], dtype=dtype)
        for value, cotangent in (
            (out.x0, "in/cot"),
            (out.logits, "in/cot_logits"),
            (out.logvar, "in/cot_logvar"),
        ):
            if value is not None:
                loss = loss + (value * self[cotangent].reshape(value.shape)).sum()
        loss.backward()
        assert x.grad is not None and sigma.grad is not None
        return out, x.grad, sigma.grad


def check(found: Tensor, official: Official, key: str) -> None:
    """Float64 equals the official float64; float32 is as near to it as the official float32."""
    if found.dtype == torch.float64:
        assert relative_error(found, official[f"f64/{key}"]) < 1e-12
        return
    if f"f64/{key}" not in official.tensors:
        assert relative_error(found, official[key]) < 1e-6
        return
    theirs = relative_error(official[key], official[f"f64/{key}"])
    assert relative_error(found, official[f"f64/{key}"]) < 4 * theirs


def check_weight_gradients(network: nn.Module, expected: dict[str, Tensor], bound: float) -> None:
    parameters = dict(network.named_parameters())
    assert len(expected) >= 10
    for name, value in expected.items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        assert relative_error(gradient, value) < bound, name


def uniform(key: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1/2, 1/2) that depend on a name and nothing else, float64."""
    count, c = math.prod(shape), zlib.crc32(key.encode()) % 20011
    index = torch.arange(count, dtype=torch.int64)
    h = (2654435 * index + 40503 * c) % 20011
    h = (h * h + 7919 * h + index % 97) % 20011
    return (h.double() / 20011 - 0.5).reshape(shape)


def fill(network: nn.Module) -> None:
    """The known answers' weights, in place; resampling filters stay."""
    for name, value in network.state_dict().items():
        if name.endswith("resample_filter"):
            continue
        r = uniform(name, tuple(value.shape))
        if value.ndim == 0:
            r = 0.7 + 0.2 * r
        elif name.endswith("freqs"):
            r = 8 * r
        elif name.endswith("phases"):
            r = 2 * math.pi * (r + 0.5)
        elif value.ndim == 1:
            r = 1 + 0.5 * r if name.endswith("weight") else 0.5 * r
        else:
            r = 3 * r / math.sqrt(value.numel() / value.shape[0])
        value.copy_(r)


@torch.no_grad()
def answer(network: nn.Module, batch: int, augment_dim: int = 0) -> Prediction:
    """The prediction for the known answers' input."""
    net = network.net
    shape = (batch, net.img_channels, net.img_resolution, net.img_resolution)
    labels = None
    if net.label_dim:
        labels = torch.eye(net.label_dim)[(1 + 2 * torch.arange(batch)) % net.label_dim]
    augment = uniform("augment_labels", (batch, 9)).float() if augment_dim else None
    level = EDMSchedule().level(torch.tensor([0.4, 2.5])[:batch])
    want = Want.X0 | Want.LOGITS | Want.LOGVAR
    return network(2 * uniform("x", shape).float(), level, Condition(labels, augment), want)


def summary(out: Prediction) -> list[float]:
    """Mean and rms of D, its first and last three pixels, mean and rms of the logits."""
    assert out.x0 is not None and out.logits is not None
    d, logits = out.x0.double(), out.logits.double()
    return [
        d.mean().item(),
        d.square().mean().sqrt().item(),
        *d[0, 0, 0, :3].tolist(),
        *d[-1, -1, -1, -3:].tolist(),
        logits.mean().item(),
        logits.square().mean().sqrt().item(),
    ]


def listing(network: nn.Module) -> list[tuple[str, list[int]]]:
    """Names and shapes of the state dict, in order."""
    return [(name, list(value.shape)) for name, value in network.state_dict().items()]


def official_listing(name: str) -> list[tuple[str, list[int]]]:
    return list(json.loads((FOLDER / f"statedict_{name}.json").read_text()).items())


def count(network: nn.Module) -> tuple[int, int]:
    """(parameters, entries of the state dict)."""
    return sum(p.numel() for p in network.parameters()), len(network.state_dict())
