"""The trained roles as DeepSpeed engines of any ZeRO stage.

State goes in and out by parameter name, in fragments or whole, the same whatever the stage and the
world size, so that a checkpoint belongs to the run and not to the machines it was written on.

Facts of DeepSpeed 0.19.8 that this file rests on; deepspeed_private.py has those of its memory
    gradient_clipping defaults to 1.0, so every behaviour-relevant key is set in deepspeed_config.
    Within the generator phase the fake score is called as the bare module, frozen; through its
    engine the gradients would be wrong (stage 3) or the call would raise (stages 0 to 2).
    In float32, stages 1 to 3 look by themselves for a global gradient norm that is not finite, and
    the host waits for it. Here the device looks, at every stage alike, and Adam's kernels heed it:
    DeepSpeed's own look is left out (stages 1 and 2 by its compute_grad_norm, the others in
    deepspeed_private.py).
    Its throughput timer waits for the device before and after each pass; it is off.
    Over gloo, gathering several parameters at once waits for the last one only: stage 3 gathers
    them one by one there.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.config.chosen import ChosenResources
from sid_ray.denoisers.family import leave_weight
from sid_ray.denoisers.recompute import recompute_within
from sid_ray.distributed.adam import AdamSettings
from sid_ray.distributed.deepspeed_private import (
    build_no_inference_operator,
    import_deepspeed,
    kept_gathered,
    layout_of,
    rank_zero_weights,
    wait_on_the_device,
)
from sid_ray.distributed.ema import update_ema
from sid_ray.distributed.fragments import MASTER, Held, Read, Shapes, ShardedAverage, whole_tensors
from sid_ray.distributed.packed_adam import build_adam
from sid_ray.distributed.roles import (
    PLAIN_RULES,
    RoleState,
    UpdateRules,
    fill,
    write_where,
)
from sid_ray.types import Denoiser

LOCK_PATIENCE_S = 5.0
BUCKET = 50_000_000  # elements; the default of ten times as many takes 2 GB a role
# Stage 3 keeps parameters of at most so many elements gathered between uses: biases and gains,
# for which a collective costs more than the memory.
PERSISTENT = 10_000
SUB_GROUP = 1_000_000_000  # elements that stage 3 steps at once


def deepspeed_config(
    zero_stage: int,
    passes: int,
    world_size: int,
    offload: bool = False,
    overlap: bool = False,
    half: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's configuration of one role; every key that changes numbers or memory is set.

    ``passes`` is the number of backward passes before an update. A micro-batch is called one
    sample here: the losses are already divided by the global batch. ``offload`` keeps masters,
    moments and accumulated gradients in CPU memory and steps them there (stages 1 to 3).
    ``overlap`` sums gradients over ranks while the backward pass goes on (stages 1 to 3).
    ``half``: working weights are bfloat16 (stages 2 and 3; stage 1 would be another optimizer);
    gradients are added up, over passes and over ranks, in float32 all the same.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": passes,
        "train_batch_size": passes * world_size,
        "gradient_clipping": 0.0,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_allreduce_op": "mean",  # "sum" is refused at stage 3: the loss is scaled instead
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "fp16": {"enabled": False},
        "bf16": {
            "enabled": half,
            "immediate_grad_update": False,
            "check_grad_overflow": False,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "zero_optimization": zero_config(zero_stage, offload, overlap),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "steps_per_print": 2**31,
    }


def zero_config(stage: int, offload: bool, overlap: bool = False) -> dict[str, Any]:
    """The part of the configuration about what is shared out over ranks."""
    return {
        "stage": stage,
        "overlap_comm": overlap,
        "contiguous_gradients": True,
        "round_robin_gradients": False,
        "reduce_scatter": True,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "compute_grad_norm": stage not in (1, 2) or offload,  # else it must be on: see the top
        "ignore_unused_parameters": True,  # the generator's log-variance head
        "parameter_alignment": False,
        "elastic_checkpoint": False,
        "load_from_fp32_weights": True,
        "sub_group_size": SUB_GROUP,
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": PERSISTENT,
        "stage3_model_persistence_threshold": BUCKET,
        # By default a thousand million elements stay gathered: any network here, whole.
        "stage3_max_live_parameters": 2 * BUCKET,
        "stage3_max_reuse_distance": BUCKET,
        "stage3_module_granularity_threshold": 0,
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": over_gloo(),
        "memory_efficient_linear": False,  # would put its own in place of torch's
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": False,
        "offload_param": {"device": "none"},
        "offload_optimizer": {
            "device": "cpu" if offload else "none",
            "pin_memory": torch.cuda.is_available(),
            "ratio": 1.0,
            "super_offload": False,
        },
    }


def over_gloo() -> bool:
    distributed = torch.distributed
    return distributed.is_initialized() and distributed.get_backend() == "gloo"


def check_no_stale_lock() -> None:
    """Names a lock that a killed build left in the extension cache, before it hangs a run.

    Raises RuntimeError when a lock older than LOCK_PATIENCE_S lies there.
    """
    cache = os.environ.get("TORCH_EXTENSIONS_DIR")
    if not cache:
        return
    for lock in Path(cache).glob("**/lock"):
        if time.time() - lock.stat().st_mtime > LOCK_PATIENCE_S:
            raise RuntimeError(
                f"a build of a torch extension was killed and left {lock}; "
                "delete it and start again"
            )


def needs_deepspeed(resources: ChosenResources, world_size: int) -> bool:
    """Whether roles are DeepSpeed's; else they are plain torch's (roles.TorchRole).

    On one worker there is nobody to share with, at any stage: masters, buckets and gathering would
    cost memory and time alone. Offloading to CPU memory is DeepSpeed's on any number of workers.
    """
    return world_size > 1 or resources.offload_optimizer


def say_no_untested(record: logging.LogRecord) -> bool:
    """Our Adam is torch's, and not one to be warned of at each start."""
    return "untested optimizer" not in record.getMessage()


