"""What a run may have: nodes, their GPUs and CPUs, and what its evaluator takes of them.

Nothing is looked up here: the driver describes a cluster that it has joined, or this machine
(actors/found_nodes.py); `sid-ray plan` one that a person names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sid_ray.planning.memory import GIB


@dataclass(frozen=True)
class Node:
    """One machine: ``gpu_bytes`` of each GPU, ``host_bytes`` of its own memory, 0 for not known.

    ``gpu``: the GPUs' name as CUDA says it. ``others``: resources of Ray's beside CPUs and GPUs.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    gpu_bytes: int = 0
    host_bytes: int = 0
    gpu: str = ""
    others: Mapping[str, float] = field(default_factory=dict)

    def workers(self, on_gpu: bool) -> int:
        """How many have room: each takes a CPU, and a GPU beside it where the run is on GPUs."""
        return int(min(self.cpus, self.gpus) if on_gpu else self.cpus)

    def without(self, taken: Mapping[str, float]) -> Node | None:
        """What is left when another has taken that; None where this node does not have it."""
        has = {"CPU": self.cpus, "GPU": self.gpus, **self.others}
        if any(has.get(name, 0) < amount for name, amount in taken.items()):
            return None
        cpus, gpus = (has[name] - math.ceil(taken.get(name, 0)) for name in ("CPU", "GPU"))
        return Node(
            max(0.0, cpus), max(0.0, gpus), self.gpu_bytes, self.host_bytes, self.gpu, self.others
        )


@dataclass(frozen=True)
class Machine:
    """All nodes there are.

    ``fixed``: nothing comes or goes, as on a Ray of the run's own. ``can_hold``: GPUs and CPUs that
    a cluster's autoscaler may bring it to, empty for not known. ``taken``: resources of Ray's that
    the evaluator takes. ``no_gpu``: why there is none, where somebody knows.
    """

    nodes: tuple[Node, ...]
    fixed: bool = True
    can_hold: Mapping[str, int] = field(default_factory=dict)
    taken: Mapping[str, float] = field(default_factory=dict)
    no_gpu: str = ""

    @classmethod
    def alike(
        cls, nodes: int, gpus: int, memory_gib: float, taken: Mapping[str, float] | None = None
    ) -> Machine:
        """Nodes of so many GPUs each, with CPUs enough; more than one are a cluster."""
        node = Node(max(gpus, 1) * 8.0, gpus, int(memory_gib * GIB))
        return cls((node,) * nodes, fixed=nodes == 1, taken=taken or {})

    @property
    def has_gpus(self) -> bool:
        """Whether there are GPUs, or may come."""
        return any(node.gpus for node in self.nodes) or self.can_hold.get("GPU", 0) > 0

    @property
    def gpu_bytes(self) -> int:
        """Of the smallest GPU that a worker may be on."""
        sizes = [node.gpu_bytes for node in self.nodes if node.workers(on_gpu=True)]
        return min(sizes, default=0)

    @property
    def gpu(self) -> str:
        """The GPUs' name, '' where there are several kinds or it is not known."""
        names = {node.gpu for node in self.nodes if node.workers(on_gpu=True)}
        return names.pop() if len(names) == 1 else ""

    def left(self, on_gpu: bool) -> list[Node]:
        """The nodes when the evaluator has taken its part: of the node with least for workers."""
        nodes = list(self.nodes)
        if not self.taken:
            return nodes
        for node in sorted(nodes, key=lambda node: node.workers(on_gpu)):
            rest = node.without(self.taken)
            if rest is not None:
                nodes[nodes.index(node)] = rest
                break
        return nodes

    def offers(self, on_gpu: bool) -> int:
        """Workers that have room now, beside the evaluator."""
        return sum(node.workers(on_gpu) for node in self.left(on_gpu))

    def smallest_host(self, workers: int) -> tuple[int, int]:
        """Bytes of the smallest node's own memory, 0 for not known, and how many of so many
        workers may have to share it.
        """
        known = [node for node in self.nodes if node.workers(on_gpu=True)]
        on_one = max((min(workers, node.workers(on_gpu=True)) for node in known), default=1)
        return min((node.host_bytes for node in known), default=0), on_one

    def threads(self, workers: int) -> int:
        """CPUs that each of so many workers on GPUs has to itself, on the node with the fewest."""
        known = [node for node in self.nodes if node.workers(on_gpu=True)]
        shares = (node.cpus // min(workers, node.workers(on_gpu=True)) for node in known)
        return max(1, int(min(shares, default=1)))
