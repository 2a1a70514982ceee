"""One call from a source to a network: fetch, read, build, check, fill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.adapter_names import names_in_tree
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.tensor_files.inert import printable
from sid_ray.tensor_files.tensors import check_fit
from sid_ray.weights.address import source_label
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.formats import LoadedWeights, read_weights
from sid_ray.weights.sources import resolve_source

MAX_ARGUMENT, MAX_ITEMS, MAX_BLOCKS = 1 << 16, 32, 64
COUNTS = {"num_blocks", "layers_per_block", "transformer_layers_per_block"}


def load(
    source: str, part: str | None = None, like: str | None = None
) -> tuple[nn.Module, ModelDescription]:
    """The network of any source (sources.py) in any format (formats.py).

    ``part`` chooses among the networks of a training state; ``like`` is another source that says
    which network a bare state dict is of. Float32, eval, without gradients. Raises UserError when
    the source cannot be had, is damaged, asks for more than tensors, or does not fit its network.
    """
    lender = read(like, numbers=False).described() if like else None
    return build_network(read(source, part), lender)


def read(source: str, part: str | None = None, numbers: bool = True) -> LoadedWeights:
    """The weights of a source, without a network around them. Raises UserError."""
    return read_weights(resolve_source(source), part, source_label(source), numbers)


def load_path(
    path: Path, like: ModelDescription | None = None
) -> tuple[nn.Module, ModelDescription]:
    """load() for a local file or folder."""
    return build_network(read_weights(path), like)


def describe(path: Path, like: ModelDescription | None = None) -> ModelDescription:
    """The network of a local file or folder, checked as load_path does but for its numbers.

    Raises UserError for whatever load_path would refuse: only damaged numbers are left to it.
    """
    return fitted(read_weights(path, numbers=False), like)[1]


def fitted(
    weights: LoadedWeights, like: ModelDescription | None = None
) -> tuple[nn.Module, ModelDescription, dict[str, Tensor]]:
    """A network without memory, what it is, and its tensors by its own names.

    Raises UserError where they do not fit.
    """
    description = weights.described(like)
    model = layout(description, weights.label)
    named = named_for(description.family, weights.tensors)
    check_fit(model, named, weights.label)
    return model, description, named


def build_network(
    weights: LoadedWeights, like: ModelDescription | None = None
) -> tuple[nn.Module, ModelDescription]:
    """A network with these weights. Raises UserError where they do not fit.

    The network is first laid out without memory, so that a file's arguments cannot make it larger
    than the file's tensors are.
    """
    model, description, named = fitted(weights, like)
    if description.adapter is not None:
        raise UserError(f"{weights.label} holds an adapter alone: give the network that it is of")
    tensors = {n: value.to(torch.float32, copy=True) for n, value in named.items()}
    model.load_state_dict(tensors, assign=True)
    if any(value.is_meta for value in (*model.parameters(), *model.buffers())):
        model = family_of(description.family).build(
            description.network
        )  # has buffers that no state dict holds
        model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), description


def rebuilt(network: nn.Module, description: ModelDescription) -> nn.Module:
    """The same weights, not copied, in a network of other arguments, such as its dropout."""
    weights = network.state_dict()
    changed = layout(description, "the network")
    changed.load_state_dict(weights, assign=True)
    if any(value.is_meta for value in (*changed.parameters(), *changed.buffers())):
        changed = family_of(description.family).build(description.network)
        changed.load_state_dict(weights)
    return changed.eval().requires_grad_(False)


def named_for(family: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of our denoiser: some files hold the network inside it, bare."""
    tensors, prefix = names_in_tree(tensors), family_of(family).bare_prefix
    if any(name.startswith(prefix) for name in tensors):
        return dict(tensors)
    return {prefix + name: value for name, value in tensors.items()}


def layout(description: ModelDescription, label: str) -> nn.Module:
    """The network's modules without memory. Raises UserError for arguments that make none."""
    check_arguments(description.network, label)
    family = family_of(description.family)
    try:
        with torch.device("meta"):
            network = family.build(description.network)
            if description.adapter is None:
                return network
            from sid_ray.denoisers.adapters import laid_over

            return laid_over(network, description.adapter)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AssertionError) as e:
        reason = printable(str(e)[:200])
        raise UserError(f"{label} records arguments that make no network: {reason}") from None


def check_arguments(network: Mapping[str, Any], label: str) -> None:
    """Raises UserError for arguments that would keep a constructor busy for ever."""
    for name, value in network.items():
        items = value if isinstance(value, list | tuple) else [value]
        numbers = [item for item in items if isinstance(item, int | float)]
        limit = MAX_BLOCKS if name in COUNTS else MAX_ARGUMENT
        if len(items) > MAX_ITEMS or any(not -limit <= number <= limit for number in numbers):
            raise UserError(f"{label} records {name!a} = {str(value)[:60]}, which no network has")
