"""What a machine is: its GPUs, what drives them, and the versions of all that computes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sid_ray.commands.device.redact import without_places

GIB = 1 << 30
PACKAGES = (
    "sid_ray", "torch", "triton", "ray", "deepspeed", "diffusers", "transformers", "xformers",
    "numpy", "safetensors",
)  # fmt: skip
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # nvidia-smi underlines a header
ASK_S = 20.0  # for nvidia-smi
TOPOLOGY = ("nvidia-smi", "topo", "-m")
STATE = (
    "nvidia-smi", "--format=csv",
    "--query-gpu=index,driver_version,pstate,power.limit,clocks.max.sm,ecc.mode.current,"
    "mig.mode.current,persistence_mode,pcie.link.gen.max,pcie.link.width.max",
)  # fmt: skip


def machine_facts(device: str) -> dict[str, str]:
    """A line each, for a report that strangers read: no name of the machine or of anyone on it."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    found = {"measured on": "GPUs" if device == "cuda" else "the CPU, as a rehearsal"}
    found |= gpu_facts() if device == "cuda" else {"GPUs": "none used"}
    return found | {
        "processors": f"{os.cpu_count()} x {processor(Path('/proc/cpuinfo'))}",
        "memory": f"{memory:.0f} GiB, {free_shared():.1f} GiB free in /dev/shm",
        "system": f"Linux {platform.release()}, glibc {platform.libc_ver()[1]}",
        "Python": platform.python_version(),
        "torch is built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs",
        "packages": ", ".join(f"{name} {version_of(name)}" for name in PACKAGES),
    }


def gpu_facts() -> dict[str, str]:
    """GPUs by kind, and the libraries that drive them. Starts no CUDA."""
    import torch

    from sid_ray.device.found import gpus_here, look_around

    gpus, driver = gpus_here(), look_around().driver
    kinds: dict[str, int] = {}
    for gpu in gpus:
        capability = ".".join(map(str, gpu.capability))
        kind = f"{gpu.name}, {gpu.memory / GIB:.1f} GiB, compute capability {capability}"
        kinds[kind] = kinds.get(kind, 0) + 1
    newest = ".".join(map(str, driver.cuda or ()))
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {
        "GPUs": "; ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "driver": f"{driver.version}, CUDA up to {newest}",
        "libraries": f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
        f"NCCL {nccl}",
    }


def gpu_tables(ask: Sequence[Sequence[str]] = (STATE, TOPOLOGY)) -> dict[str, str]:
    """What nvidia-smi says of clocks, power and links, and how GPUs reach each other."""
    titles = ("state of the GPUs", "links between GPUs")
    return {title: said_by(command) for title, command in zip(titles, ask, strict=True)}


def said_by(command: Sequence[str]) -> str:
    """A program's output, or why there is none. Raises nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} does not answer ({type(error).__name__})"
    said = done.stdout.strip() or done.stderr.strip()
    return without_places(COLOURS.sub("", said))


def processor(cpuinfo: Path) -> str:
    """The model in /proc/cpuinfo."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())


def free_shared(path: str = "/dev/shm") -> float:
    """GiB that processes can share: NCCL and Ray need some."""
    try:
        state = os.statvfs(path)
    except OSError:
        return 0.0
    return state.f_bavail * state.f_frsize / GIB


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def facts_table(facts: Mapping[str, str]) -> list[str]:
    """The facts as lines of a Markdown table."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
