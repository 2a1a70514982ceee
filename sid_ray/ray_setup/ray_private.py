"""Private parts of Ray itself that sid_ray uses: all of them, and no other file names one.

Checked with Ray 2.60. Each function imports its own part, so that a part that is gone on another
version takes only its own use along. tests/ray_setup/test_ray_private.py fails where one changes;
those of Ray Train, which takes seconds to import, are in actors/ray_train_private.py.
"""

from __future__ import annotations

import functools
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERSION = "2.60."


def is_known() -> bool:
    """Whether this Ray is the version whose private parts are known here."""
    import ray

    return ray.__version__.startswith(VERSION)


# A cluster, before it is joined -------------------------------------------------------------------
# ray.init alone would say the same, after minutes of silence, in a traceback.


def cluster_here() -> str:
    """The address of the cluster on this machine; empty for none. Raises ConnectionError.

    Only ``ray.init("auto")`` says it otherwise, by joining.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address("auto") or ""


def nodes_of_this_machine() -> set[str]:
    """Hexadecimal ids of the nodes whose processes run here. Ray has no public word for them."""
    from ray._private.services import find_node_ids

    return set(find_node_ids())


class Head:
    """The head of a cluster at HOST:PORT, asked without joining it. Calls raise grpc.RpcError.

    Ray's state API asks the dashboard, which has another port and need not be there. The channel is
    Ray's for its TLS and its token.
    """

    def __init__(self, address: str, timeout_s: float):
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

        self._messages, self._stubs = gcs_service_pb2, gcs_service_pb2_grpc
        self._timeout_s = timeout_s
        self._channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])

    def close(self) -> None:
        self._channel.close()

    def ray_version(self) -> str:
        stub = self._stubs.NodeInfoGcsServiceStub(self._channel)
        asked = self._messages.CheckAliveRequest()
        return str(stub.CheckAlive(asked, timeout=self._timeout_s).ray_version)

    def python_version(self) -> str:
        """Empty where the head does not say."""
        stub = self._stubs.InternalKVGcsServiceStub(self._channel)
        asked = self._messages.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
        told = stub.InternalKVGet(asked, timeout=self._timeout_s).value
        found = re.search(rb'"python_version": *"([^"]+)"', told)
        return found[1].decode() if found else ""

    def nodes(self) -> set[str]:
        """Hexadecimal ids of the nodes that are alive."""
        stub = self._stubs.NodeInfoGcsServiceStub(self._channel)
        asked = self._messages.GetAllNodeInfoRequest()
        listed = stub.GetAllNodeInfo(asked, timeout=self._timeout_s).node_info_list
        return {info.node_id.hex() for info in listed if not info.state}


# A cluster that was joined ------------------------------------------------------------------------


def draining_nodes() -> set[str]:
    """Nodes that are about to go. Their table is internal to Ray (ray-project/ray#42982).

    ``ray.nodes()`` does not tell; ``ray.train.get_preemption_info`` does, to workers alone.
    """
    import ray

    return set(ray._private.state.state.get_draining_nodes())


def jobs() -> dict[str, bool]:
    """Drivers that a cluster knows: job -> whether it is dead. Empty where its table is another.

    ``ray.util.state.list_jobs`` needs the dashboard, which a cluster may be without.
    """
    import ray

    try:
        return {job["JobID"]: bool(job["IsDead"]) for job in ray._private.state.jobs()}
    except (AttributeError, KeyError, TypeError):
        return {}


def most_of_cluster() -> dict[str, int]:
    """Resource -> how much of it a cluster's autoscaler may bring; empty where none scales, or its
    table is another. ``ray status`` shows it, and no public function tells.
    """
    import ray

    try:
        return dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})
    except (AttributeError, KeyError, TypeError):
        return {}


# A Ray of one run alone ---------------------------------------------------------------------------


@contextmanager
def without_needless_services() -> Iterator[None]:
    """A Ray that is started meanwhile has no server for usage statistics and no autoscaler.

    ``ray.init`` starts the first without a dashboard too (ray-project/ray#26042) and waits for it,
    the second also where nothing scales: 2 CPU seconds of every start. There is no option for
    either. On another version of Ray they are left alone.
    """
    if not is_known():
        yield
        return
    from ray._private.node import Node

    services = ("start_api_server", "start_monitor")
    found = {name: getattr(Node, name) for name in services if hasattr(Node, name)}
    for name in found:
        setattr(Node, name, lambda self, **asked: None)
    try:
        yield
    finally:
        for name, method in found.items():
            setattr(Node, name, method)


# Jobs ---------------------------------------------------------------------------------------------


def travel(
    root: Path, excludes: Sequence[str], with_gitignore: bool, take: Callable[[Path], None]
) -> None:
    """Calls ``take`` for all that Ray would upload of a folder, so that its ignore files, its own
    list and its patterns hold as they do there. Ray tells only by uploading.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    excluded = [*get_runtime_env_default_excludes(), *excludes]
    packaging._dir_travel(
        root,
        [packaging._get_excludes(root, excluded)],
        take,
        include_gitignore=with_gitignore,
        logger=logging.getLogger("sid_ray.upload"),  # Ray's own would tell of each ignore file
    )


@functools.cache
def local_nodes() -> type:
    """The provider of clusters/local-elastic.yaml: Ray's fake nodes, each with a folder of its own.

    Ray gives all nodes the head's folder. There each node that joins a job deletes the job's
    working directory, in which the others' workers are, and unpacks it again; a worker that then
    asks where it is gets FileNotFoundError.
    """
    from ray._private import parameter
    from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

    one_at_a_time = threading.Lock()

    class LocalNodes(FakeMultiNodeProvider):
        def _create_node_with_resources_and_labels(self, *args: Any, **kwargs: Any) -> Any:
            # Short: sockets lie below it, whose paths may have 107 characters.
            folder = tempfile.mkdtemp(prefix="ray_node_")
            with one_at_a_time:
                params = parameter.RayParams
                parameter.RayParams = functools.partial(params, temp_dir=folder)
                try:
                    return super()._create_node_with_resources_and_labels(*args, **kwargs)
                finally:
                    parameter.RayParams = params

    return LocalNodes
