"""What each node of a joined cluster is and can reach: for `sid-ray doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sid_ray.device.found import gpus_here, no_gpu_reason
from sid_ray.errors import UserError
from sid_ray.ray_setup.start import with_ray
from sid_ray.storage.shared import Token, host_name

LOOK_S = 60.0
Reach = Callable[[bool], Token | None]
SAME = ("sid_ray", "torch", "ray", "deepspeed")


@dataclass(frozen=True)
class NodeFacts:
    """One node. ``trouble`` says why it cannot work on the run, empty for nothing.

    ``token``: its own in the folder of runs, for this machine to find.
    """

    name: str
    versions: dict[str, str]
    cpus: float
    gpus: float
    gpu_memory_gib: float
    trouble: str
    token: Token | None = None


@ray.remote(num_cpus=0, max_retries=0)
def look_at_node(resources: dict[str, float], reach: Reach) -> NodeFacts:
    """Runs on the node that it describes. ``reach`` does what a worker will have to do there."""
    trouble, token = "", None
    try:
        token = reach(bool(resources.get("CPU") or resources.get("GPU")))
    except (UserError, OSError) as error:
        trouble = str(error)
    found = {name: version(name) for name in SAME} | {"Python": platform.python_version()}
    gpus = resources.get("GPU", 0)
    memory = 0.0
    if gpus:  # NVML's, as none may be free
        memory = min((gpu.memory for gpu in gpus_here()), default=0) / 2**30
        trouble = trouble or no_gpu_reason()
    name = host_name(ray.util.get_node_ip_address())
    return NodeFacts(name, found, resources.get("CPU", 0), gpus, memory, trouble, token)


def look_at_cluster(reach: Reach) -> list[NodeFacts]:
    """Every node of the cluster of RAY_ADDRESS. Raises UserError where it cannot be joined.

    ``reach`` is told whether workers may be on the node; returns its token, None for none.
    """
    # A GPU node's driver library is asked though no GPU is reserved: none may be free.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with_ray(start=lambda: None, join=lambda: ray.init(logging_level="error", log_to_driver=False))
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answers = [
            look_at_node.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(node["Resources"], reach)
            for node in nodes
        ]
        pairs = zip(nodes, answers, strict=True)
        return [found_of(node["NodeManagerHostname"], answer) for node, answer in pairs]
    finally:
        ray.shutdown()


def found_of(name: str, answer: ray.ObjectRef) -> NodeFacts:
    """A node's answer, or why there is none."""
    try:
        return ray.get(answer, timeout=LOOK_S)
    except ray.exceptions.GetTimeoutError:
        why = f"no answer within {LOOK_S:.0f} s: see its raylet's log"
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        why = f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"
    return NodeFacts(name, {}, 0, 0, 0.0, why)
