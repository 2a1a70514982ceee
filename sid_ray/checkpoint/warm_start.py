"""A run that begins from another run's checkpoint: weights, average, images seen, Adam's moments.

That is how a population's trial takes over another one's state and goes on with settings of its
own. A learning rate is not in the state, so it is the new run's from its first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sid_ray.checkpoint.find import manifest_of, newest_listed
from sid_ray.checkpoint.manifest import (
    EMA_FOLDER,
    DamagedCheckpointError,
    Manifest,
    damage_of,
    load_files,
)
from sid_ray.checkpoint.snapshot import StatefulRole
from sid_ray.config.distill_config import DistillConfig
from sid_ray.distributed.fragments import gathered, world
from sid_ray.distributed.roles import Trainee
from sid_ray.errors import UserError
from sid_ray.storage.cache import DamagedFileError, fetch_checked, folder_of
from sid_ray.storage.store import Store
from sid_ray.weights.base import BASE
from sid_ray.weights.description import DESCRIPTION, ModelDescription
from sid_ray.weights.same import unlike


def donor_of(address: str) -> Manifest:
    """The manifest of a checkpoint by its address. Raises UserError where it cannot be begun from.

    StoreError where its storage fails.
    """
    run, _, name = address.rpartition("/")
    try:
        return manifest_of(Store.at(run), name)
    except DamagedCheckpointError as error:
        raise UserError(f"cannot begin from {address}: {error}") from None


def check_donor_network(run: Store, name: str, teacher: str, network: ModelDescription) -> None:
    """Raises UserError where a checkpoint is of another network than the run's teacher.

    ``teacher`` is its source, ``network`` what that holds now. StoreError where storage fails.
    """
    try:
        text = run.read_text(f"{name}/{EMA_FOLDER}/{DESCRIPTION}")
    except FileNotFoundError:
        return  # damaged: said where checkpoints are looked through
    stored = ModelDescription.from_json(text, f"{run}/{name}")
    check_base(f"{run}/{name}", stored, network, teacher)
    found = unlike(stored, network, as_trained=True)
    if found is not None:
        raise UserError(
            f"{run}/{name} is of {found[0]}, teacher {teacher} is {found[1]}: go on with the "
            "teacher that it began with, or choose another --run name"
        )


def check_base(
    label: str, stored: ModelDescription, network: ModelDescription, teacher: str
) -> None:
    """Raises UserError where a checkpoint's adapters lie over other numbers than the teacher's."""
    was, is_now = (str(described.notes.get(BASE, "")) for described in (stored, network))
    if was and is_now and was != is_now:
        raise UserError(
            f"{label} holds adapters of a base whose sha256 begins with {was[:16]}, teacher "
            f"{teacher}'s begins with {is_now[:16]}: its weights have changed; go on with those "
            "that the run began with, or choose another --run name"
        )


def check_donor_adapters(address: str, config: DistillConfig) -> None:
    """Raises UserError where a donor's adapters are others than a run's. StoreError where storage
    fails.
    """
    theirs = DistillConfig.from_json(donor_of(address).config, address)
    if not theirs.adapter.rank and not config.adapter.rank:
        return
    for name in ("rank", "alpha", "targets", "roles", "base"):
        there, here = (
            held_in(of) if name == "base" else getattr(of.adapter, name) for of in (theirs, config)
        )
        if there != here:
            raise UserError(
                f"cannot begin from {address}: its adapter.{name} is {there!r}, this run's is "
                f"{here!r}: a run takes up adapters of its own kind only"
            )


def held_in(config: DistillConfig) -> str:
    """The precision that the base's weights are rounded to before a network computes with them:
    float32 where that is the precision that it computes in.
    """
    held = config.adapter.base
    return "float32" if held in ("auto", config.training.precision) else held


def check_newest(run: Store, teacher: str, network: ModelDescription) -> None:
    """check_network for what a run would go on from, if there is anything. Raises the same."""
    newest = newest_listed(run)
    if newest is not None:
        check_donor_network(run, newest[0], teacher, network)


def began_at(address: str) -> int:
    """Images seen of a checkpoint by its address; 0 for no address."""
    return donor_of(address).images_seen if address else 0


def begin_from(
    address: str, trainee: Trainee, roles: Mapping[str, StatefulRole], group: Any = None
) -> None:
    """Sets roles, averaged generator and images_seen from another run's checkpoint. A collective.

    Every byte is checked first, each file by one rank. Raises UserError on all ranks alike.
    """
    manifest, store = donor_of(address), Store.at(address)

    def where(file: str) -> Path:
        if store.is_local:
            return store.folder / file
        target = folder_of(store, "donors") / file
        return fetch_checked(store, file, target, manifest.files[file], manifest.sizes.get(file))

    rank, ranks = world()
    damage = []
    for index, (file, digest) in enumerate(manifest.files.items()):
        if index % ranks == rank:
            try:
                wrong = damage_of(where(file), digest)
            except (DamagedFileError, FileNotFoundError) as error:
                wrong = str(error)
            damage += [f"{file} {wrong}"] if wrong else []
    found = [text for texts in gathered(damage, group) for text in texts]
    if found:
        raise UserError(f"cannot begin from {address}: {found[0]}")
    load_files(manifest, where, trainee, roles)
