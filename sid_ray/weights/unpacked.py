"""Checkpoints that hold a whole pipeline, or a VAE, in one file: opened as a folder of diffusers.

    opened_pipeline(path, label)   the folder of a pipeline's file, or the path of anything else
    vae_of_file(path, label)       the folder of a VAE's file; None where it is none
    with_tokenizers(...)           that folder with tokenizers, which no such file holds

Nothing in a file is executed, and nothing but a tokenizer is fetched.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_ray.denoisers.registry import from_single_file, single_file_names
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded
from sid_ray.weights.address import parse_source, source_label
from sid_ray.weights.derived import derived, linked, write_component

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".ckpt")
RECORD = "unpacked.json"  # in the folder: where it came from
LONGEST_HEADER = 64 << 20
EPSILON = "epsilon"


def opened_pipeline(path: Path, label: str, prediction_type: str = EPSILON) -> Path:
    """The folder of a pipeline that lies in one file; any other path as it is.

    ``prediction_type``: what its network predicts, where the file does not say it. Raises UserError
    in one line for a pipeline that cannot be used.
    """
    marks = single_file_names()
    if not any(name.startswith(marks) for name in names_in(path)):
        return path

    def make(folder: Path) -> None:
        write_unpacked(path, label, prediction_type, folder)

    return derived("unpacked", path, [prediction_type], make)


def write_unpacked(path: Path, label: str, prediction_type: str, folder: Path) -> None:
    """Writes the parts of a pipeline's file. Raises UserError, OSError."""
    try:
        found = from_single_file(tensors_in(path), prediction_type)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    if found is None:
        raise UserError(
            f"{label} is a pipeline in one file, of a kind that is not read: make a folder of it "
            "with diffusers' from_single_file(FILE).save_pretrained(FOLDER), and give that"
        )
    for name, part in found.parts.items():
        write_component(folder / name, part.config, part.tensors)
    if found.scheduler:
        (folder / "scheduler").mkdir()
        text = json.dumps(dict(found.scheduler), indent=2)
        (folder / "scheduler" / "scheduler_config.json").write_text(text)
    record = {"source": label, "standard": found.standard, "unsaid": found.unsaid}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    if found.unsaid:
        print(
            f"{label}: {found.unsaid} is assumed; --schedule.prediction-type says otherwise",
            file=sys.stderr,
        )


def vae_of_file(path: Path, label: str) -> Path | None:
    """The folder of a file that holds a VAE and nothing else; None for any other file.

    Raises UserError for a VAE that is not whole.
    """
    from sid_ray.denoisers.ldm_checkpoint import is_vae, lone_vae

    if not is_vae(names_in(path)):
        return None

    def make(folder: Path) -> None:
        try:
            part = lone_vae(tensors_in(path))
        except UserError as error:
            raise UserError(f"{label}: {error}") from None
        write_component(folder / "vae", part.config, part.tensors)

    return derived("unpacked", path, ["vae"], make)


# The file -----------------------------------------------------------------------------------------


def names_in(path: Path) -> Sequence[str]:
    """Names of the tensors in a file that may hold a pipeline; none where it is anything else.

    Files that are damaged or hostile hold none, either: whoever reads them says so.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        return []
    try:
        if path.suffix == ".safetensors":
            return list(safetensors_header(path))
        return list(stored_tensors(path)[0])
    except (UserError, OSError, ValueError, RecursionError):
        return []


def safetensors_header(path: Path) -> Mapping[str, Any]:
    """Raises ValueError, OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER
        if size >= LONGEST_HEADER:
            raise ValueError("no safetensors file")
        found = json.loads(file.read(size))
    if not isinstance(found, dict):
        raise ValueError("no safetensors file")
    return found


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of SUFFIXES. Raises UserError."""
    from sid_ray.tensor_files.tensors import read_safetensors, take_all

    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return take_all(*stored_tensors(path))


def stored_tensors(path: Path) -> tuple[Any, int]:
    """(tensors by name, bytes) of a pickled checkpoint: its state dict, or itself.

    Numbers of other things that lie between the tensors are left out. Raises UserError.
    """
    from sid_ray.tensor_files.archives import is_pickled, read_pickled
    from sid_ray.tensor_files.inert import StoredTensor, as_mapping
    from sid_ray.tensor_files.modules import NamedTensors
    from sid_ray.tensor_files.tensors import start_of

    found = NamedTensors()
    if not is_pickled(start_of(path)):
        return found, 0
    file = read_pickled(path)
    root = as_mapping(file.root) or {}
    state = as_mapping(root.get("state_dict")) or root
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, StoredTensor):
            found.put(name, value)
    return found, file.size


# Tokenizers ---------------------------------------------------------------------------------------


def with_tokenizers(folder: Path, parts: Sequence[str], sources: Sequence[str], flag: str) -> Path:
    """A pipeline's folder with the tokenizers that it lacks where it came out of one file.

    ``sources`` are where a person says that they lie; the standard pipeline's are taken after
    those. Raises UserError where there are none.
    """
    lacking = [p for p in parts if p.startswith("tokenizer") and not (folder / p).is_dir()]
    if not (folder / RECORD).is_file() or not lacking:
        return folder
    record = json.loads((folder / RECORD).read_text())
    standard, trouble = str(record["standard"]), ""
    for source in [*sources, standard]:
        try:
            return linked(folder, {part: tokenizer_at(source, part) for part in lacking})
        except UserError as error:
            trouble = str(error)
    raise UserError(
        f"{record['source']} holds text encoders, and no tokenizer, as no such file does: give "
        f"{flag} FOLDER with the {' and '.join(lacking)} of {standard} ({trouble})"
    )


def tokenizer_at(source: str, part: str = "tokenizer") -> Path:
    """The folder of a tokenizer: SOURCE/part, or SOURCE itself. Raises UserError."""
    parsed = parse_source(source)
    if parsed.kind == "path":
        folder = expanded(parsed.location).absolute()
    else:
        from sid_ray.weights.fetch import fetch

        folder = fetch(parsed, source_label(source), (part,))
    for place in (folder / part, folder):
        if any((place / name).is_file() for name in ("tokenizer_config.json", "vocab.json")):
            return place
    raise UserError(f"no {part} in {source_label(source)}")
