"""Three ranks, each on a node with a disk of its own: what is left when nodes and storage go.

Run in a process a rank; every rank writes down what it saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sid_ray.checkpoint.manifest import checkpoint_name, load_files
from sid_ray.checkpoint.restore import Search
from sid_ray.checkpoint.snapshot import StatefulRole, take_snapshot
from sid_ray.checkpoint.writer import RunStorage, Spool
from sid_ray.distributed.roles import Trainee
from sid_ray.storage import errors
from sid_ray.weights.folder import ModelDescription


class Node:
    """One rank with its spool; ``down`` cuts the storage."""

    def __init__(
        self, rank: int, folder: Path, trainee: Trainee, roles: Mapping[str, StatefulRole]
    ):
        self.rank, self.folder, self.trainee, self.roles = rank, folder, trainee, roles
        self.down, self.told = False, list[str]()
        (folder / "run").mkdir(parents=True, exist_ok=True)
        real, node = RunStorage.put, self

        def put(storage: RunStorage, source: Path, name: str, file: str) -> None:
            if node.down:
                raise OSError("Input/output error")
            real(storage, source, name, file)

        RunStorage.put = put  # type: ignore[method-assign]
        errors.RETRY_S = (0.01,)

    def start(self, disk: str) -> None:
        """As a new process on the node with this disk."""
        torch.distributed.barrier()
        self.spool = Spool(self.folder / disk, self.folder / "run", 9, self.told.append)
        torch.distributed.barrier()

    def save(self, images_seen: int, description: ModelDescription) -> None:
        self.trainee.images_seen = images_seen
        for role in self.roles.values():
            for held in role.owned():
                held.values["master"].fill_(images_seen)
        snapshot = take_snapshot(self.trainee, self.roles, description, "{}")
        self.spool.save(snapshot, checkpoint_name(images_seen, "a"))

    def settle(self, done: Callable[[Spool], bool]) -> None:
        """Polls as often as every other rank; ``done`` is the same on all of them."""
        while not done(self.spool):
            self.spool.poll()

    def newest(self) -> tuple[int, float, list[str]]:
        """(images seen, what its weights are filled with, files read from this node's disk)."""
        found = Search(self.spool).newest()
        assert found is not None
        load_files(found.manifest, found.where, self.trainee, self.roles)
        values = {float(held.values["master"][0]) for held in self.roles["generator"].owned()}
        (value,) = values or {float(self.trainee.images_seen)}  # a rank may own nothing
        local = [f for f, path in found.paths.items() if path.is_relative_to(self.spool.local)]
        return self.trainee.images_seen, value, sorted(local)


def three_nodes(
    rank: int,
    folder: Path,
    trainee: Trainee,
    roles: Mapping[str, StatefulRole],
    description: ModelDescription,
) -> None:
    node, seen = Node(rank, folder, trainee, roles), {}
    node.start(f"disk{rank}")
    node.save(24, description)
    seen["wish"] = node.spool.poll(wish=2 * (rank == 1))
    node.spool.flush()
    seen["stored"] = node.spool.stored

    node.down = True
    node.save(48, description)
    node.settle(lambda spool: spool._writing is None)
    node.spool.close()
    node.down = False
    node.start(f"disk{(rank + 1) % 3}")  # the ranks come back on one another's nodes
    seen["after a crash"] = node.newest()

    node.down = True
    node.save(72, description)
    node.settle(lambda spool: spool._writing is None)
    node.spool.close()
    node.down = False
    node.start("new disk" if rank == 0 else f"disk{(rank + 1) % 3}")
    seen["after a lost node"] = node.newest()
    node.spool.close()
    seen["told"] = node.told
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
