"""What keeping state in fewer bits does to a run: distance of the weights from those of float32.

    python -m benchmarks.weights_precision

A small network learns a fixed teacher's outputs for so many steps of Adam with beta1 = 0, as the
published recipes have it. The distance is that of all weights, relative to the way that float32
weights went from the start: 1 is a network that has not moved.

    bfloat16       weights rounded to the nearest after each step, and nothing else kept
    stochastic     rounded up or down with the chances that keep the mean
    Kahan          what rounding lost is kept in bfloat16 beside each weight
    two halves     what is built: 16 more bits that make float32 of it (distributed/half_weights.py)
    8 bits         float32 weights, moments in 8 bits (distributed/eight_bits.py)

Only the step differs: all losses are computed in float32 on the weights that are kept.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.distributed.adam import AdamSettings
from sid_ray.distributed.roles import TorchRole

BUILT = {
    "two halves": {"half_weights": True},
    "8 bits": {"eight_bits": True},
    "both": {"eight_bits": True, "half_weights": True},
}
BY_HAND = ("bfloat16", "stochastic", "Kahan")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))


def loss_of(weights: list[Tensor], number: int) -> Tensor:
    """On keyed samples, against a fixed network, whatever the weights are kept in."""
    random = torch.Generator().manual_seed(number)
    x = torch.randn(64, 64, generator=random)
    one, first, two, second = (weight.float() for weight in weights)
    out = F.linear(F.linear(x, one, first).tanh(), two, second)
    return (out - x.roll(1, 1)).square().mean()


def rounded(value: Tensor, how: str, number: int, lost: Tensor) -> Tensor:
    """float32 -> the nearest bfloat16, or one of the two beside it; ``lost`` is Kahan's."""
    if how == "Kahan":
        near = (value + lost).bfloat16().float()
        lost.copy_((value + lost - near).bfloat16())
        return near
    if how == "stochastic":
        random = torch.Generator().manual_seed(number)
        noise = torch.randint(0, 1 << 16, value.shape, generator=random, dtype=torch.int32)
        return ((value.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return value.bfloat16().float()


def steps(settings: AdamSettings, count: int, how: str = "") -> Tensor:
    """All weights after so many steps, as one float32 vector; Kahan's with what is beside them."""
    role = TorchRole(network(), settings)
    weights = list(role.module.parameters())
    lost = [torch.zeros_like(weight) for weight in weights]
    for number in range(count):
        role.backward(loss_of(weights, number))
        role.update()
        if how:
            for place, weight in enumerate(weights):
                seed = number * len(weights) + place
                weight.data = rounded(weight.data, how, seed, lost[place])
    masters = [role.optimizer.master_of(weight) for weight in weights]
    return torch.cat([(kept + rest).flatten() for kept, rest in zip(masters, lost, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Distance of weights from those of float32.")
    parser.add_argument("--steps", type=int, default=200)
    count = parser.parse_args().steps
    start = torch.cat([value.detach().flatten() for value in network().parameters()])
    print(f"{'':12}" + "".join(f"{f'lr {lr:g}':>12}" for lr in (1e-6, 1e-5, 1e-4)))
    rows: dict[str, list[float]] = {}
    for lr in (1e-6, 1e-5, 1e-4):
        plain = AdamSettings(lr, 0.0, 0.999, 1e-8)
        target = steps(plain, count)
        way = (target - start).norm()
        for how in BY_HAND:
            found = steps(plain, count, how)
            rows.setdefault(how, []).append(float((found - target).norm() / way))
        for name, packed in BUILT.items():
            found = steps(AdamSettings(lr, 0.0, 0.999, 1e-8, **packed), count)
            rows.setdefault(name, []).append(float((found - target).norm() / way))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{value:12.4f}" for value in row))


if __name__ == "__main__":
    main()
