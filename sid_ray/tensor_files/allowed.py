"""What the names in a weights file stand for: the allow-list.

Nothing here imports a name from a file. A name that is not listed is refused with its name; so is a
persistent id outside torch's own archives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch

from sid_ray.tensor_files.inert import (
    Global,
    Inert,
    NumpyArray,
    NumpyType,
    Persistent,
    RefusedFileError,
    TensorStorage,
    Uses,
    make_tensor,
)

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
STORAGE_TYPES = {f"torch.{name}": dtype for name, dtype in STORAGES.items()} | {
    "torch.storage.UntypedStorage": torch.uint8
}
DTYPES = {f"torch.{str(dtype).removeprefix('torch.')}": dtype for dtype in STORAGES.values()}
PERSISTENCE = "torch_utils.persistence._reconstruct_persistent_obj"
# Classes whose objects become Inert: modules of a pickled Stable Diffusion network, and what a
# checkpoint of its training records beside it.
INERT_CLASSES = re.compile(
    r"(torch\.nn|diffusers|pytorch_lightning\.callbacks)(\.[A-Za-z0-9]\w*)+", re.ASCII
)
INERT_NAMES = {"builtins.getattr", "torch.device", *DTYPES, *STORAGE_TYPES}
HARMLESS = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2 names of the same modules
NUMPY_CODE = re.compile(r"[<>=|]?([biuf][1248]|b1|\?)")


def plain_dict(*arguments: Any) -> dict:
    """OrderedDict(), EasyDict(), defaultdict(factory): insertion order is kept by any dict."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list | dict) else []
    items = pairs.items() if isinstance(pairs, dict) else pairs
    result = {}
    for pair in items:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise RefusedFileError("a dict is not made of pairs with a text as key")
        result[pair[0]] = pair[1]
    return result


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
    return make_tensor(storage, offset, shape, stride)


def rebuild_typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    """A tensor over an untyped storage, the dtype apart."""
    kind = DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if kind is None or not isinstance(storage, TensorStorage) or storage.dtype != torch.uint8:
        raise RefusedFileError("a tensor has a dtype that is not read here")
    typed = TensorStorage(kind, storage.count // kind.itemsize, storage.data, storage.crc)
    return make_tensor(typed, offset, shape, stride)


def rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def encode_latin(text: Any, encoding: Any) -> memoryview:
    """Bytes in pickles of protocol 2, which has no bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedFileError("a text is encoded in a way that is not read here")
    try:
        return memoryview(bytearray(text, "latin-1"))
    except UnicodeEncodeError:
        raise RefusedFileError("it is damaged: bytes are not bytes") from None


def numpy_type(code: Any, *_: Any) -> NumpyType:
    if not isinstance(code, str) or not NUMPY_CODE.fullmatch(code):
        raise RefusedFileError(f"a numpy type {str(code)[:20]!a} is not one of plain numbers")
    return NumpyType(code)


def numpy_array(*_: Any) -> NumpyArray:
    return NumpyArray()


def array_from_buffer(data: Any, kind: Any, shape: Any, *_: Any) -> NumpyArray:
    return filled_array(NumpyArray(), shape, kind, data)


def filled_array(array: NumpyArray, shape: Any, kind: Any, data: Any) -> NumpyArray:
    """Sets an array. Raises RefusedError where the shape does not fit the bytes."""
    if not isinstance(kind, NumpyType) or not isinstance(data, memoryview):
        raise RefusedFileError("a numpy array is not made of plain numbers")
    if not isinstance(shape, tuple) or not all(
        type(size) is int and 0 <= size < 1 << 48 for size in shape
    ):
        raise RefusedFileError("a numpy array's shape is not a list of plain numbers")
    if len(shape) > 16 or math.prod(shape) * item_size(kind) != len(data):
        raise RefusedFileError(
            f"a numpy array of shape {list(shape)} does not fit its {len(data)} B"
        )
    array.shape, array.type, array.data = shape, kind, data
    return array


def item_size(kind: NumpyType) -> int:
    return 1 if kind.code.endswith("?") else int(kind.code[-1])


def numpy_scalar(kind: Any, data: Any) -> Any:
    """A Python number."""
    array = filled_array(NumpyArray(), (1,), kind, data)
    return numpy_numbers(array)[0].item()


def numpy_numbers(array: NumpyArray) -> Any:
    """A numpy array of a record, read-only, without copying."""
    import numpy

    assert array.type is not None  # filled_array came first
    code, order = array.type.code, array.type.order
    named = code if order == "|" or code[0] in "<>=|?" else order + code
    return numpy.frombuffer(array.data, dtype=numpy.dtype(named))


def persistent_object(meta: Any, *_: Any) -> Persistent:
    """The inert record of a persistence object: its class's name, state and source text."""
    known = isinstance(meta, dict) and all(
        isinstance(meta.get(name), str) for name in ("class_name", "module_src")
    )
    if not known or not isinstance(meta.get("state"), dict | None):
        raise RefusedFileError("a persistence record lacks class_name, module_src or state")
    return Persistent(
        PERSISTENCE,
        state=meta.get("state") or {},
        recorded_class=meta["class_name"],
        source=meta["module_src"],
    )


def sequence(make: Callable[[Any], Any]) -> Callable[..., Any]:
    def build(*arguments: Any) -> Any:
        items = arguments[0] if arguments else []
        scalars = (str, int, float, bool, type(None))
        if not isinstance(items, list | tuple) or not all(type(i) in scalars for i in items):
            raise RefusedFileError("a set or size is made of something other than plain values")
        return make(items)

    return build


def path_text(*parts: Any) -> str:
    """A path that a configuration records, as text: where diffusers once read a network from."""
    if not all(isinstance(part, str) for part in parts):
        raise RefusedFileError("a path is made of something other than text")
    return "/".join(parts).replace("//", "/")


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": plain_dict,
    "collections.defaultdict": lambda *_: {},
    "dnnlib.util.EasyDict": plain_dict,
    "builtins.dict": plain_dict,
    "builtins.set": sequence(set),
    "builtins.frozenset": sequence(frozenset),
    "torch.Size": sequence(tuple),
    "_codecs.encode": encode_latin,
    "numpy.dtype": numpy_type,
    "numpy.ndarray": numpy_array,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_typed_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    PERSISTENCE: persistent_object,
}
for module in ("pathlib", "pathlib._local"):
    for kind in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"):
        CALLS[f"{module}.{kind}"] = path_text
