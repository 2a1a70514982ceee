"""A network whose file holds an adapter alone: its tensors over a base.

    base = find_base(description, "runs/mine", "")     the teacher that it was distilled over
    network, description = over_base(weights, base)

The base may be another one of the same network, like a fine-tune (``--base``): that is said in a
line, and not refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.adapters import Adapter, base_tensors, laid_over, merged_weights
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path
from sid_ray.weights.address import source_label
from sid_ray.weights.base import BASE, base_sha256
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.formats import LoadedWeights, read_weights
from sid_ray.weights.networks import (
    build_network,
    describe,
    fitted,
    layout,
    load_path,
    rebuilt,
)
from sid_ray.weights.same import unlike
from sid_ray.weights.sources import resolve_source
from sid_ray.weights.teacher import noted_teacher, predicts

PARTS = ("text_encoder", "vae")  # that a base may have beside it, and notes may name


def find_base(description: ModelDescription, label: str, named: str = "") -> Path | None:
    """What an adapter is laid over, on this machine's disk: the network ``named``, else the teacher
    that its notes name. None for a whole network.

    Raises UserError where it is not there, and where one is named for a whole network.
    """
    if description.adapter is None:
        if named:
            given = source_label(named)
            raise UserError(f"--base {given}: {label} is a whole network, which lies over none")
        return None
    if named:
        base = resolve_source(named, predicts(description))
    else:
        try:
            base = noted_teacher(description, label)
        except UserError as error:
            raise UserError(f"{error}; --base names another place of it") from None
    check_fits(description, describe(base), label, base)
    return base


def check_fits(
    description: ModelDescription,
    base: ModelDescription,
    label: str,
    at: Path,
    named: str = "with --base",
) -> None:
    """Raises UserError where an adapter cannot lie over a network, which is ``at`` a place.

    Heads that training alone uses must be the same, too: the adapter's network has them.
    ``named`` is how a person names a base.
    """
    plain = replace(description, adapter=None)
    if base.adapter is not None:
        raise UserError(f"{at} is an adapter, no base: name the network that it is of {named}")
    found = unlike(at_size_of(base, plain), plain, as_trained=True)
    if found is not None:
        raise UserError(
            f"{label} is an adapter of {found[1]}, {at} is {found[0]}: name a base of the same "
            f"network {named}"
        )


def with_base(description: ModelDescription, named: str, base: Path) -> ModelDescription:
    """The description of an adapter over a base that a person names: that is its teacher, whose
    text encoder and VAE are taken where it has them.
    """
    address = str(expanded(named).absolute()) if is_path(named) else named
    left_out = ["lora", "teacher_commit", *(part for part in PARTS if (base / part).is_dir())]
    notes = {name: value for name, value in description.notes.items() if name not in left_out}
    return replace(description, notes=notes | {"teacher": address})


def other_base(description: ModelDescription, base: Path) -> str:
    """How a base differs from the one that an adapter was distilled over; empty for the same."""
    was, now = str(description.notes.get(BASE, "")), base_sha256(base)
    if not was or was == now:
        return ""
    return f"sha256 {now[:16]}, distilled over {was[:16]}"


def over_base(
    weights: LoadedWeights, base: Path | None = None
) -> tuple[nn.Module, ModelDescription]:
    """An adapter's network, float32, eval, without gradients. ``base`` in place of the noted one.

    Says in a line that it is another base than the one it was distilled over. Raises UserError
    where the base is not here, or is another network.
    """
    label = weights.label
    _, description, tensors = fitted(weights)
    assert description.adapter is not None
    base = base or noted_teacher(description, label)
    network, own = load_path(base)
    check_fits(description, own, label, base)
    if other := other_base(description, base):
        print(f"{label}: the base {base} has other weights ({other})", file=sys.stderr)
    if own.network != description.network:
        network = rebuilt(network, replace(description, adapter=None))
    tree = laid_over(network, description.adapter)
    tree.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()})
    return tree.eval().requires_grad_(False), description


def at_size_of(one: ModelDescription, other: ModelDescription) -> ModelDescription:
    """A network at another one's size, where it takes several."""
    if one.family != other.family:
        return one
    family = family_of(one.family)
    network = family.at_resolution(one.network, family.shape(other.network)[1], 1)
    return one if network is None else replace(one, network=network)


