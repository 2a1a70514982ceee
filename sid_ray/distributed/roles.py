"""What every role has in common, and the role in plain torch that every engine must equal.

A role's state is fp32 weights (masters), Adam's moments and its step; see fragments.py for how
it is spoken of when it is spread over ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sid_ray.denoisers.family import Constrain, leave_weight
from sid_ray.distributed.adam import Adam, AdamSettings, found_inf_in, in_batches
from sid_ray.distributed.ema import update_ema
from sid_ray.distributed.fragments import (
    EXP_AVG,
    Fragment,
    Held,
    Read,
    Shapes,
    ShardedAverage,
)
from sid_ray.distributed.packed_adam import build_adam
from sid_ray.types import Denoiser


class Role(Protocol):
    """A network that is trained: fake score or generator."""

    @property
    def network(self) -> Denoiser:
        """What to call while this role is trained: its backward pass feeds the optimizer."""

    @property
    def module(self) -> nn.Module:
        """The bare network, for phases in which it is frozen."""

    @property
    def prepares(self) -> bool:
        """Whether ``prepare`` changes anything."""

    def prepare(self) -> None:
        """Called in the role's phase, before each pass that opens groups."""

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients of a sum over this rank's samples."""

    def update(self) -> Tensor:
        """Sums gradients over ranks and steps. Whether it did, bool []: where they were not finite
        nothing changed. On the device; the host has not waited for it.
        """

    def average_into(self, average: nn.Module, beta: float) -> None:
        """average = beta * average + (1 - beta) * weights: an average that this role can read."""


@dataclass
class Trainee:
    """The three roles, the averaged generator and what has been seen.

    ``generator_ema`` is a whole network or, where the generator is sharded, its ShardedAverage.
    """

    teacher: nn.Module
    fake_score: Role
    generator: Role
    generator_ema: nn.Module
    images_seen: int = 0


@dataclass(frozen=True)
class UpdateRules:
    """What happens to gradients and weights around a role's update.

    Args:
        constrain: the family's rule on weights (EDM2's forced normalisation), after each update.
        constrain_first: that rule before each group's pass of the role's own phase instead, as the
            published code has it.
        clip_value: gradients are clipped to +- this, element by element; 0 for not.
        replace_nonfinite: gradients that are not finite become 0, 1e5 or -1e5, as published;
            otherwise the update is skipped on all ranks.
    """

    constrain: Constrain = leave_weight
    constrain_first: bool = False
    clip_value: float = 0.0
    replace_nonfinite: bool = False

    @property
    def adjusts(self) -> bool:
        """Whether adjust() does anything."""
        return self.replace_nonfinite or bool(self.clip_value)

    def adjust(self, gradients: Iterable[Tensor]) -> None:
        """In place, element by element: shards of gradients will do."""
        for gradient in gradients:
            if self.replace_nonfinite:
                torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
            if self.clip_value:
                gradient.clamp_(-self.clip_value, self.clip_value)


PLAIN_RULES = UpdateRules()


@dataclass(frozen=True)
class RoleState:
    """One role's training state, fp32: ``name/master``, ``name/exp_avg_sq`` and, where beta1 is not
    0, ``name/exp_avg``.
    """

    tensors: dict[str, Tensor]
    optimizer_steps: int

    def read(self, fragment: Fragment, kind: str) -> Tensor:
        """A part of one tensor, flat. A first moment that is not kept is 0."""
        name, offset, length = fragment
        if kind == EXP_AVG and f"{name}/{kind}" not in self.tensors:
            return torch.zeros(length)
        return self.tensors[f"{name}/{kind}"].reshape(-1)[offset : offset + length]


def whole_held(module: nn.Module, optimizer: Adam) -> Iterator[Held]:
    """Every parameter as one fragment, where nothing is sharded."""
    for name, parameter in module.named_parameters():
        values, write = optimizer.values_of(parameter)
        yield Held(Fragment(name, 0, parameter.numel()), values, write)


@torch.no_grad()
def constrain_module(
    module: nn.Module, constrain: Constrain, applied: Tensor | None = None
) -> None:
    """Writes a family's rule into the parameters it changes; nothing where ``applied`` is False."""
    for name, parameter in module.named_parameters():
        new = constrain(name, parameter)
        if new is not None:
            write_where(applied, new, parameter)


@torch.no_grad()
def write_where(applied: Tensor | None, new: Tensor, tensor: Tensor) -> None:
    """tensor = new, where ``applied``, a bool [] on its device, is not False. In one kernel."""
    if applied is None:
        tensor.copy_(new)
    else:
        torch.where(applied, new, tensor, out=tensor)


@torch.no_grad()
def fill(held: Iterable[Held], read: Read) -> None:
    """Sets fragments to what is read."""
    for item in held:
        for kind in item.values:
            item.set(kind, read(item.fragment, kind))


class TorchRole:
    """A role on one process in plain torch: the reference that every engine must equal."""

    def __init__(self, module: nn.Module, adam: AdamSettings, rules: UpdateRules = PLAIN_RULES):
        self._module = module
        self.rules, self.kinds = rules, adam.kinds
        if not rules.constrain_first:
            constrain_module(module, rules.constrain)
        self.optimizer = build_adam(adam, list(module.parameters()))

    @property
    def network(self) -> Denoiser:
        return self._module

    @property
    def module(self) -> nn.Module:
        return self._module

    @property
    def shapes(self) -> Shapes:
        return {name: tuple(value.shape) for name, value in self._module.named_parameters()}

    @property
    def prepares(self) -> bool:
        return self.rules.constrain_first

    def prepare(self) -> None:
        if self.rules.constrain_first:
            constrain_module(self._module, self.rules.constrain)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> Tensor:
        # What no loss reached is stepped with 0, as by DeepSpeed: one count of steps for all, or a
        # resumed run, which knows one, would differ when a later loss does.
        gradients = [self.optimizer.gradient_of(each) for each in self._module.parameters()]
        self.rules.adjust(gradients)
        self.optimizer.found_inf = found_inf_in(gradients)
        applied = self.optimizer.found_inf == 0
        self.optimizer.step()
        if not self.rules.constrain_first:
            constrain_module(self._module, self.rules.constrain, applied)
        self.optimizer.zero_grad(set_to_none=True)
        return applied

    def average_into(self, average: nn.Module, beta: float) -> None:
        flat = isinstance(average, ShardedAverage)  # its parts are
        means, weights = list(average.parameters()), list(self._module.parameters())
        for start, stop in in_batches([weight.numel() for weight in weights]):
            masters = (self.optimizer.master_of(weight) for weight in weights[start:stop])
            update_ema(means[start:stop], (w.view(-1) if flat else w for w in masters), beta)

    def owned(self) -> list[Held]:
        return list(whole_held(self._module, self.optimizer))

    def optimizer_steps(self) -> int:
        return self.optimizer.steps()

    def load(self, read: Read, optimizer_steps: int) -> None:
        """Sets weights, moments and step."""
        fill(self.owned(), read)
        self.optimizer.set_steps(optimizer_steps)

    def state(self) -> RoleState:
        tensors = {
            f"{held.fragment.name}/{kind}": value.reshape(self.shapes[held.fragment.name]).clone()
            for held in self.owned()
            for kind, value in held.values.items()
        }
        return RoleState(tensors, self.optimizer_steps())

    def load_state(self, state: RoleState) -> None:
        self.load(state.read, state.optimizer_steps)