for package in ("numpy.core", "numpy._core"):
    CALLS[f"{package}.multiarray.scalar"] = numpy_scalar
    CALLS[f"{package}.multiarray._reconstruct"] = numpy_array
    CALLS[f"{package}.numeric._frombuffer"] = array_from_buffer

LOAD_BLOB = "torch.storage._load_from_bytes"


class AllowList:
    """The Rules of a weights file.

    ``blob`` reads a nested storage, ``storage`` finds the one behind a persistent id; None refuses
    them. ``tolerant`` is for looking at a hostile file: the unknown becomes Inert and is noted,
    still without running anything.
    """

    def __init__(
        self,
        uses: Uses,
        blob: Callable[[memoryview], TensorStorage] | None = None,
        storage: Callable[[tuple], TensorStorage] | None = None,
        tolerant: bool = False,
    ):
        self.uses, self.blob, self.storage, self.tolerant = uses, blob, storage, tolerant

    def refuse(self, name: str, what: str) -> None:
        self.uses.refused.add(name)
        if not self.tolerant:
            raise RefusedFileError(f"{what} {name!a}, which no weights file needs; nothing was run")

    def name(self, module: str, name: str) -> Global:
        full = f"{HARMLESS.get(module, module)}.{name}"
        inert = full in INERT_NAMES or bool(INERT_CLASSES.fullmatch(full) and name.isidentifier())
        self.uses.note(self.uses.imports, full)
        if not (inert or full in CALLS or (full == LOAD_BLOB and self.blob)):
            self.refuse(full, "it imports")
        return Global(full)

    def call(self, function: Any, arguments: tuple, named: dict | None = None) -> Any:
        name = function.name if isinstance(function, Global) else f"<{type(function).__name__}>"
        self.uses.note(self.uses.calls, name)
        if named or not isinstance(function, Global):
            self.refuse(name, "it calls")
            return Inert(name, arguments)
        if name == LOAD_BLOB and self.blob:
            if len(arguments) != 1 or not isinstance(arguments[0], memoryview):
                raise RefusedFileError("it is damaged: a storage is not made of bytes")
            return self.blob(arguments[0])
        if name in CALLS:
            try:
                value = CALLS[name](*arguments)
            except TypeError:  # a number of arguments that the function does not take
                raise RefusedFileError(
                    f"it is damaged: {name} is called in a way it cannot be"
                ) from None
            if isinstance(value, Persistent):
                classes = self.uses.sources.setdefault(value.source, [])
                if value.recorded_class not in classes and len(classes) < 1000:
                    classes.append(value.recorded_class)
            return value
        return Inert(name, arguments)

    def set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, NumpyType):
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
                raise RefusedFileError("it is damaged: a numpy type has no byte order")
            target.order = state[1]
        elif isinstance(target, NumpyArray):
            if not isinstance(state, tuple) or len(state) != 5:
                raise RefusedFileError("it is damaged: a numpy array has no numbers")
            filled_array(target, state[1], state[2], state[4])
        elif not isinstance(target, dict):  # OrderedDict's and EasyDict's attributes: not needed
            raise RefusedFileError(f"it sets the attributes of a {type(target).__name__}")

    def persistent(self, key: Any) -> Any:
        if self.storage is None:
            self.refuse("persistent id", "it uses a")
            return Inert("persistent id")
        known = (
            isinstance(key, tuple)
            and len(key) in (5, 6)
            and key[0] == "storage"
            and isinstance(key[1], Global)
            and key[1].name in STORAGE_TYPES
            and isinstance(key[2], str)
            and type(key[4]) is int
            and key[4] >= 0
        )
        if not known or key[5:] not in ((), (None,)):
            raise RefusedFileError("a storage is announced in a way that is not read here")
        return self.storage(key)