# A run that starts from another one's generator ---------------------------------------------------


def check_start(
    source: str,
    start: ModelDescription,
    adapter: Adapter | None,
    teacher: ModelDescription,
    held: str = "",
) -> None:
    """Raises UserError where a generator cannot be what an ``adapter`` begins as, over a teacher
    whose notes name its numbers. None: where the generator is trained whole.

    ``held`` is what the run will note of how its base is held; empty where that is not known.
    """
    if adapter is None:
        return
    label = f"teacher.initial_generator {source}"
    if start.adapter is None:
        raise UserError(
            f"{label} is a whole network, and the generator here is an adapter: give a run whose "
            "generator is one, or set adapter.roles fake to train the generator whole"
        )
    theirs = Adapter.from_json(start.adapter)
    if theirs != adapter:
        own, there = adapter.to_json(), theirs.to_json()
        names = [name for name in own if own[name] != there[name]]
        told = ", ".join(f"{name} {shown(there[name])} (here {shown(own[name])})" for name in names)
        raise UserError(
            f"{label} is an adapter of {told}: set adapter.{names[0]} to that, or adapter.roles "
            "fake to train the generator whole"
        )
    was, is_now = (str(described.notes.get(BASE, "")) for described in (start, teacher))
    if is_now and was != is_now:
        raise UserError(
            f"{label} lies over a base whose sha256 begins with {was[:16] or 'nothing known'}, the "
            f"teacher's with {is_now[:16]}: take the teacher that it was distilled from, or set "
            "adapter.roles fake, which merges it into its own base"
        )
    holds = str(start.adapter.get("base", "float32"))
    if held and holds != held:
        raise UserError(
            f"{label} lies over a base that is held in {holds}, this run's is held in {held}: set "
            f"adapter.base {'auto' if holds == 'float32' else holds}, or adapter.roles fake, which "
            "merges it into its own base"
        )


def shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else f"{value:g}"


def start_tensors(
    start: Path, like: ModelDescription, teacher: Path, adapter: bool
) -> dict[str, Tensor]:
    """A generator's tensors, float32: its A and B where an ``adapter`` begins with them, else all
    of the network, with its adapter added to its base where it is one.

    The base is the ``teacher`` where that has the same numbers. Raises UserError.
    """
    weights = read_weights(start)
    if weights.description is None or weights.description.adapter is None:
        return build_network(weights, like)[0].state_dict()
    if adapter:
        return {n: value.to(torch.float32) for n, value in fitted(weights)[2].items()}
    same = not other_base(weights.description, teacher)
    return merged_weights(over_base(weights, teacher if same else None)[0])


# To other processes -------------------------------------------------------------------------------


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """All that a network computes with, by name, in CPU memory; of an adapter's the base, too."""
    found = {**dict(base_tensors(network)), **network.state_dict()}
    return {name: value.cpu() for name, value in found.items()}


def network_of_tensors(description: ModelDescription, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The inverse of tensors_of, in memory of its own."""
    if description.adapter is None:
        network = family_of(description.family).build(description.network)
        own = network.state_dict()
        network.load_state_dict({name: tensors[name] for name in own})
        return network.eval().requires_grad_(False)
    network = layout(description, "the network")
    for name, value in tensors.items():
        above, _, leaf = name.rpartition(".")
        module, value = network.get_submodule(above), value.clone()
        if leaf in module._buffers:
            module._buffers[leaf] = value
        else:
            module._parameters[leaf] = nn.Parameter(value, False)
    return network.eval()
