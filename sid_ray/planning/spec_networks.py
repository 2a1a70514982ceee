"""The networks of a run without their numbers, and how large they are.

They lie on torch's meta device, or on another with random numbers, to compare. Under adapters the
teacher is the base, whose tensors all three share.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.adapters import with_adapter
from sid_ray.denoisers.convolution import freeze, ready_layers, weights_of
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.registry import family_of
from sid_ray.planning.memory import TRAINED, Network
from sid_ray.training.assemble import adam_of, base_precision, run_adapter
from sid_ray.weights.folder import ModelDescription
from sid_ray.weights.networks import layout


def spec_networks(
    config: DistillConfig,
    description: ModelDescription,
    device: torch.device | str,
    whole_teacher: bool = True,
) -> list[nn.Module]:
    """Teacher, fake score and generator as a run has them, with no numbers or with random ones.

    Of a teacher that is not whole, parts are made ready as they are gathered.
    """
    teacher = spec_network(config, description, device)
    adapter = run_adapter(config, description.family)
    if adapter is not None:
        hold_plainly(teacher, plain_base(config))
    elif whole_teacher:
        freeze(teacher)

    def role(name: str) -> nn.Module:
        if adapter is None or not config.adapter.of(name):
            net = spec_network(config, description, device)
            return net.to(torch.bfloat16) if adam_of(config, name).half_weights else net
        with torch.device(device):
            return with_adapter(teacher, adapter)

    return [teacher, *map(role, TRAINED)]


def spec_network(
    config: DistillConfig, description: ModelDescription, device: torch.device | str
) -> nn.Module:
    """A frozen network with no numbers, or with random ones."""
    if str(device) == "meta":
        net = layout(description, "the teacher")
    else:
        net = family_of(description.family).build(description.network).to(device)
    set_precision(net, config.training.precision)
    return net.requires_grad_(False)


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


def plain_base(config: DistillConfig) -> str:
    """What a base of adapters is traced in: in place of quantised weights those they become."""
    held = base_precision(config)
    return config.training.precision if held in QUANTISED else held


@torch.no_grad()
def hold_plainly(network: nn.Module, precision: str) -> None:
    """Holds the weights that are cast in each pass in a floating precision, in place."""
    for layer in ready_layers(network.requires_grad_(False)):
        assert layer.weight is not None
        layer.weight.data = layer.weight.to(getattr(torch, precision))


def base_bytes(description: ModelDescription, held: str, precision: str) -> int:
    """Bytes of the weights of a base of adapters: ``held`` as adapter.base says it, and where it is
    quantised, what is no linear layer in ``precision``.
    """
    module = layout(description, "the teacher")
    linear = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    hold_plainly(module, precision if held in QUANTISED else held)
    found = sum(tensor.nbytes for tensor in weights_of(module))
    if held in QUANTISED:
        quantised = {id(weight): weight for weight in linear}.values()
        found += sum(QUANTISED[held](weight) - weight.nbytes for weight in quantised)
    return found


def bytes_8bit(weight: Tensor) -> int:
    """bitsandbytes: a byte a number, and a float32 a row."""
    return weight.numel() + 4 * len(weight)


def bytes_4bit(weight: Tensor) -> int:
    """bitsandbytes: half a byte a number; of each 64 the largest in a byte, and of 256 of those in
    a float32; the two tables of what the codes mean.
    """
    blocks = -(-weight.numel() // 64)
    return -(-weight.numel() // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256)


QUANTISED = {"8bit": bytes_8bit, "4bit": bytes_4bit}


def dequantised_bytes(description: ModelDescription, config: DistillConfig) -> int:
    """Bytes of the largest quantised weight as a pass makes it anew; 0 where none is quantised."""
    if not config.adapter.rank or base_precision(config) not in QUANTISED:
        return 0
    module = layout(description, "the teacher")
    sizes = [each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear)]
    return max(sizes, default=0) * getattr(torch, config.training.precision).itemsize


def frozen_bytes(description: ModelDescription, precision: str) -> int:
    """Bytes of the weights of a teacher made ready for a body of this precision; 0 for float32."""
    if precision == "float32":
        return 0
    module = layout(description, "the teacher")
    set_precision(module, precision)
    freeze(module)
    return sum(tensor.nbytes for tensor in weights_of(module))
