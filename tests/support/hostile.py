"""Hostile files: each tries to run something, or to make the reader swell or hang."""

from __future__ import annotations

import functools
import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import torch

from tests.support import weights_writer as writer

STOP = b"."
GIB_10 = 10 << 30


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def ema(value: bytes) -> bytes:
    """A pickle of {"ema": value}."""
    return b"\x80\x04}" + text("ema") + value + b"s" + STOP


def touch(canary: Path) -> str:
    return f"touch {canary}"


def payloads(canary: Path) -> dict[str, bytes]:
    """Pickles that create the canary in any unpickler that runs what it reads."""
    command, python = text(touch(canary)), text(f"open({str(canary)!r}, 'w')")
    named = text("system")
    getter = call(
        "builtins", "getattr", b"cos\n\n"[:0] + call("builtins", "__import__", text("os")), named
    )
    return {
        "os.system": ema(call("os", "system", command)),
        "posix.system": ema(call("posix", "system", command)),
        "protocol 0": f"cos\nsystem\n(S'{touch(canary)}'\ntR.".encode(),
        "instance": b"(" + command + b"ios\nsystem\n.",
        "object": b"\x80\x02(cos\nsystem\n" + command + b"o.",
        "stack global": b"\x80\x04" + text("os") + named + b"\x93" + command + b"\x85R.",
        "dotted name": b"\x80\x04"
        + text("shutil")
        + text("os.system")
        + b"\x93"
        + command
        + b"\x85R.",
        "getattr chain": ema(getter + b"(" + command + b"tR"),
        "allowed getattr, then called": ema(
            call("builtins", "getattr", b"}", text("get")) + command + b"\x85R"
        ),
        "builtins.eval": ema(call("builtins", "eval", python)),
        "builtins.exec, Python 2 name": ema(call("__builtin__", "exec", python)),
        "subprocess": ema(call("subprocess", "getoutput", command)),
        "new object": ema(b"csubprocess\nPopen\n" + command + b"\x85\x81"),
        "new object with names": ema(
            b"ccollections\nOrderedDict\n)}" + text("x") + command + b"s\x92"
        ),
        "build on a class": ema(
            b"ccollections\nOrderedDict\n}" + text("__reduce__") + command + b"sb"
        ),
        "setstate on a list": ema(b"]}" + text("__class__") + command + b"sb"),
        "torch.load": ema(call("torch", "load", command)),
        "numpy object array": ema(call("numpy", "dtype", text("O8"), b"\x89", b"\x88")),
        "numpy runs code": ema(call("numpy.testing._private.utils", "runstring", python, b"}")),
        "codecs": ema(call("_codecs", "decode", command, text("rot13"))),
        "extension registry": ema(b"\x82\x01"),
        "persistent id": ema(command + b"Q"),
        "persistent id, text": ema(b"P0\n"),
        "out-of-band buffer": ema(b"\x97"),
        "name in torch.nn with a dot": ema(
            b"\x80\x04" + text("torch.nn") + text("Module.__init__.__globals__") + b"\x93)R"
        ),
    }


def nested_payloads(canary: Path) -> dict[str, bytes]:
    """Payloads inside a storage blob, a torch archive, and a persistence record's state."""
    evil = call("os", "system", text(touch(canary)))
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + STOP
    blob = magic + b"\x80\x02M\xe9\x03." + b"\x80\x02" + evil + STOP
    data = b"B" + struct.pack("<I", len(blob)) + blob
    load = b"ctorch.storage\n_load_from_bytes\n" + data + b"\x85R"
    meta = (
        b"}" + text("class_name") + text("EDMPrecond") + b"s" + text("module_src")
        + text(f"open({str(canary)!r}, 'w')") + b"s" + text("state") + b"}" + text("_modules")
        + evil + b"ss"
    )  # fmt: skip
    record = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R"
    return {
        "storage blob": ema(load),
        "older archive": magic + b"\x80\x02M\xe9\x03.\x80\x02}" + text("little_endian")
        + b"\x88s.\x80\x02" + evil + b".\x80\x02].",
        "torch archive": archive({"archive/data.pkl": b"\x80\x02" + evil + STOP}),
        "persistence state": ema(record),
    }  # fmt: skip


def source_only(canary: Path) -> bytes:
    """A whole, harmless-looking snapshot whose source text would create the canary."""
    module = writer.edm_module()
    module.__dict__["source"] = f"open({str(canary)!r}, 'w')\n"
    return writer.pickled({"ema": module})


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return file.getvalue()


def storage_pickle(numel: int, shape: bytes, stride: bytes, offset: int = 0) -> bytes:
    """data.pkl of {"a": a tensor} with one storage, key 0."""
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
        + number(numel) + b"tQ"
    )  # fmt: skip
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + shape + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    return b"\x80\x02}" + text("a") + tensor + b"s" + STOP


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def shape(*sizes: int) -> bytes:
    return b"(" + b"".join(number(size) for size in sizes) + b"t"


def tensor_archive(numel: int, sizes: bytes, strides: bytes, offset: int = 0) -> bytes:
    data = struct.pack("<4f", 1, 2, 3, 4)
    pickled = storage_pickle(numel, sizes, strides, offset)
    return archive({"a/data.pkl": pickled, "a/byteorder": b"little", "a/data/0": data})


