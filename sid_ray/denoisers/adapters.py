"""Adapters: a frozen base, and beside its weights small ones that are trained (LoRA).

    W' = W + alpha / r * B A        of which A and B alone are trained; B starts at 0

A role is a module tree of its own over the base's tensors, which all trees share: no call depends
on which adapter somebody switched on last, and what a backward pass computes again sees its own.
In such a tree the base is no parameter: its tensors are buffers that no state dict has. So all that
goes over parameters (optimizer, ZeRO, averages, checkpoints) sees the adapter and nothing else.

torch's layers get PEFT's. Layers of this project's own networks make their weight anew from W, A
and B in each pass (low_rank.py), because they do more with it than multiply.

Symbols
    W       a layer's weight [out, in] or [out, in, h, w]
    A, B    down and up: [r, in] and [out, r]; of a convolution [r, in, h, w] and [out, r, 1, 1]
    r       rank
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.adapter_names import DOWN, OWN, is_adapters
from sid_ray.denoisers.casting import make_casting
from sid_ray.denoisers.low_rank import LowRank, add_low_rank, fits_low_rank
from sid_ray.denoisers.quantised import QUANTISED, QuantisedLinear, quantise, quiet_bitsandbytes
from sid_ray.diffusion.rng import ADAPTER, generator_for
from sid_ray.errors import UserError

BASE_LAYER = ".base_layer."
MAX_RANK, MAX_TARGETS = 1 << 16, 1 << 10  # more of them no network has
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Adapter:
    """What an adapter is beside its numbers.

    ``targets`` are endings of names of layers, as PEFT's target_modules; ``*`` is any text.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Adapter:
        """The inverse of to_json; what else stands there is left out. Raises UserError."""
        try:
            rank, alpha = int(values["rank"]), float(values["alpha"])
            targets = tuple(str(target) for target in values["targets"])
        except (LookupError, TypeError, ValueError, OverflowError):
            raise UserError(f"what is said of an adapter is not whole: {values!r:.80}") from None
        if not 0 < rank <= MAX_RANK or not 0 < len(targets) <= MAX_TARGETS:
            raise UserError(f"an adapter of rank {rank} on {len(targets)} kinds of layers is none")
        if not math.isfinite(alpha):
            raise UserError(f"alpha of an adapter is {alpha}: a finite number is expected")
        return cls(rank, alpha, targets)


def require_peft() -> None:
    """Raises UserError naming the extra where PEFT is missing."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("adapters need peft, not installed here: pip install 'sid_ray[adapters]'")


def with_adapter(base: nn.Module, adapter: Adapter) -> nn.Module:
    """A denoiser of its own over the tensors of ``base``, with an adapter whose B are 0.

    ``base`` stays as it is, and must not change its tensors while the other lives. Its parameters
    are not the new one's, whose parameters are the A and B alone. Raises UserError where no layer's
    name ends as asked.
    """
    check_targets(base, adapter)
    tree = over_the_same(base)
    layers = dict(target_layers(tree, adapter.targets))
    own = {name: layer for name, layer in layers.items() if fits_low_rank(layer)}
    for layer in own.values():
        add_low_rank(layer, adapter.rank, adapter.alpha)
    if theirs := [name for name in layers if name not in own]:
        add_peft(tree, theirs, adapter)
    hold_base(tree)
    return tree.requires_grad_(False)


def laid_over(base: nn.Module, said: Mapping[str, Any]) -> nn.Module:
    """The tree of an adapter as a description says it, over a base held as it was trained over.

    ``base`` becomes that, in place. Raises UserError.
    """
    adapter = Adapter.from_json(said)
    device = next(base.parameters()).device
    hold_as_base(base, str(said.get("base", "float32")), device)
    return with_adapter(base, adapter)


def check_targets(network: nn.Module, adapter: Adapter) -> None:
    """Raises UserError where no layer's name ends as asked, and where PEFT is missing."""
    layers = dict(target_layers(network, adapter.targets))
    if not layers:
        known = sorted({name.rpartition(".")[2] for name, _ in target_layers(network, ("*",))})
        raise UserError(
            f"adapter.targets {','.join(adapter.targets)}: no linear layer or convolution of this "
            f"network is called so; their names end in {', '.join(known)[:300]}"
        )
    grouped = [name for name, layer in layers.items() if getattr(layer, "groups", 1) != 1]
    if grouped:
        raise UserError(
            f"adapter.targets {','.join(adapter.targets)}: {grouped[0]} is a convolution in "
            "groups, which adapters do not change: name others"
        )
    if not all(fits_low_rank(layer) for layer in layers.values()):
        require_peft()


def over_the_same(network: nn.Module) -> nn.Module:
    """Another tree of the same modules over the same tensors."""
    shared: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        plain = type(parameter) is nn.Parameter  # others know more than their numbers (quantised)
        shared[id(parameter)] = nn.Parameter(parameter.detach(), False) if plain else parameter
    return copy.deepcopy(network, shared)


