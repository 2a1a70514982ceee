"""Where DeepSpeed 0.19.8 keeps fp32 weights and Adam's moments at each ZeRO stage.

One class a group of stages, all with the same methods. They read DeepSpeed's attributes and
do not use its safe_get_* and safe_set_*, because those skip parameters without requires_grad at
stage 3, are wrong there when a size does not divide by the world size, and write masters alone
at stages 1 and 2. It imports nothing of DeepSpeed: an engine is handed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.distributed.adam import Adam
from sid_ray.distributed.fragments import MASTER, Fragment, Held, Shapes, own_slice, world
from sid_ray.distributed.roles import whole_held


class Replicated:
    """Stage 0: every rank holds everything, and owns a slice of each parameter."""

    def __init__(self, engine: Any):
        self.engine = engine

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    @property
    def adam(self) -> Adam:
        return self.engine.optimizer

    @property
    def shapes(self) -> Shapes:
        return {name: tuple(value.shape) for name, value in self.module.named_parameters()}

    def held(self) -> list[Held]:
        """What this rank holds: writing the values sets the state once refresh() has run."""
        return list(whole_held(self.module, self.adam))

    def owned(self) -> list[Held]:
        """What this rank holds, less what another rank is to write."""
        slices = (own_slice(held, *world()) for held in self.held())
        return [held for held in slices if held is not None]

    def refresh(self) -> None:
        """Working weights from masters. A collective."""

    def settle(self) -> None:
        """Called when masters and, through ``whole``, working weights were set alike."""

    def gradients(self) -> list[Tensor]:
        """This rank's gradients as the optimizer will use them, summed over all ranks.

        Present from the last backward pass of an accumulation until step().
        """
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def gradients_changed(self) -> None:
        """Called when the values of ``gradients`` were written, before step()."""

    def forget_gradients(self) -> None:
        """Called after each update."""

    @contextmanager
    def whole(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """One whole working weight. A collective."""
        yield parameter.data


class Partitioned(Replicated):
    """Stages 1 and 2: working weights everywhere, masters and moments in parts."""

    @property
    def adam(self) -> Adam:
        return self.engine.optimizer.optimizer

    def held(self) -> list[Held]:
        for group in self.adam.param_groups:
            for flat in group["params"]:
                self.adam.state_of(flat)
        # Links each parameter to its part of the moments, which else happens in the first step.
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        found = []
        for name, parameter in self.module.named_parameters():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                continue  # another rank's
            address = mapping.lp_fragment_address
            values = {MASTER: mapping.hp_fragment.data}
            values |= {moment: mapping.get_hp_fragment(moment) for moment in self.adam.moments}
            found.append(Held(Fragment(name, address.start, address.numel), values))
        return found

    def owned(self) -> list[Held]:
        return self.held()

    def refresh(self) -> None:
        self.engine.optimizer.update_lp_params()

    def gradients(self) -> list[Tensor]:
        parts = self.engine.optimizer.averaged_gradients.values()
        return [gradient for part in parts if part is not None for gradient in part]


class FullySharded(Partitioned):
    """Stage 3: working weights, masters and moments in parts, gathered while they are used."""

    @property
    def shapes(self) -> Shapes:
        named = self.module.named_parameters()
        return {name: tuple(value.ds_shape) for name, value in named}  # type: ignore[attr-defined]

    def held(self) -> list[Held]:
        optimizer, rank, found = self.engine.optimizer, world()[0], []
        for name, parameter in self.module.named_parameters():
            group, start, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset = rank * share
            # The last ranks' shares end in padding, or are nothing else.
            length = min(share, parameter.ds_numel - offset)  # type: ignore[attr-defined]
            if length <= 0:
                continue
            flat = optimizer.fp32_partitioned_groups_flat[group]
            state = self.adam.state_of(flat)
            values = {MASTER: flat.data} | {moment: state[moment] for moment in self.adam.moments}
            narrowed = {k: v.narrow(0, start, length) for k, v in values.items()}
            found.append(Held(Fragment(name, offset, length), narrowed))
        return found

    def refresh(self) -> None:
        optimizer = self.engine.optimizer
        flats = optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat
        for working, master in zip(*flats, strict=True):
            working.data.copy_(master.data)  # apart in float32 too
        # Small parameters stay gathered between steps: they are gathered anew when next used.
        optimizer._partition_all_parameters()

    def settle(self) -> None:
        self.refresh()  # what ``whole`` gave was a copy; no communication

    def forget_gradients(self) -> None:
        # A parameter that no loss reaches would be stepped with its last gradient again.
        self.engine.optimizer.grad_partitions_flat_buffer.zero_()

    @contextmanager
    def whole(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        # What is gathered already stays so: DeepSpeed counts what it has gathered itself.
        gathered = parameter.ds_status.name == "AVAILABLE"  # type: ignore[attr-defined]
        if not gathered:
            parameter.all_gather()  # type: ignore[attr-defined]
        try:
            yield parameter.data
        finally:
            if not gathered:
                parameter.partition()  # type: ignore[attr-defined]


class OffloadedPartitioned(Partitioned):
    """Stages 1 and 2 with masters, moments and gradients in CPU memory.

    The gradients are in the masters' ``grad``, which lives as long as the run; their norms are
    taken as they arrive there, and what is not finite is told by the norms alone.
    """

    def gradients(self) -> list[Tensor]:
        self.engine.optimizer._wait_for_offload_copies()
        return [flat.grad for flat in self.engine.optimizer.single_partition_of_fp32_groups]

    def gradients_changed(self) -> None:
        optimizer = self.engine.optimizer
        positions = optimizer.grad_position.items()
        flats = optimizer.single_partition_of_fp32_groups
        optimizer.norm_for_param_grads = {
            parameter: flats[group].grad.narrow(0, start, length).norm(2)
            for parameter, (group, _, start, length) in positions
        }

    def forget_gradients(self) -> None:
        # As at stage 3; and a later pass adds to what the passes of the last step left.
        for gradient in (
            *self.gradients(),
            *self.engine.optimizer.accumulated_grads_in_cpu.values(),
        ):
            gradient.zero_()


class OffloadedFullySharded(FullySharded):
    """Stage 3 with masters, moments and gradients in CPU memory; see OffloadedPartitioned."""

    def gradients(self) -> list[Tensor]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # they are copied out in the background
        return [flat.grad for flat in self.engine.optimizer.fp32_partitioned_groups_flat]

    def gradients_changed(self) -> None:
        optimizer = self.engine.optimizer
        flats = optimizer.fp32_partitioned_groups_flat
        optimizer.norm_for_param_grads = {
            parameter: flats[group].grad.narrow(0, start, length).norm(2)
            for parameter, (group, start, length) in optimizer.grad_position.items()
        }

    def forget_gradients(self) -> None:
        super().forget_gradients()
        for gradient in self.gradients():
            gradient.zero_()


def layout_of(engine: Any, stage: int, offload: bool = False) -> Replicated:
    """The layout of an engine's state."""
    kept = (Replicated, Partitioned, Partitioned, FullySharded)
    offloaded = (Replicated, OffloadedPartitioned, OffloadedPartitioned, OffloadedFullySharded)
    return (offloaded if offload else kept)[stage](engine)
