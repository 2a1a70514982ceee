"""The trained roles: plain torch or DeepSpeed ZeRO. The only file that imports deepspeed.

State goes in and out as full tensors by parameter name (``RoleState``), the same whatever the stage
and
the world size, so that a checkpoint belongs to the run and not to the machines it was written on.

Facts of DeepSpeed 0.19.8 that this file rests on
    gradient_clipping defaults to 1.0, so every behaviour-relevant key is set in deepspeed_config.
    Within the generator phase the fake score is called as the bare module, frozen; through its
    engine the gradients would be wrong (stage 3) or the call would raise (stages 0 to 2).
    In float32, stages 1 and 2 skip a step by themselves when the global gradient norm is not
    finite; stage 0 does not, so its gradients are checked here.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.spec import Constrain, leave_weight
from sid_ray.types import Denoiser

MOMENTS = ("exp_avg", "exp_avg_sq")
LOCK_PATIENCE_S = 5.0


@dataclass(frozen=True)
class AdamSettings:
    """Adam's settings of one role."""

    lr: float
    beta1: float
    beta2: float
    epsilon: float

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        # Plain torch Adam: DeepSpeed's own would compile C++ for minutes on a CPU.
        betas = (float(self.beta1), float(self.beta2))  # torch 2.13 refuses int next to float
        return torch.optim.Adam(parameters, lr=self.lr, betas=betas, eps=self.epsilon)


@dataclass(frozen=True)
class UpdateRules:
    """What happens to gradients and weights around a role's update.

    Args:
        constrain: the family's rule on weights (EDM2's forced normalisation), after each update.
        constrain_first: that rule before the role's phase instead, as the published code has it.
        clip_value: gradients are clipped to +- this, element by element; 0 for not.
        replace_nonfinite: gradients that are not finite become 0, 1e5 or -1e5, as published;
            otherwise the update is skipped on all ranks.
    """

    constrain: Constrain = leave_weight
    constrain_first: bool = False
    clip_value: float = 0.0
    replace_nonfinite: bool = False

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
    """One role's training state: ``name/master``, ``name/exp_avg``, ``name/exp_avg_sq``, fp32."""

    tensors: dict[str, Tensor]
    optimizer_steps: int


def adam_state(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Adam's state of one tensor, created as zeros when there was no step yet."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.tensor(0.0)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


@torch.no_grad()
def constrain_module(module: nn.Module, constrain: Constrain) -> list[nn.Parameter]:
    """Writes a family's rule into the parameters it changes, and returns those."""
    changed = []
    for name, parameter in module.named_parameters():
        new = constrain(name, parameter)
        if new is not None:
            parameter.copy_(new)
            changed.append(parameter)
    return changed


class TorchRole:
    """A role on one process in plain torch: the reference that every engine must equal."""

    def __init__(self, module: nn.Module, adam: AdamSettings, rules: UpdateRules = PLAIN_RULES):
        self._module = module
        self.rules = rules
        if not rules.constrain_first:
            constrain_module(module, rules.constrain)
        self.optimizer = adam.build(module.parameters())

    @property
    def network(self) -> Denoiser:
        return self._module

    @property
    def module(self) -> nn.Module:
        return self._module

    def prepare(self) -> None:
        if self.rules.constrain_first:
            constrain_module(self._module, self.rules.constrain)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> bool:
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        self.rules.adjust(gradients)
        finite = bool(torch.stack([g.isfinite().all() for g in gradients]).all())
        if finite:
            self.optimizer.step()
            if not self.rules.constrain_first:
                constrain_module(self._module, self.rules.constrain)
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def state(self) -> RoleState:
        tensors, steps = {}, 0
        for name, parameter in self._module.named_parameters():
            adam = adam_state(parameter, self.optimizer)
            tensors[f"{name}/master"] = parameter.detach().clone()
            for moment in MOMENTS:
                tensors[f"{name}/{moment}"] = adam[moment].clone()
            # A parameter that no loss reached has not been stepped.
            steps = max(steps, int(adam["step"]))
        return RoleState(tensors, steps)

    def load_state(self, state: RoleState) -> None:
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                parameter.copy_(state.tensors[f"{name}/master"])
                adam = adam_state(parameter, self.optimizer)
                for moment in MOMENTS:
                    adam[moment].copy_(state.tensors[f"{name}/{moment}"])
                adam["step"] = torch.tensor(float(state.optimizer_steps))


def deepspeed_config(zero_stage: int, passes: int, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of one role; every key that changes numbers is set.

    ``passes`` is the number of backward passes before an update. A micro-batch is called one
    sample here: the losses are already divided by the global batch.
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
        "bf16": {"enabled": False},
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "round_robin_gradients": False,
            "reduce_scatter": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }


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


def init_deepspeed() -> None:
    """Joins DeepSpeed to the process group that exists. Compiles nothing."""
    check_no_stale_lock()
    import deepspeed

    # Without this, the first process on a CPU compiles deepspeed_shm_comm for minutes, an operator
    # that only serves inference (0.19.8). `import deepspeed.comm.torch as x` would yield plain
    # torch.
    comm: Any = importlib.import_module("deepspeed.comm.torch")
    comm.build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)


