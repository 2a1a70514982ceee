"""What torch's own table of operators says of kernels, for what fake tensors do not check."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from torch import Tensor

# Operators whose floating-point operands must be of one type on CUDA; fake tensors let them pass.
ONE_TYPE = (
    "addmm", "baddbmm", "bmm", "convolution", "convolution_backward", "grid_sampler_2d", "mm",
    "native_group_norm", "native_group_norm_backward", "native_layer_norm",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
)  # fmt: skip
# Keys of the table under which an operator runs on CUDA.
RUNS_ON_CUDA = ("CUDA", "Composite", "BackendSelect", "structured_delegate", "structured_inherits")


def one_type(name: str) -> bool:
    return name in ONE_TYPE


def operands(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """Those of an operator's inputs that must be of one type."""
    if not one_type(name):
        return []
    return [tensor for tensor in inputs if tensor.dtype.is_floating_point]


@functools.cache
def table() -> dict[str, str]:
    """Overload -> its entry in native_functions.yaml, which torch ships."""
    spec = importlib.util.find_spec("torchgen")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "packaged/ATen/native/native_functions.yaml"
    entries = re.split(r"^- func: ", path.read_text(), flags=re.MULTILINE)[1:]
    return {entry.partition("(")[0]: entry for entry in entries}


@functools.cache
def cpu_only(func: Any) -> bool:
    """Whether the table names kernels of other devices for an operator, and none for CUDA."""
    if not func._schema.name.startswith("aten::"):
        return False
    name = func._schema.name.removeprefix("aten::")
    overload = f"{name}.{func._schema.overload_name}".removesuffix(".")
    entry = table().get(overload)
    if entry is None or "dispatch:" not in entry:
        return False  # made by others, or the same on every device
    return not any(key in entry for key in RUNS_ON_CUDA)