def legacy_with_numel(claimed: int) -> bytes:
    """A bare state dict in torch's older format whose storage claims a size."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(4)}, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    assert data.endswith(struct.pack("<q4f", 4, 1, 1, 1, 1))
    return data[:-24] + struct.pack("<q4f", claimed, 1, 1, 1, 1)


def bomb() -> bytes:
    """64 MiB of zeros, compressed a thousandfold."""
    pickled = storage_pickle(16 << 20, shape(16 << 20), shape(1))
    members = {"a/data.pkl": pickled, "a/data/0": bytes(64 << 20)}
    return archive(members, zipfile.ZIP_DEFLATED)


def lying_directory() -> bytes:
    """An archive whose directory gives a member 10 GB."""
    data = bytearray(tensor_archive(4, shape(4), shape(1)))
    place = data.rfind(b"PK\x01\x02")
    struct.pack_into("<II", data, place + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    return bytes(data)


def overlapping() -> bytes:
    """An archive whose members are all the same bytes."""
    body = bytes(1 << 16)
    header = struct.pack(
        "<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, zlib.crc32(body), len(body), len(body), 6, 0
    )
    data = bytearray(header + b"data/0" + body)
    directory = bytearray()
    for index in range(64):
        name = f"a/{index:02d}".encode()
        directory += struct.pack(
            "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, zlib.crc32(body), len(body),
            len(body), len(name), 0, 0, 0, 0, 0, 0,
        ) + name  # fmt: skip
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 64, 64, len(directory), len(data), 0)
    return bytes(data + directory + end)


@functools.cache
@functools.cache
def large_claims() -> dict[str, bytes]:
    """Small files that announce, or grow into, something large."""
    huge = struct.pack("<Q", GIB_10)
    fill = 1 << 20
    return {
        "BINBYTES8 of 10 GB": ema(b"\x8e" + huge),
        "BYTEARRAY8 of 10 GB": ema(b"\x96" + huge),
        "BINUNICODE8 of 10 GB": ema(b"\x8d" + huge),
        "BINBYTES of 2 GB": ema(b"B" + struct.pack("<I", 1 << 31)),
        "LONG4 of 2 GB": ema(b"\x8b" + struct.pack("<i", (1 << 31) - 1)),
        "LONG4 below zero": ema(b"\x8b" + struct.pack("<i", -5)),
        "frame of 10 GB": b"\x80\x04\x95" + huge + b"N.",
        "memo index of 4 billion": ema(b"Nr" + b"\xff" * 4),
        "memo index in text": ema(b"Np" + b"9" * 5000 + b"\n"),
        "number of 100,000 digits": ema(b"L" + b"9" * 100_000 + b"L\n"),
        "dicts, one a byte": b"\x80\x04" + b"}" * fill + STOP,
        "sets, one a byte": b"\x80\x04" + b"\x8f" * fill + STOP,
        "memo entries, one a byte": b"\x80\x04N" + b"\x94" * fill + STOP,
        "marks, one a byte": b"\x80\x04" + b"(" * fill + STOP,
        "deep lists": b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + STOP,
        "deep tuples": b"\x80\x04)" + b"\x85" * 200_000 + STOP,
        "doubling tuples": b"\x80\x04)" + b"2\x86" * 1000 + STOP,
        "doubling tuples as a key": b"\x80\x04})" + b"2\x86" * 200 + b"Ns.",
        "one text encoded often": b"\x80\x04" + text("x" * fill) + b"\x940" + b"".join(
            call("_codecs", "encode", b"h\x00", text("latin1")) for _ in range(2000)
        ) + STOP,
        "one list copied often": b"\x80\x04](" + b"N" * 50_000 + b"e\x940" + b"".join(
            call("builtins", "set", b"h\x00") for _ in range(2000)
        ) + STOP,
        "one long text in many names": b"\x80\x04" + text("x" * fill) + b"\x940" + b"".join(
            b"h\x00" + text(str(i)) + b"\x93" for i in range(2000)
        ) + STOP,
        "doubling modules": doubling_modules(),
        "numpy array of 10 GB": ema(
            b"cnumpy._core.multiarray\n_reconstruct\n)R(K\x01" + shape(GIB_10)
            + call("numpy", "dtype", text("u1")) + b"\x89C\x04abcdtb"
        ),
        "zip bomb": bomb(),
        "member of 4 GB": lying_directory(),
        "members over one another": overlapping(),
        "storage of 10 GB": tensor_archive(GIB_10 // 4, shape(4), shape(1)),
        "older storage of 10 GB": legacy_with_numel(GIB_10 // 4),
        "older storage below zero": legacy_with_numel(-1),
        "shape beyond the storage": tensor_archive(4, shape(5), shape(1)),
        "offset beyond the storage": tensor_archive(4, shape(4), shape(1), 1),
        "stride beyond the storage": tensor_archive(4, shape(2, 2), shape(3, 1)),
        "one number expanded to 10 GB": tensor_archive(4, shape(GIB_10), shape(0)),
        "shape below zero": tensor_archive(4, shape(-1), shape(1)),
        "offset below zero": tensor_archive(4, shape(1), shape(1), -1),
        "shape without end": tensor_archive(4, shape(*[1 << 40] * 16), shape(*[0] * 16)),
        "seventeen dimensions": tensor_archive(4, shape(*[1] * 17), shape(*[1] * 17)),
        "shape and stride differ": tensor_archive(4, shape(2, 2), shape(1)),
    }  # fmt: skip


def doubling_modules() -> bytes:
    """Modules that hold the one before twice: 2^40 tensors by name."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(1))
    for _ in range(40):
        outer = torch.nn.Module()
        outer.a = outer.b = module
        module = outer
    return pickle.dumps({"ema": module})
