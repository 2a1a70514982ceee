"""Which GPUs torch can use here, and, where there are none, why and what to do.

torch says "no GPU" to five different things, or raises: ``torch.cuda.device_count`` asks NVML and
counts GPUs that the build cannot use, and the next call starts CUDA and fails
(torch/cuda/__init__.py: device_count, _lazy_init). Here each has its own line. No CUDA is started.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sid_ray.device.nvml import NO_LIBRARY, SAID, Card, Driver, ask_driver
from sid_ray.errors import UserError

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
INDEX = "https://download.pytorch.org/whl"
DRIVER_OF = {11: "450", 12: "525", 13: "580"}  # the oldest driver that runs a CUDA (CUDA toolkit
# release notes, "CUDA driver versions": a driver runs all later minor versions of its CUDA)


@dataclass(frozen=True)
class Gpu:
    """A GPU as CUDA numbers them in this process; ``memory`` in bytes."""

    index: int
    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Seen:
    """What the answer rests on.

    ``cuda``: the CUDA that torch is built for, None for a build without. ``architectures`` of that
    build, such as "sm_90" and "compute_120"; empty where they are not known. ``module``: the
    version of the loaded kernel module, empty for none. ``visible``: CUDA_VISIBLE_DEVICES.
    """

    torch: str
    cuda: str | None
    rocm: str | None
    architectures: tuple[str, ...]
    driver: Driver
    module: str
    visible: str | None


def look_around() -> Seen:
    """Reads torch's build, the driver and the environment of this process."""
    import torch

    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
    return Seen(
        torch.__version__,
        torch.version.cuda,
        torch.version.hip,
        tuple(flags.split()),
        ask_driver(),
        kernel_module(),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def kernel_module(path: Path = KERNEL_MODULE) -> str:
    """The version in "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ...", or ''."""
    try:
        words = path.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    versions = [word for word in words if word.replace(".", "").isdigit() and "." in word]
    return versions[0] if versions else ""


def gpus_here() -> list[Gpu]:
    """The GPUs that torch can use in this process; [] where there are none. Never raises."""
    seen = look_around()
    if why_none(seen):
        return []
    return [
        Gpu(index, card.name, card.memory, card.capability)
        for index, card in enumerate(visible_cards(seen))
    ]


def no_gpu_reason() -> str:
    """'' where GPUs can be used; else one line: what was found and what to do."""
    return why_none(look_around())


def wasted_gpus_reason() -> str:
    """``no_gpu_reason`` of a machine that seems to have GPUs, '' of others."""
    seen = look_around()
    return why_none(seen) if seen.driver.cards or seen.module else ""


def require_gpu() -> None:
    """Raises UserError where torch can use no GPU."""
    found = no_gpu_reason()
    if found:
        raise UserError(found)


def why_none(seen: Seen) -> str:
    """``no_gpu_reason`` of what was seen."""
    return (
        no_driver(seen)
        or wrong_build(seen)
        or old_driver(seen)
        or hidden_by_environment(seen)
        or old_gpu(seen)
    )


def no_driver(seen: Seen) -> str:
    """Why the driver shows no GPU at all. Asked before torch's build, which then matters less."""
    driver, module = seen.driver, seen.module
    if driver.cards:
        return ""
    if driver.undivided:
        return (
            f"MIG is on and GPU {driver.undivided[0]} has no instance: make one with "
            "nvidia-smi mig -cgi PROFILE -C, or switch MIG off with nvidia-smi -mig 0"
        )
    if driver.code not in (0, NO_LIBRARY):
        said = SAID.get(driver.code, f"NVML's error {driver.code}")
        return f"NVIDIA's driver {module or 'here'} does not answer ({said}): see nvidia-smi"
    if module:
        return (
            f"NVIDIA's driver {module} runs on this machine, and this process sees no GPU of it: "
            "start the container with GPUs (docker run --gpus all; in Kubernetes a limit of "
            "nvidia.com/gpu)"
        )
    return (
        f"no NVIDIA driver and no GPU is found here (torch {seen.torch}): install driver "
        f"{DRIVER_OF[13]} or newer on a machine with GPUs, or run on CPUs"
    )


def wrong_build(seen: Seen) -> str:
    """A torch without CUDA beside a GPU."""
    if seen.cuda:
        return ""
    newest = seen.driver.cuda or (0, 0)
    what = f"built for ROCm {seen.rocm}" if seen.rocm else "a build without CUDA"
    return (
        f"torch {seen.torch} is {what}, and this machine has {names_of(seen.driver.cards)}: "
        f"install one for the driver's CUDA {newest[0]}.{newest[1]} or older: {install(seen)}"
    )


def install(seen: Seen, old_card: bool = False) -> str:
    """The command that installs the same torch for this driver, or for GPUs before Turing.

    torch 2.13 has two builds: CUDA 13.0, the registry's, and 12.6, the last with kernels for Volta
    (pytorch issues 178665 and 190385).
    """
    command = f"pip install --force-reinstall torch=={seen.torch.partition('+')[0]}"
    if (seen.driver.cuda or (0, 0)) >= (13, 0) and not old_card:
        return f"{command} (the registry's is CUDA 13)"
    return f"{command} --index-url {INDEX}/cu126"


def old_driver(seen: Seen) -> str:
    """A driver that is older than torch's CUDA.

    Within a major version older drivers run newer builds (CUDA's minor version compatibility).
    """
    newest, built = seen.driver.cuda, int((seen.cuda or "0").split(".")[0])
    if newest is None or newest[0] >= built:
        return ""
    needed = DRIVER_OF.get(built)
    driver = f"driver {needed} or newer" if needed else "a newer driver"
    return (
        f"NVIDIA's driver {seen.driver.version} runs CUDA up to {newest[0]}.{newest[1]}, and torch "
        f"{seen.torch} is built for {seen.cuda}: install {driver}, or {install(seen)}"
    )


def hidden_by_environment(seen: Seen) -> str:
    """GPUs that CUDA_VISIBLE_DEVICES keeps from this process."""
    if visible_cards(seen):
        return ""
    return (
        f"CUDA_VISIBLE_DEVICES={seen.visible!r} hides {names_of(seen.driver.cards)} of this "
        "machine: unset it, or name some of nvidia-smi -L"
    )


def old_gpu(seen: Seen) -> str:
    """GPUs for which torch's build has no kernels."""
    if not seen.architectures:
        return ""
    for card in visible_cards(seen):
        if not any(runs_on(architecture, card.capability) for architecture in seen.architectures):
            shown = ".".join(str(part) for part in card.capability)
            return (
                f"torch {seen.torch} has no kernels for {card.name} (compute capability {shown}; "
                f"it has {' '.join(seen.architectures)}): hide it with CUDA_VISIBLE_DEVICES, or "
                f"{install(seen, old_card=True)}"
            )
    return ""


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether a build's code runs on a GPU: binaries (sm_) within a major version, PTX (compute_)
    on all later ones. "sm_90a" and "sm_100f" are for their own GPU or family.
    """
    kind, _, digits = architecture.partition("_")
    exact = digits.endswith("a")
    digits = digits.rstrip("af")
    if not digits.isdigit():
        return False
    built = (int(digits[:-1]), int(digits[-1]))
    if exact:
        return built == capability
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def visible_cards(seen: Seen) -> list[Card]:
    """The cards of this process in CUDA's order, by CUDA_VISIBLE_DEVICES.

    As CUDA reads it: numbers or UUIDs, which may be cut short; the first that is not there ends the
    list, and one named twice empties it. Of several MIG instances a process gets one.
    """
    cards, wanted = seen.driver.cards, seen.visible
    if wanted is None:
        chosen = list(cards)
    else:
        chosen = []
        for name in (name.strip() for name in wanted.split(",")):
            card = card_named(cards, name)
            if card is None:
                break
            if card in chosen:
                return []
            chosen.append(card)
    parts = [card for card in chosen if card.parent]
    return parts[:1] if parts else chosen


def card_named(cards: tuple[Card, ...], name: str) -> Card | None:
    """The one card of a number, a UUID or the beginning of one."""
    if name.isdigit():
        whole = [card for card in cards if card.index == int(name)]
        return whole[0] if whole else None
    found = [card for card in cards if name and card.uuid.startswith(name)]
    if name.startswith("MIG-GPU-"):  # the older form: MIG-GPU-UUID/instance/instance
        found = [b for b in cards if b.parent and name.split("/")[0] == f"MIG-{b.parent}"]
    return found[0] if len(found) == 1 else None


def names_of(cards: tuple[Card, ...]) -> str:
    """'8 GPUs (NVIDIA H100 80GB HBM3)'."""
    names = sorted({card.name for card in cards})
    return f"{len(cards)} GPU{'s'[: len(cards) != 1]} ({', '.join(names)})" if names else "no GPU"
