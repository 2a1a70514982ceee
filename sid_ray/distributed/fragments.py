"""Parts of parameters: what one rank holds of a sharded network, and whole tensors made of them.

Every layout of weights over ranks, DeepSpeed's of any stage and plain torch's, is spoken of in
these terms: a fragment is a range of a flattened parameter. A checkpoint is a set of fragments, so
it belongs to no world size and no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed
from torch import Tensor, nn

MASTER, EXP_AVG, EXP_AVG_SQ = "master", "exp_avg", "exp_avg_sq"
MOMENTS = (EXP_AVG, EXP_AVG_SQ)
KINDS = (MASTER, *MOMENTS)
SUMMED_AT_ONCE = 1 << 20  # elements, 4 MB: of small tensors, whatever one collective makes whole

Shapes = Mapping[str, Sequence[int]]


class Fragment(NamedTuple):
    """Elements offset : offset + length of a parameter, flattened."""

    name: str
    offset: int
    length: int


class OnDemand(Mapping[str, Tensor]):
    """Values by kind that are made when they are asked for, out of what is kept otherwise."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self.makers = makers

    def __getitem__(self, kind: str) -> Tensor:
        return self.makers[kind]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@dataclass(frozen=True)
class Held:
    """A fragment on this rank; ``values`` are flat views by kind: writing them sets the state.

    Where state is kept in fewer bits, ``values`` are OnDemand, and ``write`` takes a kind and its
    values.
    """

    fragment: Fragment
    values: Mapping[str, Tensor]
    write: Callable[[str, Tensor], None] | None = None

    @property
    def lasting(self) -> bool:
        """Whether values are the state itself, and no copies of a moment."""
        return not isinstance(self.values, OnDemand)

    def set(self, kind: str, value: Tensor) -> None:
        """Sets a kind of the state."""
        if self.write is None:
            self.values[kind].copy_(value)
        else:
            self.write(kind, value)

    def part(self, start: int, stop: int) -> Held | None:
        """What lies within start : stop of the whole parameter; None for nothing."""
        name, offset, length = self.fragment
        first, last = max(start, offset), min(stop, offset + length)
        if first >= last:
            return None
        inside, values = slice(first - offset, last - offset), self.values
        if isinstance(values, OnDemand):
            makers = {k: lambda k=k: values[k][inside] for k in values}
            return Held(Fragment(name, first, last - first), OnDemand(makers))
        return Held(Fragment(name, first, last - first), {k: v[inside] for k, v in values.items()})


Read = Callable[[Fragment, str], Tensor]  # the values of a kind, flat, wherever they are kept


class Sharded(Protocol):
    """A role whose state is spread over ranks."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def shapes(self) -> Shapes:
        """Whole shape of every parameter, the same on every rank, in the same order."""

    def owned(self) -> list[Held]:
        """This rank's fragments: those of all ranks are every parameter once."""


def own_slice(held: Held, rank: int, world_size: int) -> Held | None:
    """A rank's share of what every rank holds whole."""
    share = -(-held.fragment.length // world_size)
    return held.part(rank * share, (rank + 1) * share)


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class AskedWhole(NamedTuple):
    """A whole parameter of one kind, and this rank's fragment of it."""

    shape: Sequence[int]
    mine: Held | None
    kind: str


def made_whole(wanted: Iterable[AskedWhole], device: torch.device) -> Iterator[Tensor]:
    """Parameters out of all ranks' fragments, in order, on every rank. A collective.

    Several small ones are summed at once, and are views of one tensor: a collective takes longer
    than their bytes do.
    """
    together: list[AskedWhole] = []
    elements = 0
    for want in wanted:
        size = prod(want.shape)
        if together and elements + size > SUMMED_AT_ONCE:
            yield from _summed(together, device)
            together, elements = [], 0
        together.append(want)
        elements += size
    if together:
        yield from _summed(together, device)


def _summed(wanted: Sequence[AskedWhole], device: torch.device) -> Iterator[Tensor]:
    """Fragments are added to zeros as integers of the same bits: a float sum would lose the sign
    of -0.0.
    """
    sizes = [prod(shape) for shape, _, _ in wanted]
    flat = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
    parts = flat.split(sizes)
    for whole, (_, mine, kind) in zip(parts, wanted, strict=True):
        if mine is not None:
            _, offset, length = mine.fragment
            whole[offset : offset + length] = mine.values[kind]
    if world()[1] > 1:
        torch.distributed.all_reduce(flat.view(torch.int32))
    for whole, (shape, _, _) in zip(parts, wanted, strict=True):
        yield whole.view(tuple(shape))


def whole_tensors(
    shapes: Shapes, owned: Iterable[Held], kinds: Sequence[str], device: torch.device
) -> Iterator[tuple[str, str, Tensor]]:
    """(name, kind, whole tensor), few at a time, on every rank. A collective."""
    mine = {held.fragment.name: held for held in owned}
    asked = [(name, kind) for name in shapes for kind in kinds]
    wanted = (AskedWhole(shapes[name], mine.get(name), kind) for name, kind in asked)
    for (name, kind), whole in zip(asked, made_whole(wanted, device), strict=True):
        yield name, kind, whole


class ShardedAverage(nn.Module):
    """The running average of a role's weights, of which each rank keeps its own fragments.

    Starts as the weights. Its parameters are the fragments, flat and in the role's order.
    """

    def __init__(self, role: Sharded):
        super().__init__()
        owned = role.owned()
        self.fragments = [held.fragment for held in owned]
        starts = [held.values[MASTER].detach().clone() for held in owned]
        self.parts = nn.ParameterList([nn.Parameter(start, False) for start in starts])
        self.shapes = dict(role.shapes)
        # Where collectives are possible: the fragments may be offloaded to CPU memory.
        self.device = next(role.module.parameters()).device
        names = list(role.module.state_dict())  # at stage 3 the names alone are right
        self.fixed = {k: v for k, v in role.module.named_buffers() if k in names}
        self.names = names

    def held(self) -> list[Held]:
        pairs = zip(self.fragments, self.parts, strict=True)
        return [Held(fragment, {MASTER: part.data}) for fragment, part in pairs]

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the network's state, few at a time, on every rank. A collective."""
        mine = {held.fragment.name: held for held in self.held()}
        sharded = (name for name in self.names if name not in self.fixed)
        wanted = (AskedWhole(self.shapes[name], mine.get(name), MASTER) for name in sharded)
        wholes = made_whole(wanted, self.device)
        for name in self.names:
            yield name, self.fixed[name] if name in self.fixed else next(wholes)


def whole_state(average: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of an average's state on every rank, sharded or not. A collective."""
    if isinstance(average, ShardedAverage):
        yield from average.whole()
    else:
        yield from average.state_dict().items()


def gathered(value: Any, group: Any = None) -> list[Any]:
    """Every rank's value, by rank, on every rank. A collective; small values only."""
    ranks = world()[1]
    if ranks == 1:
        return [value]
    values: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(values, value, group=group)
    return values
