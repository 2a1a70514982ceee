"""What Ray knows of a driver: which job it was on which node, and whether that is gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster, set_ray_environment, stop_like_ctrl_c
from sid_ray.ray_setup.ray_private import jobs
from sid_ray.ray_setup.start import with_ray
from sid_ray.run_folder import RunFolder


def note_ray(run: RunFolder) -> None:
    """Notes in the run's lease what this driver is to the cluster that it has joined."""
    if run.lease and joins_cluster():
        context = ray.get_runtime_context()
        run.lease.note(node=context.get_node_id(), job=context.get_job_id())


def driver_is_gone(lease: Mapping[str, Any]) -> bool:
    """Whether the cluster of RAY_ADDRESS says that a lease's driver, or its node, is dead.

    False where it does not know the driver, or cannot be asked.
    """
    if "job" not in lease or not joins_cluster():
        return False
    set_ray_environment()
    try:
        with_ray(lambda: None, lambda: ray.init(logging_level="error", log_to_driver=False))
    except UserError:  # what is wrong with the cluster is said by the run's own start
        return False
    try:
        nodes = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
        if lease["node"] not in nodes:  # another cluster, whose jobs have the same numbers
            return False
        return not nodes[lease["node"]] or jobs().get(lease["job"], False)
    finally:
        ray.shutdown()
        stop_like_ctrl_c()
