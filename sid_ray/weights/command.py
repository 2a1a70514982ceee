"""``sid-ray weights inspect`` and ``sid-ray weights convert``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.places import check_folder, in_words
from sid_ray.tensor_files.archives import PickledFile, is_pickled, read_pickled
from sid_ray.tensor_files.inert import MIB, Uses, printable
from sid_ray.weights.address import source_label
from sid_ray.weights.base import BASE
from sid_ray.weights.derived import unshared
from sid_ray.weights.description import (
    DESCRIPTION,
    ModelDescription,
    save_model,
    save_weights,
)
from sid_ray.weights.formats import LoadedWeights, read_weights
from sid_ray.weights.networks import fitted, read
from sid_ray.weights.options import ConvertOptions, InspectOptions
from sid_ray.weights.sources import resolve_file, resolve_source
from sid_ray.weights.unpacked import opened_pipeline

MAX_LISTED = 60


def show_network(options: InspectOptions) -> int:
    """``sid-ray weights inspect``. Raises UserError."""
    for line in inspect(options.source, options.part):
        print(line)
    return 0


def write(options: ConvertOptions) -> int:
    """``sid-ray weights convert``. Raises UserError."""
    asked = options
    done = convert(asked.source, asked.destination, asked.part, asked.like, asked.force)
    print(f"{options.destination}: {done}")
    return 0


def inspect(source: str, part: str | None = None) -> Iterator[str]:
    """The lines of ``sid-ray weights inspect``, fit for a terminal whatever the file says."""
    return (printable(line) for line in inspected(source, part))


def inspected(source: str, part: str | None = None) -> Iterator[str]:
    """Lines that tell what a source holds, and what unpickling it naively would have done.

    Raises UserError at the end where it cannot be loaded: what it would have done comes first.
    """
    path, label = resolve_file(source), source_label(source)
    yield f"source      {label}"
    if path.is_file():
        yield f"file        {path.stat().st_size:,} B, sha256 {file_sha256(path)}"
        with path.open("rb") as file:
            start = file.read(16)
        if is_pickled(start) and path.suffix != ".safetensors":
            yield from naive_report(read_pickled(path, tolerant=True))
    network = opened_pipeline(path, label)
    if network != path:
        yield f"unpacked    {network}"
    yield from weights_report(read_weights(network, part, label, numbers=False))


def weights_report(weights: LoadedWeights) -> Iterator[str]:
    """Layout, class, family, sizes and arguments of loaded weights."""
    chosen = f", part {weights.notes['part']}" if "part" in weights.notes else ""
    yield f"layout      {weights.layout}{chosen}"
    try:
        described = weights.described()
        family, arguments = described.family, described.network
    except UserError as error:
        described, family, arguments = None, f"unknown: {error}", weights.arguments
    yield f"class       {weights.class_name or 'not recorded'}"
    yield f"family      {family}"
    if described is not None and described.adapter is not None:
        own = described.adapter
        base = described.notes.get("teacher", "an unknown network")
        yield (
            f"adapter     rank {own.get('rank')}, alpha {own.get('alpha')}, over {base}; sha256 of "
            f"its numbers {described.notes.get(BASE, 'not recorded')}"
        )
        yield f"targets     {', '.join(map(str, own.get('targets', ())))}"[:400]
    numbers = {name: tensor.numel() for name, tensor in weights.tensors.items()}
    buffers = sum(count for name, count in numbers.items() if name in weights.buffers)
    yield (
        f"parameters  {sum(numbers.values()) - buffers:,} in "
        f"{len(numbers) - len(weights.buffers)} tensors, and {buffers:,} numbers in "
        f"{len(weights.buffers)} buffers"
    )
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.tensors.values())
    size = sum(tensor.numel() * tensor.dtype.itemsize for tensor in weights.tensors.values())
    listed = ", ".join(f"{kind} ({count} tensors)" for kind, count in kinds.most_common())
    yield f"dtype       {listed or 'none'}, {size / MIB:.1f} MiB"
    for heading, values in (
        ("arguments", weights.arguments or arguments),
        ("notes", weights.notes),
    ):
        for index, (name, value) in enumerate(values.items()):
            yield f"{heading if index == 0 else '':11} {name} = {str(value)[:200]!s}"


def naive_report(file: PickledFile) -> Iterator[str]:
    """What pickle.load would have imported, called and executed. Nothing of it was done."""
    uses: Uses = file.uses
    yield f"container   {file.container}"
    yield "unpickled naively it would have (nothing of this was done):"
    for source, classes in list(uses.sources.items())[:MAX_LISTED]:
        named = ", ".join(name[:60] for name in classes[:8]) + (", ..." if len(classes) > 8 else "")
        digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        yield f"  executed  {len(source):,} characters of source, sha256 {digest[:16]}: {named!a}"
    refused = sorted(uses.refused)
    for name in [*refused, *sorted(set(uses.imports) - uses.refused)][:MAX_LISTED]:
        verdict = "REFUSED" if name in uses.refused else "known, rebuilt as data or kept inert"
        calls = uses.calls.get(name, 0)
        yield f"  imported  {name[:120]!a}, called {calls} times: {verdict}"
    if len(uses.imports) > MAX_LISTED:
        yield f"  and {len(uses.imports) - MAX_LISTED} names more"
    if file.trouble:
        yield f"  and then: {file.trouble}"


def convert(
    source: str,
    destination: Path,
    part: str | None = None,
    like: str | None = None,
    force: bool = False,
) -> str:
    """Writes a source's weights as safetensors with a description, or as a network folder where
    the destination has no suffix. Returns one line that says what was written.

    Tensors keep their names and dtype. Raises UserError where the network is not known, the weights
    do not fit it, or something is in the way and ``force`` is not given.
    """
    check_destination(destination, force)
    path, label = resolve_source(source), source_label(source)
    weights = read_weights(path, part, label)
    lender = read(like, numbers=False).described() if like else None
    _, description, tensors = fitted(weights, lender)
    notes = {**description.notes, "source": weights.label}
    description = ModelDescription(
        description.family, description.network, description.one_step, notes, description.adapter
    )
    put_network(destination, unshared(tensors), description, force)
    return f"{len(tensors)} tensors of a network of family {description.family}"


# Files --------------------------------------------------------------------------------------------


def check_destination(path: Path, force: bool) -> None:
    """Raises UserError where DST is none, or holds what will not be replaced: before gigabytes are
    read.
    """
    if path.suffix not in ("", ".safetensors"):
        raise UserError(f"{path}: a name ending in .safetensors, or a folder, is expected")
    check_folder(path.parent, "DST")
    check_replaceable(path, force)


def check_replaceable(path: Path, force: bool) -> None:
    """Raises UserError where something is in the way that ``force`` does not replace, too."""
    if not path.exists():
        return
    if not force:
        raise _in_the_way(path)
    is_network = path.is_dir() and ((path / DESCRIPTION).is_file() or not any(path.iterdir()))
    if not is_network and not (path.suffix and path.is_file()):
        raise UserError(f"{path} holds something other than a network; it is not replaced")


def put_network(
    path: Path, tensors: Mapping[str, Tensor], description: ModelDescription, force: bool
) -> None:
    """Writes PATH.safetensors, or a network folder where there is no suffix. Raises UserError."""
    if path.suffix:
        with told(path):
            _write_file(path, tensors, description, force)
    else:
        put_folder(path, force, lambda new: save_model(new, tensors, description))


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """What a disk says as one line of UserError."""
    try:
        yield
    except OSError as error:
        why = in_words(OSError(error.errno, error.strerror)) if error.errno else str(error)
        raise UserError(f"{path} cannot be written: {why}") from None


def _in_the_way(path: Path) -> UserError:
    return UserError(f"{path} exists; choose another name, or give --force to replace it")


def _write_file(
    path: Path, tensors: Mapping[str, Tensor], description: ModelDescription, force: bool
) -> None:
    """PATH.safetensors, which describes itself, and model.json beside it."""
    beside = path.parent / DESCRIPTION
    text = description.to_json()
    if not force and path.exists():
        raise _in_the_way(path)
    if not force and beside.exists() and beside.read_text(errors="replace") != text:
        raise _in_the_way(beside)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".sid_ray-") as folder:
        save_weights(Path(folder) / "weights", tensors, description)
        (Path(folder) / "description").write_text(text)
        _sync(Path(folder) / "weights")
        (Path(folder) / "weights").replace(path)
        (Path(folder) / "description").replace(beside)


def put_folder(path: Path, force: bool, write: Callable[[Path], None]) -> None:
    """A network's folder, which ``write`` fills, moved to its place when it is whole.

    Raises UserError where something is in the way, or the disk fails.
    """
    check_replaceable(path, force)  # again: others may have been here meanwhile
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".sid_ray-") as folder:
            new = Path(folder) / "new"
            write(new)
            for file in new.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                path.rename(Path(folder) / "old")
            try:
                new.rename(path)
            except OSError:
                with contextlib.suppress(OSError):
                    (Path(folder) / "old").rename(path)
                raise


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
