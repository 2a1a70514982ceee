"""Before the first step: every rank's host sees what the others and the driver have written.

Without that every rank's part of a checkpoint would lie on its own host, and none would be whole.
Of what is only read, data and networks, the contents are compared with the driver's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ray

from sid_ray.actors.build import WorkerSettings, on_this_node
from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.manifest import read_manifest
from sid_ray.data.source import data_fingerprint, is_prepared
from sid_ray.distributed.fragments import gathered, world
from sid_ray.errors import UserError
from sid_ray.storage.schemes import is_path
from sid_ray.storage.shared import (
    UNKNOWN,
    Token,
    content_digest,
    host_name,
    not_same,
    not_shared,
    remove_tokens,
)
from sid_ray.storage.store import Store
from sid_ray.weights.address import FILE_SUFFIXES, parse_source
from sid_ray.weights.description import DESCRIPTION

OF_A_NETWORK = (*FILE_SUFFIXES, ".json", ".txt", ".model")


class Content(NamedTuple):
    """What one host finds of something that is only read: a digest, or why there is none."""

    digest: str
    trouble: str = ""


@dataclass(frozen=True)
class Seat:
    """One rank, as the others must know it. ``refused``: why its host did not write its token."""

    node: str
    host: str
    token: Token
    refused: str = ""


@dataclass(frozen=True)
class Sight:
    """What one rank's host sees. ``unseen``: hosts whose files it does not see."""

    host: str
    unseen: Sequence[str] = ()
    contents: Mapping[str, Content] = field(default_factory=dict)


def this_host() -> tuple[str, str]:
    """(Ray's id of this node, what its host is called)."""
    return ray.get_runtime_context().get_node_id(), host_name(ray.util.get_node_ip_address())


def contents(config: DistillConfig, teacher: str, generator: str = "") -> dict[str, Content]:
    """What this host finds of the run's data and networks on disks; S3 is one place for all.

    ``teacher`` and ``generator`` are the paths that the driver found.
    """
    found, data, given = {}, config.data, config.teacher
    if data.source and is_path(data.source):
        found[f"data.source {data.source}"] = network_looked_at(lambda: data_digest(config))
    if given.lora:  # of what is merged, not of the sum: its last bit is each machine's own
        own, merged = Path(parse_source(given.source).location), Path(teacher) / DESCRIPTION
        teacher = str(own if own.exists() else merged)
    networks = {"teacher.source": (given.source, teacher), "teacher.lora": (given.lora, given.lora)}
    networks["teacher.initial_generator"] = given.initial_generator, generator
    for name, (source, path) in networks.items():
        if path and is_path(source):
            digest = network_looked_at(lambda path=path: network_digest(Path(path)))
            found[f"{name} {source}"] = digest
    return found


def network_looked_at(look: Any) -> Content:
    try:
        return Content(look())
    except (UserError, OSError) as error:
        return Content("", str(error))


def data_digest(config: DistillConfig) -> str:
    """Of a data set on a disk. Raises UserError, OSError."""
    data = config.data
    if is_prepared(data):
        store = Store.at(data.source)
        files = store.files()
        cut = [s.name for s in read_manifest(store).shards if files.get(s.name) != s.size]
        if cut:
            raise UserError(f"{cut[0]} is missing or cut")
    return data_fingerprint(data)


def network_digest(path: Path) -> str:
    """Raises UserError, OSError."""
    if not path.exists():
        raise UserError("it is missing")
    return content_digest(path, OF_A_NETWORK)


def prove(config: DistillConfig, settings: WorkerSettings, group: Any = None) -> WorkerSettings:
    """The settings on this node. A collective; raises NotSharedError on all ranks alike.

    A node proves it once in a driver's life: later its storage may be away, which stops nothing.
    """
    if settings.seat is not None:
        prove_new(config, settings, group)
    return on_this_node(config, settings)


def prove_new(config: DistillConfig, settings: WorkerSettings, group: Any) -> None:
    """``prove`` on a joined cluster. Nothing is asked where no node is new."""
    node, host = this_host()
    driver: Seat = settings.seat
    rank, ranks = world()
    proven = ray.get(settings.tracker.proven.remote()) if rank == 0 else set()
    told = gathered((node, proven), group)
    nodes = [of_rank for of_rank, _ in told]
    if set(nodes) <= told[0][1] | {driver.node}:
        return
    first = nodes.index(node) == rank
    token = Token.new(Store.at(settings.run_folder), f"rank{rank}")
    seats = gathered(Seat(node, host, token, token.write()), group)
    unseen = [
        seat.host
        for seat in (driver, seats[(rank + 1) % ranks])
        if seat.node != node and not seat.refused and not seat.token.seen()
    ]
    found = {}
    if first and node != driver.node:
        found = contents(config, settings.teacher_folder, settings.initial_generator)
    sights = gathered(Sight(host, unseen, found), group)
    token.remove()
    check(settings.run_folder, seats, sights, settings.contents)
    if rank == 0:
        settings.tracker.prove.remote(nodes)


def check(
    run: str, seats: Sequence[Seat], sights: Sequence[Sight], expected: Mapping[str, Content]
) -> None:
    """Raises NotSharedError for what the ranks have found. ``expected``: the driver's contents."""
    trouble = [
        f"{s.host} cannot write there ({s.refused})"
        for s in seats
        if s.refused not in ("", UNKNOWN)
    ]
    trouble += [f"{s.host} sees nothing of {' and '.join(s.unseen)}" for s in sights if s.unseen]
    if trouble:
        raise not_shared(run, trouble, "--output.folder")
    for what, driver in expected.items():
        trouble = differing(what, driver, sights)
        if trouble:
            raise not_same(what, trouble)


def differing(what: str, driver: Content, sights: Sequence[Sight]) -> list[str]:
    """Of which hosts, and how, something differs from the driver's."""
    pairs = [(s.host, s.contents[what]) for s in sights if what in s.contents]
    return [
        f"{host} has {'other contents' if found.digest else f'none ({found.trouble})'}"
        for host, found in pairs
        if found.digest != driver.digest
    ]


def driver_seat(run: Store) -> Seat:
    """The driver's, with its token in the run's folder."""
    node, host = this_host()
    remove_tokens(run)
    token = Token.new(run)
    return Seat(node, host, token, token.write())
