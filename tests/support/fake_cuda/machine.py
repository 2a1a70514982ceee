"""torch.cuda, streams, events and modules as they are where the fake device is."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import NoneType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from sid_ray.distributed import deepspeed_private
from tests.support.fake_cuda.watch import Watch

# Where torch says that a GPU is there, this looks for functions that a build for CPUs lacks, once,
# as it is loaded: PEFT, and so diffusers, load it where it is installed.
with suppress(ImportError):
    import bitsandbytes  # noqa: F401

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
MEMORY = 80 * 2**30
NAME, CAPABILITY = "rehearsed GPU", (9, 0)


class Properties:
    name, total_memory = NAME, MEMORY
    major, minor = CAPABILITY
    multi_processor_count = 132


def event_type(watch: Watch) -> type:
    class Event:
        """Has always happened; waiting for it is told."""

        def __init__(self, *args: Any, **kwargs: Any):
            pass

        def record(self, stream: Any = None) -> None:
            pass

        def wait(self, stream: Any = None) -> None:
            pass

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            watch.wait("event.synchronize")

        def elapsed_time(self, end: Any) -> float:
            watch.wait("event.elapsed_time")
            return 1.0

    return Event


def stream_type(watch: Watch, event: type) -> type:
    class Stream:
        """In order with all others; waiting for it on the host is told."""

        device, device_index, device_type, stream_id, cuda_stream = CUDA, 0, 1, 0, 0

        def __init__(self, *args: Any, **kwargs: Any):
            pass

        def synchronize(self) -> None:
            watch.wait("stream.synchronize")

        def query(self) -> bool:
            return True

        def wait_stream(self, stream: Any) -> None:
            pass

        def wait_event(self, found: Any) -> None:
            pass

        def record_event(self, found: Any = None) -> Any:
            return found or event()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    return Stream


def of_cuda(watch: Watch) -> dict[str, Any]:
    """What torch.cuda has here, by name."""
    event = event_type(watch)
    stream = stream_type(watch, event)
    main = stream()
    numbers = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    return dict.fromkeys(numbers, lambda device=None: 0) | {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: nullcontext(),
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: Properties(),
        "is_bf16_supported": lambda *args, **kwargs: True,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: watch.wait("torch.cuda.empty_cache"),  # waits where it frees
        "synchronize": lambda device=None: watch.wait("torch.cuda.synchronize"),
        "Event": event,
        "Stream": stream,
        "stream": lambda found: found if found is not None else main,
        "set_stream": lambda found: None,
        "current_stream": lambda device=None: main,
        "default_stream": lambda device=None: main,
        "nvtx": mock.MagicMock(),
    }


# Operators that a CPU build composes of others where CUDA has a kernel of its own: with any kernel
# for CUDA they stay whole. It is never run.
KERNELS = torch.library.Library("aten", "IMPL")
for _name in ("silu_backward", "mish_backward"):
    KERNELS.impl(_name, lambda grad, x: torch.empty_like(x), "CUDA")


ATTENTION = F.scaled_dot_product_attention


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """Attention as the one kernel that it is on a GPU: fake tensors would compose it of others."""
    if attn_mask is not None or any(options.values()):
        return ATTENTION(query, key, value, attn_mask, **options)
    if torch.is_autocast_enabled("cuda"):  # which knows it by its name, too
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(query, key, value, None, keep)[0]


# What fake tensors remember of operations ---------------------------------------------------------

GENERAL_KEY = FakeTensorMode._prep_args_for_hash
UNGUARDED = inspect.unwrap(FakeTensorMode.__torch_dispatch__)
PLAIN = (NoneType, int, float, str, torch.device, torch.dtype, torch.layout, torch.memory_format)


def key_of(mode: FakeTensorMode, result: list, args: Any, state: Any, objects: list) -> None:
    """FakeTensorMode._prep_args_for_hash for dense tensors of known sizes, in a third of its time.

    By this key an operation finds its outcome of the time before, if anything that an outcome may
    depend on was the same.
    """
    result.append((type(args), len(args)))
    for arg in args if not isinstance(args, dict) else [*args, *args.values()]:
        if isinstance(arg, FakeTensor) and arg.constant is None and arg.layout is torch.strided:
            result += (
                arg.dtype, arg.shape, arg.stride(), arg.fake_device, arg.storage_offset(),
                arg.untyped_storage().nbytes(), arg.requires_grad, arg.is_conj(), arg.is_neg(),
                arg.is_inference(),
            )  # fmt: skip
        elif isinstance(arg, list | tuple | dict):
            key_of(mode, result, arg, state, objects)
        elif isinstance(arg, PLAIN):
            result += (type(arg), arg)  # 1 and 1.0 are equal
        else:
            GENERAL_KEY(mode, result, (arg,), state, objects)


# Fake modules -------------------------------------------------------------------------------------


def fake_like(tensor: Tensor, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    """A fake tensor of the same shape and order in memory, a parameter if it is one.

    Made without a look of the modes, of which each would take a tenth of a millisecond: a network
    has hundreds.
    """
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    with no_dispatch():
        shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
    fake = FakeTensor(fake_mode(), shape, torch.device(device or tensor.device))
    if isinstance(tensor, nn.Parameter):
        parameter: Any = fake.requires_grad_(tensor.requires_grad)
        parameter._is_param = True  # all that nn.Parameter makes of a tensor of another type
    return fake


def replace_tensors(
    module: nn.Module,
    device: Any = None,
    dtype: Any = None,
    stays: Callable[[Tensor], bool] = lambda tensor: False,
) -> nn.Module:
    """The module itself, its tensors replaced by fake ones; one that is shared stays shared."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and not stays(tensor):
                    if id(tensor) not in made:
                        made[id(tensor)] = fake_like(tensor, device, dtype)
                    tensors[name] = made[id(tensor)]
    return module