@contextmanager
def rank_zero_weights(module: nn.Module) -> Iterator[None]:
    """Gives every rank the parameters of rank 0, in place of DeepSpeed's own broadcast.

    That one (0.19.8) raises on parameters without dimensions, such as EDM2's gains.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    for parameter in module.parameters():
        torch.distributed.broadcast(parameter.data, 0)
    theirs = DeepSpeedEngine._broadcast_model
    DeepSpeedEngine._broadcast_model = lambda engine: None
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = theirs


class DeepSpeedRole:
    """A role as a DeepSpeed engine, ZeRO stage 0, 1 or 2, float32.

    ``update`` sums gradients over ranks (DeepSpeed averages, so losses are scaled by the world
    size).
    """

    def __init__(
        self,
        module: nn.Module,
        adam: AdamSettings,
        zero_stage: int,
        passes: int,
        rules: UpdateRules = PLAIN_RULES,
    ):
        import deepspeed

        self.rules = rules
        if not rules.constrain_first:
            constrain_module(module, rules.constrain)  # before DeepSpeed copies the masters
        self.world_size = torch.distributed.get_world_size()
        self.stage = zero_stage
        with rank_zero_weights(module):
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=module,
                optimizer=adam.build(module.parameters()),
                config=deepspeed_config(zero_stage, passes, self.world_size),
                dist_init_required=False,
            )
        self._passes_pending = False

    @property
    def network(self) -> Denoiser:
        return self.engine

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def prepare(self) -> None:
        if self.rules.constrain_first:
            self._constrain_masters()

    def backward(self, loss: Tensor) -> None:
        if self._passes_pending:
            self.engine.step()  # within an accumulation: only counts the pass
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
        self._passes_pending = True

    def update(self) -> bool:
        self._passes_pending = False
        self.rules.adjust(self._reduced_gradients())
        if self.stage == 0:
            applied = self._update_unsharded()
        else:
            self.engine.step()
            applied = not self.engine.optimizer.overflow
        if applied and not self.rules.constrain_first:
            self._constrain_masters()
        return applied

    def _reduced_gradients(self) -> list[Tensor]:
        """This rank's gradients as the optimizer will use them, summed over all ranks."""
        if self.stage == 0:
            return [p.grad for p in self.module.parameters() if p.grad is not None]
        # Present from the last backward pass of an accumulation until step() (0.19.8).
        parts = self.engine.optimizer.averaged_gradients.values()
        return [gradient for part in parts if part is not None for gradient in part]

    def _constrain_masters(self) -> None:
        """The family's rule on working weights and masters alike.

        On the working weights alone it would be undone by the next step, which copies the
        masters over them. In float32 both hold the same numbers, so nothing is gathered: each
        rank takes its part of the master out of the new whole weight.
        """
        from deepspeed.utils import safe_set_full_fp32_param

        for weight in constrain_module(self.module, self.rules.constrain):
            if self.stage > 0:
                safe_set_full_fp32_param(weight, weight.detach())

    def _update_unsharded(self) -> bool:
        """Stage 0 has no check of its own: gradients are reduced already, alike on every rank."""
        parameters = list(self.module.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        finite = bool(torch.stack([g.isfinite().all() for g in gradients]).all())
        if not finite:
            for parameter in parameters:
                parameter.grad = None  # Adam leaves a parameter without gradient alone
        self.engine.step()
        return finite

    def _materialise(self) -> None:
        """Gives the optimizer its state before the first step, linked to the parameters."""
        if self.stage == 0:
            for parameter in self.module.parameters():
                adam_state(parameter, self.optimizer_of_torch)
            return
        for group in self.optimizer_of_torch.param_groups:
            for flat in group["params"]:
                adam_state(flat, self.optimizer_of_torch)
        # Without this call the safe_* functions of DeepSpeed meet None (0.19.8).
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def optimizer_of_torch(self) -> torch.optim.Optimizer:
        """The Adam inside: DeepSpeed wraps it at stages 1 and 2."""
        return self.optimizer if self.stage == 0 else self.engine.optimizer.optimizer

    def state(self) -> RoleState:
        """Full tensors, gathered from all ranks. A collective: every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._materialise()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            if self.stage == 0:
                adam = adam_state(parameter, self.optimizer_of_torch)
                values = {"master": parameter.detach()} | {m: adam[m] for m in MOMENTS}
            else:
                values = {"master": safe_get_full_fp32_param(parameter)}
                values |= {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
            for kind, value in values.items():
                tensors[f"{name}/{kind}"] = value.clone()
        return RoleState(tensors, self._optimizer_steps())

    def _optimizer_steps(self) -> int:
        states = self.optimizer_of_torch.state.values()
        return max((int(state["step"]) for state in states), default=0)

    @torch.no_grad()
    def load_state(self, state: RoleState) -> None:
        """Sets weights, moments and step on every rank, whatever world size wrote them."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._materialise()
        for name, parameter in self.module.named_parameters():
            # At stages 1 and 2 safe_set_full_fp32_param writes only the master: copy both.
            parameter.copy_(state.tensors[f"{name}/master"])
            if self.stage == 0:
                adam = adam_state(parameter, self.optimizer_of_torch)
                for moment in MOMENTS:
                    adam[moment].copy_(state.tensors[f"{name}/{moment}"])
                continue
            safe_set_full_fp32_param(parameter, state.tensors[f"{name}/master"])
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, state.tensors[f"{name}/{moment}"], moment)
        for adam in self.optimizer_of_torch.state.values():
            adam["step"] = torch.tensor(float(state.optimizer_steps))
