"""Sees every operation that reaches the fake device: what the host waits for, copies and launches.

What makes the host wait, as torch's sources have it (aten/src/ATen/native/cuda): reading a value
(``_local_scalar_dense``), sizes that depend on values (``nonzero`` and its relatives), and copies
between host and device. A copy is waited for unless it is ``non_blocking`` and its host side is
pinned (Copy.cu, copy_kernel_cuda; from pageable memory the driver waits by itself). What is called
on torch.cuda or a stream is seen by machine.py, which tells it here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import _device_handler
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.fake_cuda.operators import cpu_only, one_type, operands

READS = ("_local_scalar_dense", "item", "is_nonzero", "equal")
SIZED_BY_VALUES = (
    "nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive",
    "bincount", "repeat_interleave",
)  # fmt: skip
COPIES = ("_to_copy", "copy_", "_copy_from")
# Change what a tensor says of itself, or only reserve memory: no kernel.
FREE = (
    "alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand",
    "lift_fresh", "new_empty", "new_empty_strided", "permute", "_reshape_alias", "resize_",
    "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind",
    "unfold", "unsqueeze", "_unsafe_view", "unsafe_split", "view", "view_as_complex",
    "view_as_real",
)  # fmt: skip
# Tensors that one launch of a multi-tensor kernel takes, by how many lists it walks through
# (aten/src/ATen/native/cuda/MultiTensorApply.cuh, depth_to_max_tensors), and chunks of elements.
TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
CHUNK, CHUNKS_A_LAUNCH = 65536, 320
# Asked by C++ several times in each operation: more than half of all that is dispatched.
DEVICE = torch.ops.prim.device.default


@dataclass
class Counts:
    """What was seen in one part of an iteration."""

    waits: Counter[str] = field(default_factory=Counter)  # by what and where
    launches: int = 0
    operations: Counter[str] = field(default_factory=Counter)  # launches by operator
    wide: int = 0  # launches that read or write float64
    to_device: int = 0  # copies
    to_device_bytes: int = 0
    collectives: int = 0
    whole: int = 0  # elements of parameters that came there and were all there, at most


class Watch(TorchDispatchMode):
    """Counts by part ("forward", "backward" and so on), which ``during`` sets.

    Entered after the mode of fake tensors, so that it sees each operation first. Values that are
    read are made up: see ``answer``.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and torch's guard would take as long as this class."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.part = "other"
        self.counts: dict[str, Counts] = {}
        self.faults: Counter[str] = Counter()  # what a GPU would refuse and fake tensors do not
        self._pinned: dict[int, StorageWeakRef] = {}
        self._came: list[Tensor] = []

    @property
    def here(self) -> Counts:
        return self.counts.setdefault(self.part, Counts())

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def wait(self, what: str) -> None:
        """The host waits for the device."""
        self.here.waits[f"{what} {place()}"] += 1

    def came(self, parameter: Tensor) -> None:
        """A parameter is moved to the device; one that DeepSpeed took apart has no elements."""
        self._came = [other for other in self._came if other.numel()] + [parameter]
        self.here.whole = max(self.here.whole, sum(other.numel() for other in self._came))

    def pin(self, tensor: Tensor) -> Tensor:
        """Takes a tensor's memory for page-locked."""
        storage = tensor.untyped_storage()
        # The weak reference keeps the number from being given to another storage.
        self._pinned[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned

    # Operations -----------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE:
            return _device_handler(args)  # as the mode of fake tensors would, which is slow
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        inputs = tensors_in(kwargs.values(), tensors_in(args, []))
        on_device = any(tensor.device.type == "cuda" for tensor in inputs)
        if name in READS:
            if on_device:
                self.wait(name)
            return answer(inputs[0]) if name in READS[:2] else True
        if name in SIZED_BY_VALUES and on_device:
            self.wait(name)
        if on_device and cpu_only(func):
            self.faults[f"{name} has no kernel for CUDA {place()}"] += 1
        pinned = kwargs.pop("pin_memory", False)
        out = func(*args, **kwargs)
        outputs = tensors_in((out,), [])
        if pinned:
            outputs = [self.pin(tensor) for tensor in outputs]
        if name == "_foreach_copy_":
            blocking = not (args[2:] == (True,) or kwargs.get("non_blocking"))
            for target, source in zip(*args[:2], strict=True):
                self._copied(source, target, blocking)
        elif name in COPIES:
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            self._copied(inputs[-1 if name == "copy_" else 0], outputs[0], blocking)
        elif on_device and any(t.device.type == "cpu" and t.dim() for t in inputs):
            self.wait(f"{name} reads host memory")  # an index, which is copied
        if on_device or any(tensor.device.type == "cuda" for tensor in outputs):
            self._ran(func, name, args, kwargs, inputs, outputs)
        return out

    def _copied(self, source: Tensor, target: Tensor, blocking: bool) -> None:
        kinds = source.device.type, target.device.type
        if kinds == ("cpu", "cuda"):
            self.here.to_device += 1
            self.here.to_device_bytes += target.numel() * target.element_size()
        if len(set(kinds)) == 2:
            host = source if kinds[0] == "cpu" else target
            if blocking or not self.is_pinned(host):
                self.wait("copy to the device" if kinds[1] == "cuda" else "copy to the host")

    def _ran(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        if func._schema.name.startswith("c10d::"):
            self.here.collectives += 1
            return
        if name in FREE or not func._schema.name.startswith("aten::"):
            return
        used = {tensor.dtype for tensor in operands(name, inputs)}
        if one_type(name) and len(used) > 1:
            types = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in used))
            self.faults[f"{name} of {types} {place()}"] += 1
        here, count = self.here, launches(name, args)
        here.launches += count
        here.operations[name] += count
        if any(tensor.dtype == torch.float64 for tensor in (*inputs, *outputs)):
            here.wide += count


