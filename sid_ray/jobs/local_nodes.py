"""Nodes of clusters/local-elastic.yaml: Ray's fake ones, each with a folder of its own."""

from __future__ import annotations

import functools
import tempfile
import threading
from typing import Any

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

_one_at_a_time = threading.Lock()


class LocalNodes(FakeMultiNodeProvider):
    """The provider that the file names.

    Ray's own (2.60) gives all nodes the head's folder. There each node that joins a job deletes the
    job's working directory, in which the others' workers are, and unpacks it again; a worker that
    then asks where it is gets FileNotFoundError.
    """

    def _create_node_with_resources_and_labels(self, *args: Any, **kwargs: Any) -> Any:
        # Short: sockets lie below it, whose paths may have 107 characters.
        folder = tempfile.mkdtemp(prefix="ray_node_")
        with _one_at_a_time:
            params = parameter.RayParams
            parameter.RayParams = functools.partial(params, temp_dir=folder)
            try:
                return super()._create_node_with_resources_and_labels(*args, **kwargs)
            finally:
                parameter.RayParams = params