def init_deepspeed() -> None:
    """Joins DeepSpeed to the process group that exists. Compiles nothing."""
    check_no_stale_lock()
    import_deepspeed()
    import deepspeed
    from deepspeed.utils import logger

    build_no_inference_operator()
    if say_no_untested not in logger.filters:
        logger.addFilter(say_no_untested)
    recompute_within(kept_gathered)
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)


def shard_frozen(module: nn.Module, half: bool = False) -> nn.Module:
    """A frozen network at ZeRO stage 3: each rank keeps a part, gathered layer by layer in use.

    The module may be in host memory: it is moved parameter by parameter. ``half``: in bfloat16.
    """
    import deepspeed

    config = deepspeed_config(3, 1, torch.distributed.get_world_size(), half=half)
    with rank_zero_weights(module, config):
        engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    return engine.module


class DeepSpeedRole:
    """A role as a DeepSpeed engine, ZeRO stage 0 to 3; masters, moments and sums are float32.

    Of Adam's settings, ``half_weights`` goes with stages 2 and 3, ``eight_bits`` with stage 0.

    ``update`` sums gradients over ranks (DeepSpeed averages, so losses are scaled by the world
    size). ``offload`` as in deepspeed_config; not at stage 0. The module may be in host memory: it
    is moved parameter by parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        adam: AdamSettings,
        zero_stage: int,
        passes: int,
        rules: UpdateRules = PLAIN_RULES,
        offload: bool = False,
        overlap: bool = False,
    ):
        import deepspeed

        self.rules, self.kinds, self.stage = rules, adam.kinds, zero_stage
        self.world_size = torch.distributed.get_world_size()
        half = adam.half_weights
        if (half and zero_stage < 2) or (adam.eight_bits and zero_stage):
            raise ValueError(f"ZeRO stage {zero_stage} does not go with {adam}")
        adam = dataclasses.replace(adam, half_weights=False)  # DeepSpeed's own way
        config = deepspeed_config(zero_stage, passes, self.world_size, offload, overlap, half)
        wide = {name: value.data for name, value in module.named_parameters()} if half else {}
        with rank_zero_weights(module, config):
            self.engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=build_adam(adam, module.parameters()),
                config=config,
                dist_init_required=False,
            )
        wait_on_the_device(self.engine, zero_stage, offload)
        self._layout = layout_of(self.engine, zero_stage, offload)
        self._passes_pending = False
        self._set_masters(wide)
        if not rules.constrain_first:
            self._constrain()

    @property
    def network(self) -> Denoiser:
        return self.engine

    @property
    def module(self) -> nn.Module:
        """At stage 3 its parameters are empty between calls: use ``owned`` or ``state``."""
        return self.engine.module

    @property
    def shapes(self) -> Shapes:
        return self._layout.shapes

    @property
    def prepares(self) -> bool:
        return self.rules.constrain_first

    def prepare(self) -> None:
        if self.rules.constrain_first:
            self._constrain()

    def backward(self, loss: Tensor) -> None:
        if self._passes_pending:
            self.engine.step()  # within an accumulation: only counts the pass
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
        self._passes_pending = True

    def update(self) -> Tensor:
        self._passes_pending = False
        if self.rules.adjusts:
            self.rules.adjust(self._layout.gradients())
            self._layout.gradients_changed()
        found_inf = self._layout.found_inf()
        self._layout.adam.found_inf = found_inf
        self.engine.step()
        self._layout.forget_gradients()
        applied = found_inf == 0
        if not self.rules.constrain_first:
            self._constrain(applied)
        return applied

    @torch.no_grad()
    def _set_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Rank 0's whole weights, where DeepSpeed has made masters of rounded ones. A collective.

        They may be in host memory, and go to the device one by one.
        """
        if not weights:
            return
        held = {item.fragment.name: item for item in self._layout.held()}
        for name, value in weights.items():
            whole = value.to(self.engine.device, copy=True)
            torch.distributed.broadcast(whole, 0)
            if name in held:
                _, offset, length = held[name].fragment
                held[name].set(MASTER, whole.reshape(-1)[offset : offset + length])
        self._layout.refresh()

    @torch.no_grad()
    def _constrain(self, applied: Tensor | None = None) -> None:
        """The family's rule on working weights and masters alike, but where ``applied`` is False.
        At stage 3 a collective.

        On the working weights alone it would be undone by the next step, which copies the
        masters over them. Each rank takes its part of the master out of the new whole weight.
        """
        if self.rules.constrain is leave_weight:
            return
        if applied is not None and self._layout.steps_on_host:
            if not applied:
                return
            applied = None
        held = {item.fragment.name: item for item in self._layout.held()}
        for name, parameter in self.module.named_parameters():
            with self._layout.whole(parameter) as weight:
                new = self.rules.constrain(name, weight)
                if new is None:
                    continue
                write_where(applied, new, weight)
                mine = held.get(name)
                if mine is not None:
                    _, offset, length = mine.fragment
                    mine.values[MASTER].copy_(weight.reshape(-1)[offset : offset + length])
        self._layout.settle()

    @torch.no_grad()
    def average_into(self, average: nn.Module, beta: float) -> None:
        """Updates an average of this role's weights: a ShardedAverage, or a whole network.

        A whole one makes stage 3 gather every parameter.
        """
        if isinstance(average, ShardedAverage):
            update_ema(average.parameters(), (held.values[MASTER] for held in self.owned()), beta)
            return
        for mean, parameter in zip(average.parameters(), self.module.parameters(), strict=True):
            with self._layout.whole(parameter) as weight:
                update_ema([mean], [weight], beta)

    def owned(self) -> list[Held]:
        """The fragments that this rank writes: over all ranks, every parameter once."""
        return self._layout.owned()

    def optimizer_steps(self) -> int:
        return self._layout.adam.steps()

    @torch.no_grad()
    def load(self, read: Read, optimizer_steps: int) -> None:
        """Sets weights, moments and step; reads only what this rank holds. A collective."""
        fill(self._layout.held(), read)
        self._layout.adam.set_steps(optimizer_steps)
        self._layout.refresh()

    def state(self) -> RoleState:
        """Whole tensors on every rank. A collective."""
        device = torch.device(self.engine.device)
        whole = whole_tensors(self.shapes, self.owned(), self.kinds, device)
        tensors = {f"{name}/{kind}": value for name, kind, value in whole}
        return RoleState(tensors, self.optimizer_steps())

    def load_state(self, state: RoleState) -> None:
        """Sets whole tensors, whatever wrote them. A collective."""
        self.load(state.read, state.optimizer_steps)