def tensors_in(values: Iterable[Any], found: list[Tensor]) -> list[Tensor]:
    """``found`` with the tensors among an operation's arguments or results, lists of them too."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            tensors_in(value, found)
    return found


# Functions that ask whether something went wrong. It did not: else the rest would be left out.
FEARS = ("is_invalid_grad_norm", "update_offload_overflow_tracker", "_step")


def answer(tensor: Tensor) -> Any:
    """The value that a read gets: 1, or True but for what is feared."""
    if tensor.dtype == torch.bool:
        return not any(name in FEARS for name in callers(4))
    return 1.0 if tensor.dtype.is_floating_point else 1


def callers(depth: int) -> list[str]:
    """Names of the innermost functions outside torch and this folder."""
    names: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(names) < depth:
        path = frame.f_code.co_filename
        if "/torch/" not in path and "/fake_cuda/" not in path:
            names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return names


def launches(name: str, args: Any) -> int:
    """Kernels of an operation: of a multi-tensor one as many as its lists need, of others 1.

    Others may launch a few (a group norm three, a convolution's backward pass two): this counts the
    operations that launch, as the same operations on a GPU would be counted by their names.
    """
    if not name.startswith(("_foreach", "_fused_adam")):
        return 1
    lists = [value for value in args if isinstance(value, list | tuple) and value]
    lists = [value for value in lists if isinstance(value[0], Tensor)]
    # Step numbers go beside, in the kernel's own arguments.
    depth = min(len(lists), 4 if name.startswith("_fused") else 5)
    tensors = lists[0]
    chunks = sum(-(-tensor.numel() // CHUNK) for tensor in tensors)
    return max(-(-len(tensors) // TENSORS_A_LAUNCH[depth]), -(-chunks // CHUNKS_A_LAUNCH), 1)


OURS, ENGINE = "/sid_ray/", "/deepspeed/"


def place(depth: int = 2) -> str:
    """The innermost lines of this project, or of DeepSpeed, that lead here: file:line < file:line.

    Empty within a backward pass, which has no Python frames.
    """
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < depth:
        path = frame.f_code.co_filename
        for root in (OURS, ENGINE):
            if root in path and "/tests/" not in path:
                line = f"{path.rpartition(root)[2]}:{frame.f_lineno}"
                line = line if root == OURS else f"deepspeed/{line}"
                if frame.f_code.co_name.startswith("<"):
                    break  # a comprehension: its function comes next
                found.append(line)
                break
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)
