"""Named tensors of weights files, and whether they are those of a network.

The one reader of everything that a network is made of: U-Nets, text encoders and VAEs. Without
``numbers`` only names, shapes and dtypes are read (tensors on torch's meta device), so that a check
before a run and the run itself open the same files in the same way. Nothing in a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.errors import UserError
from sid_ray.tensor_files.archives import is_pickled, read_pickled
from sid_ray.tensor_files.inert import MIB, RefusedFileError
from sid_ray.tensor_files.modules import NamedTensors, is_state_dict, state_dict_tensors

# Of weights that are there more than once, the most exact ones; safetensors before pickles.
VARIANTS = ("", "fp16", "bf16", "non_ema")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")
OTHERS = (".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pb", ".pt", ".pth", ".xml")


# One file ----------------------------------------------------------------------------------------


def read_safetensors(path: Path, numbers: bool = True) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is missing or not whole."""
    from safetensors.torch import load_file

    with readable(path):
        return load_file(path) if numbers else _safetensors_layout(path)


def _safetensors_layout(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            part = file.get_slice(name)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise UserError(
                    f"{path} holds {name!a} as {part.get_dtype()}, quantised weights: take the "
                    "network's float weights"
                )
            found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return found


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the library says of a safetensors file, in one line of ours."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except (
        SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError, OverflowError,
        MemoryError,
    ) as error:  # fmt: skip
        if what := mistaken_for(start_of(path)):
            raise UserError(f"{path} {what}") from None
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): fetch it again"
        ) from error


def start_of(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def mistaken_for(start: bytes) -> str:
    """What a file is that begins so, where people take it for weights; empty for anything else."""
    if not start:
        return "is empty: fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run git lfs pull where it lies"
    if start.lstrip().lower().startswith(WEB_PAGE):
        return (
            "is a web page, not weights: the address led to a page; fetch the file's own address "
            "(on Hugging Face that of its download, or hf://OWNER/REPO/PATH)"
        )
    if start.startswith(b"GGUF"):
        return "is a GGUF file, whose weights are quantised: take the network's float weights"
    return ""


def read_bin(path: Path, numbers: bool = True) -> dict[str, Tensor]:
    """The tensors of a pickled state dict. Raises UserError (RefusedError)."""
    start = start_of(path)
    if (what := mistaken_for(start)) or not is_pickled(start):
        raise UserError(f"{path} {what or 'is no weights file: it begins with ' + str(start[:8])}")
    try:
        file = read_pickled(path)
        if not is_state_dict(file.root):
            raise RefusedFileError("it holds something other than named tensors")
        found = state_dict_tensors(file.root)
        return take_all(found, file.size) if numbers else without_numbers(found)
    except RefusedFileError as error:
        raise RefusedFileError(
            f"{path} was not loaded: {error}. Fetch it again, or do not trust where it came from"
        ) from None


def without_numbers(found: NamedTensors) -> dict[str, Tensor]:
    """Tensors without numbers."""
    return {
        name: torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        for name, stored in found.items()
    }


def take_all(found: NamedTensors, file_size: int) -> dict[str, Tensor]:
    """Tensors of their own memory; names that share numbers in the file share them here.

    Raises RefusedError where they are more than twice the file.
    """
    left, shared = 2 * file_size + MIB, {}
    tensors: dict[str, Tensor] = {}
    for name, stored in found.items():
        left -= stored.reach() * stored.dtype.itemsize
        if left < 0:
            raise RefusedFileError("its tensors lie over one another and would swell past its size")
        if id(stored) not in shared:
            shared[id(stored)] = stored.take()
        tensors[name] = shared[id(stored)]
    return tensors


# A folder of diffusers or transformers -----------------------------------------------------------


def weight_files(folder: Path, stems: Sequence[str] = STEMS) -> tuple[list[Path], str]:
    """The files with a component's weights, and the variant they are of: "", "fp16" and the like.

    ``stems`` are names without extension. Raises UserError where there are none, or where some of
    several are missing.
    """
    files, variant, _ = _look_for_weights(folder, stems)
    return files, variant


def _look_for_weights(folder: Path, stems: Sequence[str]) -> tuple[list[Path], str, dict[str, str]]:
    """weight_files and, of sharded weights, what their index says: the file of each tensor."""
    for variant in VARIANTS:
        dotted = f".{variant}" if variant else ""
        for ending in ("safetensors", "bin"):
            for stem in stems:
                # Libraries have put the variant's name into the index's in two places.
                indices = (f"{stem}.{ending}.index{dotted}", f"{stem}{dotted}.{ending}.index")
                for index in (folder / f"{name}.json" for name in indices):
                    if index.is_file():
                        listed = _listed(index)
                        return [folder / n for n in sorted(set(listed.values()))], variant, listed
                whole = folder / f"{stem}{dotted}.{ending}"
                if whole.is_file():
                    return [whole], variant, {}
    there = sorted(p.name for p in folder.glob("*") if p.suffix in (*OTHERS, ".safetensors"))
    held = f"; {', '.join(there[:3])} is not read: save it with save_pretrained" if there else ""
    raise UserError(f"no weights in {folder}: {stems[0]}.safetensors is missing{held}")


def _listed(index: Path) -> dict[str, str]:
    """An index: tensors and the files that hold them, all of its own folder. Raises UserError."""
    listed = json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
        listed = {}
    names = set(listed.values())
    if not names or any(Path(n).name != n or n in ("", ".", "..") for n in names):
        raise UserError(f"{index} does not list files of its own folder")
    for name in sorted(names):
        if not (index.parent / name).is_file():
            raise UserError(f"no weights at {index.parent / name}, which {index.name} names")
    return listed


def read_component(
    folder: Path, stems: Sequence[str] = STEMS, numbers: bool = True
) -> tuple[dict[str, Tensor], str]:
    """A component's tensors as its files name them, and their variant. Raises UserError."""
    files, variant, listed = _look_for_weights(folder, stems)
    tensors: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    for file in files:
        read = read_bin if file.suffix == ".bin" else read_safetensors
        found = read(file, numbers)
        if twice := sorted(found.keys() & homes.keys()):
            raise UserError(
                f"{folder}: {twice[0]!a} lies in {homes[twice[0]]} and in {file.name}: they are "
                "not the parts of one network; fetch them again"
            )
        homes |= dict.fromkeys(found, file.name)
        tensors |= found
    for name, file_name in listed.items():
        if homes.get(name) != file_name:
            raise UserError(
                f"{folder}: the index says that {file_name} holds {name!a}, which lies in "
                f"{homes.get(name, 'none of its files')}: they are not the parts of one network; "
                "fetch them again"
            )
    return tensors, variant


def json_object(path: Path) -> dict[str, Any]:
    """A configuration. Raises UserError where it is none."""
    try:
        if path.stat().st_size > 16 * MIB:
            raise UserError(f"{path} is larger than any configuration")
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object")
    return values


# Against a network -------------------------------------------------------------------------------


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], label: str) -> None:
    """Raises UserError unless names and shapes are those of the network; says what differs."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    lacking = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    other = sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])
    said = []
    if lacking:
        name = lacking[0]
        said.append(f"it lacks {count(lacking)}, the first is {name!a} {list(expected[name])}")
    if unknown:
        name = unknown[0]
        said.append(f"it holds {count(unknown)} unknown, the first is {name!a} {list(found[name])}")
    if other:
        name = other[0]
        shapes = f"{list(found[name])}, expected {list(expected[name])}"
        said.append(f"it holds {count(other)} of another shape, the first is {name!a} {shapes}")
    if said:
        raise UserError(f"{label} does not fit the network: {'; '.join(said)}")


def count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
