"""The nodes of a joined cluster, as ``planning`` wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from sid_ray.config.distill_config import DistillConfig, evaluator_resources
from sid_ray.device.found import gpus_here, no_gpu_reason
from sid_ray.errors import UserError
from sid_ray.planning.machine import Machine, Node
from sid_ray.ray_setup.ray_private import most_of_cluster

KIND = "accelerator_type:"  # a resource of Ray's that each node with GPUs of a known kind has
NO_PLACE = ("memory", "object_store_memory")
A_LITTLE = 0.001
SOON_S = 5.0  # in which a free GPU answers


def joined_cluster(config: DistillConfig, tell: Callable[[str], None]) -> Machine:
    """The nodes of the cluster that this process has joined.

    Waits, and says so by ``tell``, for a first node with a GPU where the run needs one.
    """
    most = most_of_cluster()
    wanted = config.resources.use_gpu
    on_gpu = wanted is True or (wanted is not False and gpus_may_be(most))
    sizes: dict[str, tuple[str, int]] = {}
    if on_gpu:
        if not ray.cluster_resources().get("GPU"):
            tell("no node with a GPU is there yet: waiting for one")
        sizes = gpus_of_cluster(tell)
    nodes = [node_of(node["Resources"], sizes) for node in ray.nodes() if node["Alive"]]
    return Machine(tuple(nodes), fixed=False, can_hold=most, taken=evaluator_resources(config))


def gpus_may_be(most: dict[str, int]) -> bool:
    return bool(ray.cluster_resources().get("GPU") or most.get("GPU"))


def gpus_of_cluster(tell: Callable[[str], None]) -> dict[str, tuple[str, int]]:
    """Kind of GPU, as Ray calls it, -> its name and bytes; '' for any.

    Waits for a free one of each, and says so by ``tell``.
    """
    kinds = [name for name in ray.cluster_resources() if name.startswith(KIND)]
    asked: list[dict[str, Any]] = [{"resources": {kind: A_LITTLE}} for kind in kinds]
    looks = [look_at_gpu.options(**options).remote() for options in asked or [{}]]
    late = ray.wait(looks, num_returns=len(looks), timeout=SOON_S)[1]
    if late:
        busy = [kind for kind, look in zip(kinds, looks, strict=False) if look in late]
        names = " and one of ".join(kind.removeprefix(KIND) for kind in busy)
        tell(f"waiting for a free GPU{f' of kind {names}' * bool(names)}, to see what it is")
    return dict(zip(kinds or [""], ray.get(looks), strict=True))


@ray.remote(num_cpus=1, num_gpus=1)
def look_at_gpu() -> tuple[str, int]:
    """Name and bytes of one of the workers' GPUs (as a worker's place: a CPU and a GPU).

    Raises UserError where torch can use none on that node.
    """
    gpus = gpus_here()
    if not gpus:
        raise UserError(f"a node with a GPU: {no_gpu_reason()}")
    return gpus[0].name, gpus[0].memory


def node_of(has: dict[str, float], sizes: dict[str, tuple[str, int]]) -> Node:
    """A node by its resources of Ray's, and what is known of each kind of GPU."""
    kind = next((name for name in has if name in sizes), "")
    name, memory = sizes.get(kind) or sizes.get("") or next(iter(sizes.values()), ("", 0))
    gpus = has.get("GPU", 0)
    others = {
        key: amount
        for key, amount in has.items()
        if key not in ("CPU", "GPU", *NO_PLACE) and not key.startswith(("node:", KIND))
    }
    return Node(
        cpus=has.get("CPU", 0),
        gpus=gpus,
        gpu_bytes=memory if gpus else 0,
        host_bytes=int(has.get("memory", 0)),
        gpu=name if gpus else "",
        others=others,
    )
