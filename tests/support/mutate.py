"""Small files of every container, ways to damage them, and a watch on what a reader does."""

from __future__ import annotations

import random
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from sid_ray.weights.description import ModelDescription
from tests.support import hostile
from tests.support import weights_writer as writer

# What reading a file must never do. Opening a file to read it is not among them.
FORBIDDEN = (
    "exec", "compile", "import", "pickle.find_class", "os.system", "os.exec", "os.posix_spawn",
    "os.spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "subprocess.Popen",
    "socket.connect", "socket.bind", "ctypes.dlopen", "code.__new__", "marshal.loads",
    "shutil.rmtree", "sys.addaudithook", "builtins.input",
)  # fmt: skip
INTERESTING = list(b"\x00\x01\x7f\x80\xffcRbQ.(tuse}]0h\x93\x94\x81\x95\x8e\x8b\x8a\x96jrqB")


class Watch:
    """Python's own audit events while the watch is on."""

    def __init__(self) -> None:
        self.on, self.seen = False, []
        sys.addaudithook(self.event)

    def event(self, name: str, arguments: tuple) -> None:
        if not self.on:
            return
        writes = (
            name == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if name in FORBIDDEN or writes:
            self.seen.append(f"{name} {arguments!r:.200}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False
        assert not self.seen, self.seen


def small_module() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Module()
    module.out_gain = nn.Parameter(torch.tensor(1.0))
    module.enc = nn.ModuleDict({"8x8_conv": writer.Layer(2, 3)})
    module.fourier = writer.Fourier()
    return module


def small_files() -> dict[str, bytes]:
    """A few kilobytes for each way in."""
    module = small_module()
    snapshot = writer.persistent(module, "Precond", {"img_resolution": 8, "channel_mult": [1, 2]})
    snapshot.__dict__["scale"] = np.arange(3, dtype=np.float32)
    snapshot.__dict__["mean"] = np.float64(0.5)
    writer.add_hook(snapshot)
    state = {"G_ema_state": module.state_dict(), "g_optimizer_state": {"state": {0: 1.5}}}
    unet, homes = writer.lsg_tree()
    description = ModelDescription("edm", writer.TINY)
    return {
        "snapshot": writer.pickled({"ema": snapshot}),
        "snapshot, protocol 2": writer.pickled({"ema": snapshot}, protocol=2),
        "training state": writer.torch_saved({"G_ema": snapshot}),
        "state dicts": writer.torch_saved(state),
        "older state dicts": writer.torch_saved(state, _use_new_zipfile_serialization=False),
        "modules": writer.pickled({"ema": unet}, extra=homes),
        "safetensors": save(module.state_dict(), {"sid_ray": description.to_json()}),
    }


def members_of(archive: bytes) -> dict[str, bytes] | None:
    """The members of a zip archive, None for another file."""
    if not archive.startswith(b"PK"):
        return None
    with zipfile.ZipFile(BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The file with one to four kinds of damage; in an archive, often under right checksums."""
    members = members_of(data) if rng.random() < 0.7 else None
    if members is not None:
        name = rng.choice([n for n in members if n.endswith("data.pkl")] + list(members))
        members[name] = damaged(members[name], others, rng)
        return hostile.archive(members)
    return damaged(data, others, rng)


def damaged(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1) if data else 0
        end = min(len(data), at + rng.choice([1, 2, 4, 8, 64, 1024]))
        kind = rng.randrange(8)
        if kind == 0:
            data = (
                data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
                if at < len(data)
                else data
            )
        elif kind == 1:
            data = data[:at] + bytes([rng.choice(INTERESTING)]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[:end] + data[at:end] * rng.choice([1, 1, 2, 100]) + data[end:]
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data = data[:at] + other[start : start + rng.choice([4, 64, 1024])] + data[end:]
        elif kind == 5:
            wide = rng.choice(["<I", "<Q", "<q"])
            value = rng.choice([0, 1, 255, 1 << 16, (1 << 31) - 1, 10 << 30 if wide != "<I" else 7])
            data = data[:at] + struct.pack(wide, value) + data[at + struct.calcsize(wide) :]
        elif kind == 6:
            data = data[:at]
        else:
            data = data[:at] + bytes(rng.choices(INTERESTING, k=rng.randrange(1, 12))) + data[at:]
    return data
