"""Private parts of DeepSpeed that sid_ray uses: all of them, and no other file names one.

Checked with 0.19.8: how it is loaded and what is kept from it, and where it keeps fp32 weights and
Adam's moments at each ZeRO stage. Its public safe_get_* and safe_set_* are not used for these: they
skip parameters without requires_grad at stage 3, are wrong there when a size does not divide by the
world size, and write masters alone at stages 1 and 2. tests/distributed/test_deepspeed_private.py
fails where a part changes, and the tests of every stage do.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.distributed.adam import Adam, found_inf_in
from sid_ray.distributed.fragments import MASTER, Fragment, Held, Shapes, own_slice, world
from sid_ray.distributed.roles import whole_held

COMPILER, MUON = "deepspeed.runtime.compiler", "deepspeed.runtime.zero.muon.original_muon"


# Loading ------------------------------------------------------------------------------------------


def import_deepspeed() -> None:
    """Loads DeepSpeed into this process. Raises ImportError where it is not installed.

    Without what a run never uses of it, 1.8 CPU seconds a worker: its autotuner imports MLflow, and
    Muon, an optimizer, has functions that torch.compile wraps when they are defined, for which
    Inductor is loaded. Of a version that differs these lines do nothing.
    """
    with hidden("mlflow"):
        importlib.import_module("deepspeed")
        if MUON not in sys.modules:
            with plain_functions():
                importlib.import_module(MUON)


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """A module that is not loaded yet cannot be imported for as long as this lasts."""
    ours = module not in sys.modules
    if ours:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if ours:
            del sys.modules[module]


@contextmanager
def plain_functions() -> Iterator[None]:
    """What DeepSpeed would have compiled stays as it is."""
    compiler: Any = importlib.import_module(COMPILER)
    found = compiler.compile
    compiler.compile = lambda *args, **kwargs: unchanged
    try:
        yield
    finally:
        compiler.compile = found


def unchanged(function: Callable) -> Callable:
    return function


def build_no_inference_operator() -> None:
    """Else the first process on a CPU compiles deepspeed_shm_comm for minutes.

    That operator only serves inference, and there is no option to be without it
    (deepspeedai/DeepSpeed#7625). `import deepspeed.comm.torch as x` would yield plain torch.
    """
    comm: Any = importlib.import_module("deepspeed.comm.torch")
    comm.build_shm_op = lambda: None


# What is kept from it -----------------------------------------------------------------------------


@contextmanager
def kept_gathered() -> Iterator[None]:
    """Stage 3: what a block gathers while it is computed again stays until its backward pass ends.

    DeepSpeed lets go of weights when a module's forward pass ends, and gathers them again before
    the module's backward pass; but here a forward pass runs within a backward pass.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

    let_go = DeepSpeedZeRoOffload.post_sub_module_forward_function

    def keep(offload: Any, module: nn.Module) -> None:
        # Whose inputs need no gradient, nor its weights, has no backward pass to let go in.
        trained = any(weight.requires_grad for weight in module.parameters(recurse=False))
        if not trained and not module.__dict__.get("ds_grads_remaining"):
            let_go(offload, module)

    DeepSpeedZeRoOffload.post_sub_module_forward_function = keep
    try:
        yield
    finally:
        DeepSpeedZeRoOffload.post_sub_module_forward_function = let_go


@contextmanager
def rank_zero_weights(module: nn.Module, config: dict[str, Any]) -> Iterator[None]:
    """Gives every rank the parameters of rank 0, on its device, as an engine of ``config`` is made.

    In place of DeepSpeed's own broadcasts (0.19.8, one for stages 0 to 2 and one for 3), which
    raise on parameters without dimensions, such as EDM2's gains.

    At stage 3 the module is in parts before an engine has it: for another kind of module the engine
    moves the whole of it to the device first (engine.py:2094). So there is never more of it on the
    device than the parts and one whole parameter. A collective.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import Init

    device = torch.device(get_accelerator().current_device_name())
    dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32

    def convert(init: Any, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            from_rank_zero(parameter, device, dtype)
            init._convert_to_deepspeed_param(parameter)
            parameter.partition()  # type: ignore[attr-defined]

    theirs = DeepSpeedEngine._broadcast_model, Init._convert_to_zero_parameters
    DeepSpeedEngine._broadcast_model = lambda engine: None
    Init._convert_to_zero_parameters = convert
    try:
        if config["zero_optimization"]["stage"] == 3:
            Init(module=module, config_dict_or_path=config, dtype=dtype)
            move_buffers(module, device)
        else:
            for parameter in module.parameters():
                from_rank_zero(parameter, device, dtype)
        yield
    finally:
        DeepSpeedEngine._broadcast_model, Init._convert_to_zero_parameters = theirs


def from_rank_zero(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype) -> None:
    """Moves a parameter to the device, with rank 0's numbers. A collective."""
    parameter.data = parameter.data.to(device, dtype)
    torch.distributed.broadcast(parameter.data, 0)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """What an engine does for modules that are whole alone."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


# Waits for the device, 0.19.8 ---------------------------------------------------------------------


def wait_on_the_device(engine: Any, stage: int, offload: bool) -> None:
    """What DeepSpeed has the host wait for in each iteration is left to the device.

    Norms of gradients (stage_1_and_2.py:1914 and 2926, stage3.py:2571): a copy to the device and a
    value read a role, with offloading one a parameter. What is not finite is looked for here, by
    ``found_inf``, and 1 stands for the norm, which nothing else reads as nothing is clipped.
    The overflow tracker of offloading (stage_1_and_2.py:1791): a value read a parameter in the
    backward pass, which nobody looks at in float32 (engine.py:2643).
    Stage 3's epilogue of a backward pass (stage3.py:1413): the host waits for the stream that sums
    gradients. Its step gathers small parameters and waits for them (partition_parameters.py:2127).
    DeepSpeed leaves both out itself on accelerators that order streams for it.
    The epilogue of stages 1 and 2 with overlap_comm (stage_1_and_2.py:1026): the host waits for the
    whole device, so for the copies of draws and checkpoints too. The current stream waits for the
    one that sums gradients instead: the epilogue reads its results there, and it begins a next sum
    behind what the current stream has read (1611). Where gradients go to the host, it still waits.
    """
    optimizer = engine.optimizer
    if stage in (1, 2) and optimizer.overlap_comm and not offload:
        stream, epilogue = optimizer.reduction_stream, "independent_gradient_partition_epilogue"
        if isinstance(stream, torch.cuda.Stream):
            setattr(optimizer, epilogue, waiting_for(stream, getattr(optimizer, epilogue)))
    if stage == 3:
        optimizer._get_norm_groups = lambda: [torch.ones(())]
        gather_small = optimizer._post_step

        def post_step(*args: Any) -> None:
            with host_goes_on():
                gather_small(*args)

        optimizer._post_step = post_step
        stream = optimizer.reduce_and_partition_stream
        if isinstance(stream, torch.cuda.Stream):
            optimizer.reduce_and_partition_stream = ordered(stream)
    elif offload:
        optimizer.scaled_global_norm = lambda: torch.ones(())
        optimizer.update_offload_overflow_tracker = lambda gradient: None
        optimizer.update_offload_overflow_tracker_for_param_grad = lambda parameter: None


def waiting_for(stream: torch.cuda.Stream, function: Callable[[], None]) -> Callable[[], None]:
    """The function, in which the current stream waits for that one where the host was to wait for
    the device.
    """
    from deepspeed.accelerator import get_accelerator

    def follow(device: Any = None) -> None:
        torch.cuda.current_stream(stream.device).wait_stream(stream)

    def run() -> None:
        accelerator = get_accelerator()
        accelerator.synchronize = follow
        try:
            function()
        finally:
            del accelerator.synchronize

    return run


def ordered(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """The same stream, for which the current stream waits where the host was to."""

    class Ordered(torch.cuda.Stream):
        def synchronize(self) -> None:
            torch.cuda.current_stream(self.device).wait_stream(self)

    same = ("stream_id", "device_index", "device_type")
    return Ordered(**{name: getattr(stream, name) for name in same})


@contextmanager
def host_goes_on() -> Iterator[None]:
    """Stage 3: the host does not wait for gathered weights (partition_parameters.py:1988 and 2127).

    What the current stream does next comes behind them all the same: torch's collectives order it.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.resolves_data_dependency = lambda: True
    try:
        yield
    finally:
        del accelerator.resolves_data_dependency


# Where it keeps state, one class a group of stages, all with the same methods ---------------------


class Replicated:
    """Stage 0: every rank holds everything, and owns a slice of each parameter.

    ``steps_on_host``: the optimizer, and what it is told, is in CPU memory.
    """

    steps_on_host = False

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

    def found_inf(self) -> Tensor:
        """1 where any rank's gradients are not finite, else 0, as Adam reads it: float32 [].

        The host does not wait, but where the optimizer steps there. A collective.
        """
        return found_inf_in(self.gradients())  # summed over ranks already: alike on all

    def forget_gradients(self) -> None:
        """Called after each update."""

    @contextmanager
    def whole(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """One whole working weight. A collective."""
        yield parameter.data


def nothing_found(engine: Any) -> Tensor:
    """Of a rank that has no gradients."""
    return torch.zeros((), device=engine.device)


def on_any_rank(found_inf: Tensor) -> Tensor:
    """1 where it is 1 on some rank. A collective."""
    torch.distributed.all_reduce(found_inf, torch.distributed.ReduceOp.MAX)
    return found_inf


def found_by_norms(engine: Any) -> Tensor:
    """``found_inf`` of gradients that go to CPU memory, by the norms taken on their way; there.

    The host waits for the device here, once: it then has the gradients too, as their copies are
    in streams for which the current one waits. A collective.
    """
    optimizer = engine.optimizer
    pending = getattr(optimizer, "_pending_offload_events", {})  # at stage 3 there are none
    for event in pending.values():
        event.wait()
    pending.clear()
    norms = [norm.to(engine.device) for norm in optimizer.norm_for_param_grads.values()]
    mine = torch.stack(norms).isfinite().all().logical_not().float() if norms else None
    return on_any_rank(nothing_found(engine) if mine is None else mine).cpu()


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

    def found_inf(self) -> Tensor:
        mine = self.gradients()
        return on_any_rank(found_inf_in(mine) if mine else nothing_found(self.engine))


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
            with host_goes_on():
                parameter.all_gather()  # type: ignore[attr-defined]
        try:
            yield parameter.data
        finally:
            if not gathered:
                parameter.partition()  # type: ignore[attr-defined]


class OffloadedPartitioned(Partitioned):
    """Stages 1 and 2 with masters, moments and gradients in CPU memory.

    The gradients are in the masters' ``grad``, which lives as long as the run; their norms are
    taken on their way there, and what is not finite is told by the norms alone.
    """

    steps_on_host = True

    def found_inf(self) -> Tensor:
        return found_by_norms(self.engine)

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
        optimizer = self.engine.optimizer
        flat = [flat.grad for flat in optimizer.single_partition_of_fp32_groups]
        for gradient in (*flat, *optimizer.accumulated_grads_in_cpu.values()):
            gradient.zero_()


class OffloadedFullySharded(FullySharded):
    """Stage 3 with masters, moments and gradients in CPU memory; see OffloadedPartitioned."""

    steps_on_host = True

    def found_inf(self) -> Tensor:
        return found_by_norms(self.engine)

    def gradients(self) -> list[Tensor]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # they are copied out in the background
        return self._in_memory()

    def _in_memory(self) -> list[Tensor]:
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
        for gradient in self._in_memory():
            gradient.zero_()


def layout_of(engine: Any, stage: int, offload: bool = False) -> Replicated:
    """The layout of an engine's state."""
    kept = (Replicated, Partitioned, Partitioned, FullySharded)
    offloaded = (Replicated, OffloadedPartitioned, OffloadedPartitioned, OffloadedFullySharded)
    return (offloaded if offload else kept)[stage](engine)