def fake_module(module: nn.Module, device: Any = CPU) -> nn.Module:
    """A module, which may be laid out on torch's meta device, with fake tensors on a device.

    Within the mode of fake tensors.
    """
    return replace_tensors(module, device)


def moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """nn.Module.to: it would write into tensors, which fake ones do not allow."""
    device, dtype, _, order = torch._C._nn._parse_to(*args, **kwargs)
    assert order is None, "orders in memory are not rehearsed"

    def stays(tensor: Tensor) -> bool:
        same = dtype in (None, tensor.dtype) or not tensor.is_floating_point()
        return same and device in (None, tensor.device, torch.device(tensor.device.type))

    return replace_tensors(module, device, dtype, stays)


def moving(watch: Watch) -> tuple[Callable, Callable]:
    """nn.Module.to and deepspeed_private.from_rank_zero, of which ``watch`` hears."""

    def module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        before = {id(parameter) for parameter in module.parameters()}
        moved(module, *args, **kwargs)
        for parameter in module.parameters():
            if id(parameter) not in before and parameter.device.type == "cuda":
                watch.came(parameter)
        return module

    def from_rank_zero(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype) -> None:
        fake: Any = parameter
        parameter.data.to(device, dtype)  # as it is there, to be seen
        fake.fake_device = CUDA  # which data that are set do not change
        watch.came(parameter)
        torch.distributed.broadcast(parameter.data, 0)

    return module_to, from_rank_zero


def deep_copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """copy.deepcopy of a module: torch's own leaves the mode of fake tensors."""
    for tensor in (*module.parameters(), *module.buffers()):
        memo.setdefault(id(tensor), fake_like(tensor))
    for part in module.modules():
        for value in part.__dict__.values():
            if isinstance(value, FakeTensor):
                memo.setdefault(id(value), fake_like(value))
    new = type(module).__new__(type(module))
    memo[id(module)] = new
    new.__dict__ = copy.deepcopy(module.__dict__, memo)
    return new


@functools.cache
def fake_mode() -> FakeTensorMode:
    """One for the process: what the project keeps from one use to the next is of it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def rehearsal() -> Iterator[Watch]:
    """Inside, tensors are fake, ``cuda:0`` is there, and what runs on it is watched."""
    watch = Watch()
    module_to, from_rank_zero = moving(watch)

    def pinned(tensor: Tensor, *args: Any) -> Tensor:
        return tensor if watch.is_pinned(tensor) else watch.pin(tensor.clone())

    patches: list[Any] = [mock.patch.multiple(torch.cuda, create=True, **of_cuda(watch))]
    patches += [
        mock.patch.object(torch.Tensor, "pin_memory", pinned),
        mock.patch.object(torch.Tensor, "is_pinned", lambda t, *args: watch.is_pinned(t)),
        mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None),
        mock.patch.object(F, "scaled_dot_product_attention", fused_attention),
        mock.patch.object(nn.Module, "to", module_to),
        mock.patch.object(deepspeed_private, "from_rank_zero", from_rank_zero),
        mock.patch.object(nn.Module, "__deepcopy__", deep_copied, create=True),
        # Without the guard against torch.compile, which compiles nothing here.
        mock.patch.object(FakeTensorMode, "__torch_dispatch__", UNGUARDED),
        mock.patch.object(FakeTensorMode, "_prep_args_for_hash", key_of),
        mock.patch.object(gc, "collect", lambda generation=2: 0),  # DeepSpeed's: seconds in all
        # Values of tensors on the host are lifted as they are there, and then copied: so a constant
        # that is made on the device is seen as the copy that it is.
        mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda mode: True)),
    ]
    for patch in patches:
        patch.start()
    try:
        with fake_mode(), watch:
            yield watch
    finally:
        for patch in reversed(patches):
            patch.stop()


def agree(ints: Any) -> None:
    """What rank 0 would have sent is made up: ranks are taken to agree."""


def join_fake_group(world_size: int) -> None:
    """Makes this process rank 0 of a group that never sends anything, for good: DeepSpeed keeps it.

    Raises ValueError for a second group of another size.
    """
    if torch.distributed.is_initialized():
        if torch.distributed.get_world_size() != world_size:
            raise ValueError(f"this process is in a group of {torch.distributed.get_world_size()}")
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "DS_ACCELERATOR": "cuda"}
    torch.distributed.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    # Stage 3 compares the order of modules with rank 0's, which it reads from the device.
    from deepspeed.runtime.zero import partitioned_param_coordinator

    partitioned_param_coordinator.assert_ints_same_as_other_ranks = agree
