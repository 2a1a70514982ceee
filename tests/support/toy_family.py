"""A family in one file, as somebody outside the package would write it: a tiny class-conditional
network of small pictures.

    register_family(FAMILY)                      in this process
    [sid_ray.families]                           or as an entry point, for all processes
    toy = tests.support.toy_family:FAMILY

``TOY`` are the arguments of a network for the digits that ship. ``entry_point(folder)`` makes a
folder for PYTHONPATH that names the family as an installed package would; ``write_teacher(folder)``
a teacher with random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.family import Arguments, Family
from sid_ray.denoisers.noise import EDM_NOISE
from sid_ray.errors import UserError
from sid_ray.types import Condition, Level, Prediction, Want
from sid_ray.weights.folder import ModelDescription, save_model

NAME = "toy"
TOY: dict[str, Any] = {"size": 8, "channels": 1, "classes": 10, "width": 8, "dropout": 0.0}
SIGMA_DATA = 0.5


class ToyDenoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4, class), F two convolutions.

    Logits [B, 1, H, W] are the channel mean between the two.
    """

    def __init__(self, size: int, channels: int, classes: int, width: int, dropout: float = 0.0):
        super().__init__()
        if min(size, channels, width) < 1 or classes < 0 or not 0 <= dropout < 1:
            raise ValueError("size, channels and width must be positive, dropout below 1")
        self.into = nn.Conv2d(channels, width, 3, padding=1)
        self.told = nn.Linear(1 + classes, width)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        self.classes = classes

    def forward(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        logits, real_logits = self.logits_of(x_t, level, cond, want)
        if not want & Want.X0:
            return Prediction(logits=logits, real_logits=real_logits)
        sigma = level.sigma.reshape(-1, 1, 1, 1)
        total = sigma**2 + SIGMA_DATA**2
        raw = self.out(self.body(x_t, level, cond))
        x0 = SIGMA_DATA**2 / total * x_t + sigma * SIGMA_DATA / total.sqrt() * raw
        return Prediction(x0, logits=logits, real_logits=real_logits)

    def body(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        """[B, C, H, W] -> [B, width, H, W]."""
        c_in = 1 / (level.sigma**2 + SIGMA_DATA**2).sqrt().reshape(-1, 1, 1, 1)
        labels = x.new_zeros(len(x), self.classes) if cond.labels is None else cond.labels.to(x)
        told = self.told(torch.cat([level.t[:, None], labels], dim=1))
        return torch.tanh(self.into(c_in * x) + told[:, :, None, None])

    def logits_of(
        self, x: Tensor, level: Level, cond: Condition, want: Want
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits of x, and of ``cond.real`` where it is there; None where none are wanted."""
        if Want.LOGITS not in want:
            return None, None
        own = self.body(x, level, cond).mean(dim=1, keepdim=True)
        if cond.real is None:
            return own, None
        return own, self.body(cond.real, level, cond).mean(dim=1, keepdim=True)


class ToyFamily(Family):
    name = NAME
    noise = EDM_NOISE
    teacher_steps = 3
    adversarial_features = "the channel mean between its two convolutions"

    def build(self, network: Arguments) -> nn.Module:
        try:
            return ToyDenoiser(**network)
        except TypeError as error:
            raise UserError(f"not a toy network's arguments: {error}") from error

    def shape(self, network: Arguments) -> tuple[int, int, int]:
        return network["channels"], network["size"], network["size"]

    def label_dim(self, network: Arguments) -> int:
        return network["classes"]


FAMILY = ToyFamily()


def describe_toy(**changes: Any) -> ModelDescription:
    """What model.json says of a toy network."""
    return ModelDescription(NAME, TOY | changes)


def write_teacher(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A network folder with a toy teacher of random weights."""
    description = describe_toy(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = FAMILY.build(description.network).state_dict()
    save_model(folder, weights, description)
    return folder


def entry_point(folder: Path, **groups: str) -> Path:
    """A folder that, on PYTHONPATH, names the family to every process as a package's metadata does.

    ``groups``: more entry points, of group ``sid_ray.NAME`` to ``module:object``.
    """
    found = {"families": "tests.support.toy_family:FAMILY"} | groups
    info = folder / "toy_family-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n")
    lines = [f"[sid_ray.{group}]\n{NAME} = {target}\n" for group, target in found.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder
