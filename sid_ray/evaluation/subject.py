"""What is evaluated: the network behind a run, a checkpoint, RUN/best or any source of weights.

subject = find_subject("runs/digits-sid")
subject.network      its file or folder on this machine's disk
subject.config       of the run that it is of; None for a network of no run
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sid_ray.checkpoint.best import PREFIX as BEST_PREFIX
from sid_ray.checkpoint.best import SCORE
from sid_ray.checkpoint.find import best_network_of, find_generator, manifest_of
from sid_ray.checkpoint.manifest import EMA_FOLDER, PREFIX, DamagedCheckpointError
from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.sections import ScheduleConfig
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.registry import family_of, network_folders
from sid_ray.denoisers.text_identity import weights_sha256
from sid_ray.errors import UserError
from sid_ray.run_folder import read_record
from sid_ray.storage.cache import file_sha256, files_sha256
from sid_ray.storage.errors import StoreError
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_elsewhere, is_path, scheme_of
from sid_ray.storage.store import Store
from sid_ray.training.assemble import generation_of, solver_of
from sid_ray.weights.address import FILE_SUFFIXES, parse_source, source_label
from sid_ray.weights.base import base_sha256
from sid_ray.weights.description import WEIGHTS, ModelDescription, holds_network
from sid_ray.weights.networks import describe
from sid_ray.weights.over_base import find_base, other_base, with_base
from sid_ray.weights.sources import resolve_source


@dataclass(frozen=True)
class Subject:
    """A network that makes images, and what is known of it.

    Attributes:
        source: as it may be shown.
        network: its file or folder on this machine's disk.
        description: the network's family and arguments.
        sha256: of its weights.
        home: source of the folder with its text encoder and VAE, where it has such.
        text_encoder: source of another text encoder that was named; empty for its own.
        config: of the run that it is of; None where it is of none.
        run: that run's address; empty where it is of none, and for an adapter over another base.
        images_seen: by the training of these weights; None where that is not known.
        base: what an adapter is laid over, a file or folder on this machine's disk; None for a
            whole network. ``base_sha256`` names it by its numbers; empty without one.
    """

    source: str
    network: Path
    description: ModelDescription
    sha256: str
    home: str = ""
    text_encoder: str = ""
    config: DistillConfig | None = None
    run: str = ""
    images_seen: int | None = None
    base: Path | None = None
    base_sha256: str = ""

    @property
    def is_generator(self) -> bool:
        """Whether it makes images in one evaluation or a few; else it is a teacher."""
        return self.description.one_step is not None

    @property
    def num_steps(self) -> int:
        """Evaluations of a generator an image; 1 for teachers, whose inputs are one noise too.

        Raises UserError.
        """
        return generation_of(self.description)[1] if self.is_generator else 1

    @property
    def family(self) -> Family:
        """What is known of networks of its kind."""
        return family_of(self.description.family)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it makes: pixels or latents."""
        return self.family.shape(self.description.network)

    @property
    def label_dim(self) -> int:
        return self.family.label_dim(self.description.network)

    @property
    def reads_text(self) -> bool:
        return self.family.reads_text


def find_subject(source: str, named_base: str = "") -> Subject:
    """The network behind a source, fetched where it is not here; ``named_base`` is the source of
    what an adapter is laid over, in place of its teacher. Raises UserError in one line.
    """
    network = find_network(source)
    description = describe(network)
    base = find_base(description, source_label(source), named_base)
    if base is not None and named_base:
        description = with_base(description, named_base, base)
    subject = Subject(
        source_label(source),
        network,
        description,
        network_sha256(network),
        home_of(source, network, description),
        base=base,
        base_sha256="" if base is None else base_sha256(base),
    )
    try:
        origin = origin_of(source, network)
        return subject if origin is None else of_run(subject, *origin)
    except StoreError as error:
        raise UserError(str(error)) from None


def find_network(source: str) -> Path:
    """The file or folder of a network, on this machine's disk. Raises UserError."""
    if address := best_network_of(source):
        return resolve_source(address)
    parsed = parse_source(source)
    if is_elsewhere(source) and not parsed.location.endswith(FILE_SUFFIXES):
        return find_generator(source)
    path = expanded(parsed.location).absolute()
    is_network = path.is_file() or holds_network(path)
    if parsed.kind == "path" and not is_network and parsed.sha256 is None:
        return find_generator(path)
    return resolve_source(source)


def origin_of(source: str, network: Path) -> tuple[Store, str] | None:
    """The folder of the run that a network is of, and in it the name of the checkpoint or of the
    best weights; None for networks that lie in neither. Raises UserError, StoreError.
    """
    address = best_network_of(source) or source
    if not scheme_of(address).is_store:
        return None
    name = network.parent.name
    if network.name == EMA_FOLDER and name.startswith(PREFIX):
        if is_path(address):
            return Store.at(network.parent.parent), name
        store = Store.at(address)
        return (store_above(store) if store.name == name else store), name
    store = Store.at(address)
    return (store_above(store), store.name) if store.name.startswith(BEST_PREFIX) else None


def store_above(store: Store) -> Store:
    return Store(store.url.rpartition("/")[0])


def of_run(subject: Subject, run: Store, name: str) -> Subject:
    """The subject with what its run's folder says of it. Raises UserError, StoreError."""
    seen, sha256, config = 0, "", ""
    if name.startswith(BEST_PREFIX):
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            result = json.loads(run.read_text(f"{name}/{SCORE}"))
            seen, sha256 = int(result["images_seen"]), str(result["weights_sha256"])
    else:
        with contextlib.suppress(DamagedCheckpointError):
            manifest = manifest_of(run, name)
            seen, config = manifest.images_seen, manifest.config
            sha256 = manifest.files.get(f"{EMA_FOLDER}/{WEIGHTS}", "")
    if sha256 and sha256 != subject.sha256:
        raise UserError(
            f"{run}/{name}: the weights do not match their checksum: they are damaged; name "
            "another checkpoint"
        )
    record = read_record(run)
    if record is not None:
        config = record.config
    if not config:
        return replace(subject, images_seen=seen or None)
    found = DistillConfig.from_json(config, f"{run}/{name}")
    home = subject.home or found.teacher.source
    is_the_runs = not (subject.base and other_base(subject.description, subject.base))
    address = run.url if record is not None and is_the_runs else ""
    return replace(subject, config=found, run=address, images_seen=seen or None, home=home)


def home_of(source: str, network: Path, description: ModelDescription) -> str:
    """Where text encoder and VAE lie: in the network's folder, or with the teacher it names."""
    if any((network / part).is_dir() for part in ("text_encoder", "vae")):
        return str(network) if is_path(source) else source
    return str(description.notes.get("teacher", ""))


def network_sha256(network: Path) -> str:
    """Of the file with the weights; of all files of a diffusers network that has several.

    Raises UserError.
    """
    for file in (network, network / WEIGHTS):
        if file.is_file():
            return file_sha256(file)
    inside = (network / name for name in network_folders())
    folder = next((part for part in inside if part.is_dir()), network)
    try:
        return weights_sha256(folder)
    except UserError:  # names that preparation does not know, like those of a variant
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        if not files:
            raise
        return files_sha256(files)


def schedule_config(subject: Subject) -> ScheduleConfig:
    """The noise levels of a teacher's own sampler. Raises UserError."""
    network = subject.description.network
    return subject.family.noise.of_network(subject.network, network, subject.shape[-1])


def sampler_settings(subject: Subject, config: DistillConfig) -> dict[str, Any]:
    """What decides the images of a network beside its weights, as a result records it."""
    one_step = subject.description.one_step
    if one_step is not None:
        return {"sampler": "generator", "evaluations": subject.num_steps, **one_step}
    return solver_of(config).settings
