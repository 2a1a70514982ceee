"""Memory of a pass beside weights and gradients: the losses run on tensors without data.

The networks are laid out on torch's meta device, which knows shapes and no numbers, and the real
objective's two losses run forward and backward on them, while every storage that an operator makes
is counted until it is freed. So the count has what autograd keeps, casts of weights to the body's
precision, and temporaries, at their peak; it lacks what a kernel allocates inside itself (cuDNN's
workspaces) and what the allocator rounds up to.

Attention is counted as the fused kernels of GPUs keep it: q, k, v, the output and a logarithm a
row, never the matrix of scores. Left alone, the meta device would decompose attention and count it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sid_ray.config.distill_config import DistillConfig, with_plain_resources
from sid_ray.denoisers.convolution import weights_of, weights_ready
from sid_ray.denoisers.recompute import recompute_within, set_recompute
from sid_ray.denoisers.registry import family_of
from sid_ray.diffusion.augment import PLANNED
from sid_ray.objectives.spec import objective_spec
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.planning.spec_networks import spec_networks
from sid_ray.training.assemble import network_of, objective_of
from sid_ray.training.draws import Drawn
from sid_ray.training.draws_ahead import AHEAD
from sid_ray.types import Batch, Draw, DrawSpec, Networks, Scope
from sid_ray.weights.folder import ModelDescription

LATE = Scope(images_seen=1 << 40)  # every warm-up is over: all terms of a loss count


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensors that operators make inside it, from making to freeing.

    ``known`` tensors and what shares their storage are not counted. ``now`` is what is there,
    ``peak`` the most there has been.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._there: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._there:
            return

        def freed(_: weakref.ref) -> None:
            del self._there[key]
            self.now -= size

        self._there[key] = weakref.ref(storage, freed)
        self.now += size


class FusedAttention(TorchFunctionMode):
    """Attention as one kernel, also on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **named)
        named |= zip(("query", "key", "value"), args, strict=False)
        q, k, v = named["query"], named["key"], named["value"]
        keep = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, keep)[0]


@dataclass(frozen=True)
class Traced:
    """Bytes of one pass of each phase, without weights' gradients, at a few micro-batches.

    Between two of them ``at`` takes the chord. A peak is the largest of several straight lines in
    the number of images, so that a chord is never below it.
    """

    points: Mapping[int, Mapping[str, int]]

    def at(self, images: int) -> dict[str, int]:
        """Phase -> bytes at a micro-batch."""
        if images in self.points:
            return dict(self.points[images])
        sizes = sorted(self.points)
        above = next((i for i, size in enumerate(sizes) if size > images), len(sizes) - 1)
        low, high = sizes[max(above - 1, 0)], sizes[max(above, 1)]
        share = (images - low) / (high - low)
        first, last = self.points[low], self.points[high]
        return {
            phase: round(first[phase] + share * (last[phase] - first[phase])) for phase in first
        }


def trace(
    config: DistillConfig,
    description: ModelDescription,
    sizes: Sequence[int],
    device: torch.device | str = "meta",
) -> Traced:
    """Traces both phases at each of these micro-batches.

    ``device`` other than meta computes with real numbers, to compare. Raises UserError where the
    description makes no network.
    """
    description = network_of(config, description)
    chosen = with_plain_resources(config).chosen
    nets = spec_networks(config, description, device, chosen.teacher_zero_stage != 3)
    for net in nets:
        set_recompute(net, chosen.activation_checkpointing)
    phases = (FAKE_SCORE, GENERATOR)
    # A backward pass is a function that a mode is handed: within it the mode is off.
    recompute_within(FusedAttention)
    try:
        return Traced(
            {
                images: {
                    phase: phase_bytes(config, description, nets, phase, images) for phase in phases
                }
                for images in sizes
            }
        )
    finally:
        recompute_within(nullcontext)


def phase_bytes(
    config: DistillConfig,
    description: ModelDescription,
    nets: Sequence[nn.Module],
    phase: str,
    images: int,
) -> int:
    """Peak bytes of a forward and backward pass; a gradient of a weight is gone once complete."""
    trained, other = nets[1:] if phase == FAKE_SCORE else nets[:0:-1]
    known = [tensor for net in nets for tensor in (*weights_of(net), *net.buffers())]
    with trained_alone(trained), LiveBytes(known) as live, FusedAttention(), weights_ready(other):
        trace_phase(config, description, nets, phase, images)
    return live.peak


def trace_phase(
    config: DistillConfig,
    description: ModelDescription,
    nets: Sequence[nn.Module],
    phase: str,
    images: int,
) -> None:
    """One forward and backward pass of a phase, on the networks' device, with no real inputs."""
    device = next(nets[0].parameters()).device
    text = family_of(description.family).text_shape(description.network)
    null_text = torch.zeros(text, device=device) if text else None
    objective = objective_of(config, null_text)
    # Whole groups are drawn at once, also those that are split, and some are there ahead of a pass.
    drawn = max(images, config.training.group_size)
    units = [
        inputs(config, description, drawn, objective.draw_spec, device) for _ in range(1 + AHEAD)
    ]
    draw, batch = units[0].part(0, images)
    loss = objective.fake_loss if phase == FAKE_SCORE else objective.generator_loss
    loss(Networks(*nets), batch, draw, LATE).total.backward()


@contextmanager
def trained_alone(module: nn.Module) -> Iterator[None]:
    """One network with gradients, each of which is dropped as soon as it is whole."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    module.requires_grad_(True)
    hooks = [p.register_post_accumulate_grad_hook(drop) for p in module.parameters()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.requires_grad_(False)


def inputs(
    config: DistillConfig,
    description: ModelDescription,
    images: int,
    wanted: DrawSpec,
    device: torch.device,
) -> Drawn:
    """A draw and a batch of the right shapes. The step is a number, the costliest one."""
    family, network = family_of(description.family), description.network
    shape, labels = family.shape(network), family.label_dim(network)
    text = family.text_shape(network)

    def some(*size: int) -> Tensor:
        return torch.zeros(images, *size, device=device)

    steps = wanted.num_steps
    keys = torch.zeros(images, dtype=torch.int64, device=device)
    draw = Draw(
        latents=some(*shape),
        noise=some(*shape),
        time=some() + 0.5,
        dropout_keys=keys,
        step=steps - 1 if steps > 1 else None,
        more_noise=some(steps - 1, *shape) if steps > 1 else None,
        text_uniform=some() if wanted.text else None,
        augment=some(2, PLANNED) if wanted.augment else None,
    )
    reals = some(*shape) if objective_spec(config.objective.name).reads_images else None
    return Drawn(
        draw, Batch(some(labels) if labels else None, reals, some(*text) if text else None)
    )