def target_layers(network: nn.Module, targets: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and convolutions, by name, whose name is one of ``targets`` or ends so; a ``*``
    there is any text, and all-linear PEFT's word for every linear layer.
    """
    patterns = [pattern for ending in targets for pattern in (ending, f"*.{ending}")]
    all_linear = ALL_LINEAR in patterns
    for name, layer in network.named_modules():
        if not (isinstance(layer, nn.Linear | nn.Conv2d) or fits_low_rank(layer)):
            continue
        linear = layer._parameters["weight"].ndim == 2
        if (all_linear and linear) or any(fnmatchcase(name, pattern) for pattern in patterns):
            yield name, layer


def add_peft(tree: nn.Module, names: list[str], adapter: Adapter) -> None:
    """Puts PEFT's layers in the place of these, in place."""
    quiet_bitsandbytes()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # it draws A, which start_adapter draws again
        inject_adapter_in_model(config, tree)
    for layer in tree.modules():
        if isinstance(layer, LoraLayer):
            # A and B compute in their input's precision, as the layers beside them, and are trained
            # in float32 at least, where PEFT takes the base's.
            layer.cast_input_dtype_enabled = False
            for part in (layer.lora_A, layer.lora_B):
                held = next(part.parameters()).dtype
                make_casting(part.to(torch.promote_types(held, torch.float32)))


def hold_base(tree: nn.Module) -> None:
    """Makes every tensor that is not an adapter's a buffer that no state dict has, in place."""
    trained = {id(value) for name, value in tree.named_parameters() if is_adapters(name)}
    for module in tree.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and id(value) not in trained:
                del module._parameters[name]
                module.register_buffer(
                    name, value if type(value) is not nn.Parameter else value.data
                )
        module._non_persistent_buffers_set.update(module._buffers)


@torch.no_grad()
def hold_as_base(network: nn.Module, precision: str, device: torch.device) -> None:
    """Moves a frozen network to where adapters lie over it, held as adapter.base says, in place.

    That is of the weights that the network casts to the precision of its body in each pass; norms,
    biases and embeddings stay as they are. Held in the body's precision, no number changes. 8bit
    and 4bit are of the linear layers in its blocks, and beside these the body's precision. Of what
    is not yet held so, one layer at a time is on the device. Raises UserError.
    """
    network.requires_grad_(False)
    body = getattr(network, "compute_dtype", None)
    for layer, in_blocks in [] if precision == "float32" else layers_to_hold(network, precision):
        layer.to(device)
        if precision in QUANTISED and in_blocks:
            quantise(layer, precision)
            continue
        weight = layer.weight
        dtype = body or weight.dtype if precision in QUANTISED else getattr(torch, precision)
        weight.data = weight.data.to(dtype)
        if dtype != body:
            make_casting(layer)
    network.to(device)


def layers_to_hold(network: nn.Module, precision: str) -> list[tuple[Any, bool]]:
    """Layers that may be held in a precision other than their own, and whether each is a linear
    layer in a block. Raises UserError.
    """
    if not hasattr(network, "cast_layers"):
        raise UserError(
            f"adapter.base is {precision}; {type(network).__name__} computes with its weights as "
            "they are: set --adapter.base float32"
        )
    cast = {id(layer) for layer in network.cast_layers()}  # type: ignore[operator]
    return [
        (layer, isinstance(layer, nn.Linear) and "block" in name)
        for name, layer in network.named_modules()
        if id(layer) in cast
    ]


@torch.no_grad()
def start_adapter(network: nn.Module, seed: int, role: int) -> None:
    """Sets A uniform in +- 1 / sqrt(fan-in), keyed by layer, and B to 0: the network is its base.

    ``role`` keeps two adapters of a run apart.
    """
    for name, value in network.named_parameters():
        if name.endswith(DOWN):
            key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
            rng = generator_for(seed, ADAPTER, role, key)
            drawn = torch.rand(value.shape, generator=rng, dtype=torch.float32)
            value.copy_((2 * drawn - 1) / value[0].numel() ** 0.5)
        else:
            value.zero_()


@torch.no_grad()
def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights, by the base's names, with the adapter added in float64; others are the base's.

    W + alpha / r * B A is rounded once, to the precision that W is held in; quantised weights
    become float32.
    """
    found = {}
    for name, value in base_tensors(network):
        layer = network.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, QuantisedLinear):
            if name.endswith(".scales"):
                continue
            value = layer.whole(torch.float32) if name.endswith(".weight") else value
        plain = name.replace(BASE_LAYER, ".")
        found[plain] = value
        if isinstance(layer, LowRank) and name.endswith(".base_weight"):
            del found[plain]
            plain = plain.removesuffix("base_weight") + "weight"
            found[plain] = (value.double() + layer.change(torch.float64)).to(value.dtype)
        elif BASE_LAYER in name and name.endswith(".weight"):
            outer: Any = network.get_submodule(name.rpartition(BASE_LAYER)[0])
            found[plain] = (value.double() + peft_change(outer, value.shape)).to(value.dtype)
    return found


def peft_change(layer: Any, shape: torch.Size) -> Tensor:
    """alpha / r * B A of one of PEFT's layers, float64, in a shape."""
    down, up = (part[OWN].weight.double() for part in (layer.lora_A, layer.lora_B))
    product = up.flatten(1) @ down.flatten(1)
    return product.reshape(shape) * layer.scaling[OWN]


def base_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a tree with an adapter holds of its base, by the names in the tree."""
    yield from network.named_buffers()
