"""The private parts of Ray itself are what ray_private.py takes them for.

That of a head, asked before it is joined, is in test_start.py; that of uploads in test_submit.py.
"""

import inspect
import json
import os
import platform
import subprocess
import sys

import pytest
import ray
from ray._private import parameter, ray_constants
from ray._private.node import Node

from sid_ray.jobs import upload
from sid_ray.jobs.local_nodes import LocalNodes
from sid_ray.ray_setup import ray_private

ASKED = """
import json, sys, ray
from sid_ray.actors.own_ray import start_own_ray
from sid_ray.ray_setup import ray_private

start_own_ray(1)
context = ray.get_runtime_context()
head = ray_private.Head(context.gcs_address, timeout_s=10)
found = {
    "node": context.get_node_id(),
    "job": context.get_job_id(),
    "nodes of this machine": list(ray_private.nodes_of_this_machine()),
    "jobs": ray_private.jobs(),
    "draining": list(ray_private.draining_nodes()),
    "versions": [head.ray_version(), head.python_version()],
    "nodes of the head": list(head.nodes()),
}
head.close()
ray.shutdown()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    """What a driver with a Ray of its own is told. In a process of its own: Ray looks once a
    process whether tokens are asked for."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", ASKED], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_version_is_the_one_that_is_pinned():
    assert ray_private.is_known()


def test_a_cluster_tells_of_its_nodes_and_jobs(found):
    assert found["node"] in found["nodes of this machine"]
    assert found["jobs"] == {found["job"]: False}
    assert found["draining"] == []


def test_a_head_is_asked_without_joining_it(found):
    assert found["versions"] == [ray.__version__, platform.python_version()]
    assert found["nodes of the head"] == [found["node"]]


def test_a_table_of_jobs_that_is_another_says_nothing(monkeypatch):
    monkeypatch.setattr(ray._private.state, "jobs", lambda: [{"job_id": "01"}])
    assert ray_private.jobs() == {}


def test_a_start_calls_the_services_that_a_ray_of_ones_own_leaves_out():
    start = inspect.getsource(Node.start_head_processes)
    assert "self.start_monitor()" in start and "self.start_api_server(" in start


def test_fake_nodes_get_folders_of_their_own(monkeypatch):
    base = LocalNodes.__mro__[1]
    seen = []
    monkeypatch.setattr(
        base,
        "_create_node_with_resources_and_labels",
        lambda self, *args: seen.append(parameter.RayParams().temp_dir),
    )
    before = parameter.RayParams
    for _ in range(2):
        LocalNodes._create_node_with_resources_and_labels(object.__new__(LocalNodes))
    assert parameter.RayParams is before
    assert len(set(seen)) == 2 and all("ray_node_" in folder for folder in seen)


def test_numbers_and_variables_of_ray_are_still_those_that_we_know():
    assert upload.LARGEST_UPLOAD == ray_constants.DASHBOARD_CLIENT_MAX_SIZE
    assert upload.IGNORE_GITIGNORE == ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE
