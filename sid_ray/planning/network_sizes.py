"""Sizes of a run's networks, counted on torch's meta device: parameters, and bytes of a teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.adapters import hold_as_base, layers_to_hold, with_adapter
from sid_ray.denoisers.convolution import freeze, weights_of
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.quantised import BLOCK, QUANTISED
from sid_ray.planning.memory import TRAINED, Network
from sid_ray.training.adapter_settings import run_adapter
from sid_ray.weights.folder import ModelDescription
from sid_ray.weights.networks import layout


def sizes_of(
    description: ModelDescription,
    persistent: int,
    text: int = 0,
    config: DistillConfig | None = None,
) -> Network:
    """Counts of a network that is never built. ``persistent`` is stage 3's threshold; ``config``
    says which roles are adapters.
    """
    module = layout(description, "the teacher")
    counts = [parameter.numel() for parameter in module.parameters()]
    buffers = sum(buffer.untyped_storage().nbytes() for buffer in module.buffers())
    small = sum(count for count in counts if count <= persistent)
    adapter = None if config is None else run_adapter(config, description.family)
    adapters: dict[str, int] = {}
    if config is not None and adapter is not None:
        with torch.device("meta"):
            over = with_adapter(module, adapter)
        count = sum(parameter.numel() for parameter in over.parameters())
        adapters = {role: count for role in TRAINED if config.adapter.of(role)}
    return Network(sum(counts), small, buffers, text, max(counts, default=0), adapters)


def base_bytes(description: ModelDescription, held: str, precision: str) -> int:
    """Bytes of the weights of a base of adapters: ``held`` as adapter.base says it, and where it is
    quantised, what is no linear layer in ``precision``.
    """
    module = layout(description, "the teacher")
    set_precision(module, precision)
    quantised = weights_to_quantise(module, held) if held in QUANTISED else []
    hold_as_base(module, precision if held in QUANTISED else held, torch.device("meta"))
    found = sum(tensor.nbytes for tensor in weights_of(module))
    return found + sum(BYTES[held](weight) - weight.nbytes for weight in quantised)


def weights_to_quantise(module: nn.Module, held: str) -> list[Tensor]:
    """Weights of the linear layers that a quantised base holds as codes."""
    return [layer.weight for layer, in_blocks in layers_to_hold(module, held) if in_blocks]


def bytes_8bit(weight: Tensor) -> int:
    """A byte a number, and a float32 a row."""
    return weight.numel() + 4 * len(weight)


def bytes_4bit(weight: Tensor) -> int:
    """Half a byte a number, and a float32 for each 64 of them."""
    return -(-weight.numel() // 2) + 4 * -(-weight.numel() // BLOCK)


BYTES = {"8bit": bytes_8bit, "4bit": bytes_4bit}


def dequantised_bytes(description: ModelDescription, held: str, precision: str) -> int:
    """Bytes of the largest weight that a pass makes anew of quantised ones; 0 for a floating
    base.
    """
    if held not in QUANTISED:
        return 0
    weights = weights_to_quantise(layout(description, "the teacher"), held)
    sizes = [weight.numel() for weight in weights]
    return max(sizes, default=0) * getattr(torch, precision).itemsize


def frozen_bytes(description: ModelDescription, precision: str) -> int:
    """Bytes of the weights of a teacher made ready for a body of this precision; 0 for float32."""
    if precision == "float32":
        return 0
    module = layout(description, "the teacher")
    set_precision(module, precision)
    freeze(module)
    return sum(tensor.nbytes for tensor in weights_of(module))
