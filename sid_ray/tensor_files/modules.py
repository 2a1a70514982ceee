"""From inert records to what is wanted of them: named tensors, and arguments as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sid_ray.tensor_files.allowed import numpy_numbers
from sid_ray.tensor_files.inert import (
    Global,
    Inert,
    NumpyArray,
    RefusedFileError,
    StoredTensor,
    as_mapping,
)

MAX_DEPTH, MAX_TENSORS, MAX_NAME = 64, 20_000, 256
MAX_STEPS = 1_000_000
MAX_PLAIN = 1_000_000  # values and characters of recorded arguments


class NamedTensors(dict[str, StoredTensor]):
    """Tensors under their state-dict names; ``buffers`` says which of them are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: set[str] = set()

    def put(self, name: str, value: Any) -> None:
        if not isinstance(value, StoredTensor):
            raise RefusedFileError(f"{name[:80]!a} is not a tensor")
        if len(self) >= MAX_TENSORS or len(name) > MAX_NAME:
            raise RefusedFileError(
                f"it names more than {MAX_TENSORS} tensors, or one beyond reason"
            )
        self[name] = value


def is_module(value: Any) -> bool:
    """Whether a record is that of a torch module."""
    state = value.state if isinstance(value, Inert) else None
    return isinstance(state, dict) and "_parameters" in state and "_modules" in state


def is_state_dict(value: Any) -> bool:
    """Whether a value is a state dict: names to tensors, with at least one."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, StoredTensor) for k, v in value.items())
    )


def module_tensors(module: Inert) -> NamedTensors:
    """What module.state_dict() would have held, in its order.

    Raises RefusedError for a record that is not a tree of modules.
    """
    found = NamedTensors()
    steps = 0

    def walk(record: Any, prefix: str, depth: int) -> None:
        nonlocal steps
        if depth > MAX_DEPTH or steps > MAX_STEPS or len(prefix) > MAX_NAME:
            raise RefusedFileError("its modules are nested beyond reason")
        if not is_module(record):
            raise RefusedFileError(f"{prefix[:80]!a} is not a module")
        state = record.state
        steps += 4 + sum(len(table) for table in state.values() if isinstance(table, dict))
        for name, value in _table(state, "_parameters"):
            if value is not None:
                found.put(prefix + name, value)
        hidden = state.get("_non_persistent_buffers_set", ())
        for name, value in _table(state, "_buffers"):
            if value is not None and not (isinstance(hidden, set) and name in hidden):
                found.put(prefix + name, value)
                found.buffers.add(prefix + name)
        for name, child in _table(state, "_modules"):
            if child is not None:
                walk(child, f"{prefix}{name}.", depth + 1)

    walk(module, "", 0)
    return found


def _table(state: Mapping, name: str) -> list[tuple[str, Any]]:
    table = state.get(name, {})
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise RefusedFileError(f"a module's {name} is not a table of names")
    return list(table.items())


def state_dict_tensors(values: Mapping[str, Any]) -> NamedTensors:
    """The tensors of a state dict."""
    found = NamedTensors()
    for name, value in values.items():
        found.put(name, value)
    return found


def plain_value(value: Any) -> Any:
    """A value of a file as JSON would hold it; what JSON cannot hold becomes a short text.

    Raises RefusedError for a value that is larger or deeper than any argument.
    """
    left = [MAX_PLAIN]

    def convert(item: Any, depth: int) -> Any:
        left[0] -= len(item) + 1 if isinstance(item, str) else 1
        if left[0] < 0 or depth > 16:
            raise RefusedFileError("its recorded arguments are larger or deeper than any network's")
        if item is None or type(item) in (bool, int, float, str):
            return item
        if isinstance(item, list | tuple | set | frozenset):
            return [convert(part, depth + 1) for part in item]
        table = as_mapping(item)
        if table is not None:
            return {str(key): convert(part, depth + 1) for key, part in table.items()}
        if isinstance(item, NumpyArray) and item.type is not None and len(item.data) <= 4096:
            left[0] -= len(item.data)
            return numpy_numbers(item).tolist()
        if isinstance(item, Global):
            return item.name
        return f"<{item.class_name if isinstance(item, Inert) else type(item).__name__}>"

    return convert(value, 0)
