"""NVIDIA's management library by ctypes: what GPUs there are, without starting CUDA.

CUDA's own calls read CUDA_VISIBLE_DEVICES once a process, and a process that has started CUDA may
not fork; NVML's do neither. Names and numbers are those of nvml.h; all functions return a code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
TEXT = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE; a UUID has as many, a driver's version fewer
SUCCESS, NO_PERMISSION = 0, 4
NO_LIBRARY = -1  # not NVML's: the library itself could not be loaded
SAID = {  # nvmlReturn_t, the ones a person can do something about
    NO_LIBRARY: f"{LIBRARY} cannot be loaded",
    NO_PERMISSION: "the user has no permission for the devices",
    9: "its kernel module is not loaded",
    12: "a library of the driver is missing",
    15: "a GPU has fallen off the bus",
    18: "its library and its kernel module are of two versions: reboot after a driver's update",
}


@dataclass(frozen=True)
class Card:
    """A GPU of the machine, or a MIG instance of one, whatever CUDA_VISIBLE_DEVICES says.

    ``index`` is the whole GPU's. ``memory`` in bytes. ``parent`` is the UUID of the GPU that a MIG
    instance is a part of, empty for a whole GPU.
    """

    index: int
    name: str
    memory: int
    capability: tuple[int, int]
    uuid: str
    parent: str = ""


@dataclass(frozen=True)
class Driver:
    """What the driver says of itself. ``cuda``: the newest CUDA that it runs, such as (13, 0).

    ``code`` is 0, or why it does not answer (``SAID``). ``undivided``: GPUs with MIG switched on
    that have no instance, of which CUDA shows nothing.
    """

    code: int
    version: str = ""
    cuda: tuple[int, int] | None = None
    cards: tuple[Card, ...] = ()
    undivided: tuple[int, ...] = ()


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class NvmlError(Exception):
    """A call failed; ``args[0]`` is NVML's code."""


def load_nvml() -> Any:
    """The library. Raises OSError where there is none."""
    return ctypes.CDLL(LIBRARY)


def ask_driver(library: Callable[[], Any] = load_nvml) -> Driver:
    """The driver and its GPUs. Never raises; starts no CUDA."""
    try:
        nvml = library()
    except OSError:
        return Driver(NO_LIBRARY)
    code = nvml.nvmlInit_v2()
    if code:
        return Driver(code)
    try:
        version = text_from(nvml.nvmlSystemGetDriverVersion)
        newest = number_from(
            nvml.nvmlSystemGetCudaDriverVersion_v2, ctype=ctypes.c_int
        )  # 13020: 13.2
        cards: list[Card] = []
        undivided = []
        for index, handle in enumerate(handles(nvml)):
            found = cards_of(nvml, handle, index)
            cards += found
            undivided += [] if found else [index]
        cuda = (newest // 1000, newest % 1000 // 10)
        return Driver(SUCCESS, version, cuda, tuple(cards), tuple(undivided))
    except NvmlError as error:
        return Driver(int(error.args[0]))
    finally:
        nvml.nvmlShutdown()


def handles(nvml: Any) -> list[ctypes.c_void_p]:
    """The GPUs that this process may use: a container counts the machine's. Raises NvmlError."""
    found = []
    for index in range(number_from(nvml.nvmlDeviceGetCount_v2)):
        handle = ctypes.c_void_p()
        code = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        if code != NO_PERMISSION:
            expect(code)
            found.append(handle)
    return found


def cards_of(nvml: Any, handle: Any, index: int) -> list[Card]:
    """The whole GPU, or its MIG instances where that is switched on. Raises NvmlError."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    expect(
        nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    )
    whole = card(nvml, handle, index, (major.value, minor.value))
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    # GPUs that know no MIG answer with an error.
    failed = nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(current), ctypes.byref(pending))
    if failed or not current.value:
        return [whole]
    parts = []
    for part in range(number_from(nvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
        instance = ctypes.c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, part, ctypes.byref(instance)):
            continue  # fewer instances than there may be
        parts.append(card(nvml, instance, index, whole.capability, whole.uuid))
    return parts


def card(nvml: Any, handle: Any, index: int, capability: tuple[int, int], parent: str = "") -> Card:
    """What a handle of a GPU or a MIG instance says. Raises NvmlError."""
    memory = Memory()
    expect(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)))
    name, uuid = (
        text_from(nvml.nvmlDeviceGetName, handle),
        text_from(nvml.nvmlDeviceGetUUID, handle),
    )
    return Card(index, name, memory.total, capability, uuid, parent)


def expect(code: int) -> None:
    if code:
        raise NvmlError(code)


def text_from(call: Callable[..., int], *handle: Any) -> str:
    """What a call writes into a buffer of characters."""
    buffer = ctypes.create_string_buffer(TEXT)
    expect(call(*handle, buffer, TEXT))
    return buffer.value.decode()


def number_from(call: Callable[..., int], *handle: Any, ctype: Any = ctypes.c_uint) -> int:
    """What a call writes into a number."""
    value = ctype()
    expect(call(*handle, ctypes.byref(value)))
    return int(value.value)
