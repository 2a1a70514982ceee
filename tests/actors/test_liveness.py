"""What a cluster knows of a run's last driver; a real one below, `make slow`."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.local_cluster import LocalCluster
from sid_ray.actors import liveness
from sid_ray.actors.liveness import driver_is_gone
from tests.support.waiting import wait_for

LEASE = {"node": "n1", "job": "01"}


@pytest.fixture
def cluster(monkeypatch):
    """Stands in for Ray; a test says which nodes and jobs it knows."""
    found = SimpleNamespace(nodes={"n1": True}, jobs={"01": False}, joined=0)

    def init(**options):
        found.joined += 1

    made_up = SimpleNamespace(
        init=init,
        shutdown=lambda: None,
        nodes=lambda: [{"NodeID": node, "Alive": alive} for node, alive in found.nodes.items()],
    )
    monkeypatch.setattr(liveness, "ray", made_up)
    monkeypatch.setattr(liveness, "jobs", lambda: found.jobs)
    monkeypatch.setattr(liveness, "with_ray", lambda start, join: join())
    monkeypatch.setattr(liveness, "stop_like_ctrl_c", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    return found


def test_a_driver_is_gone_with_its_job_or_its_node(cluster):
    assert not driver_is_gone(LEASE)
    cluster.jobs["01"] = True
    assert driver_is_gone(LEASE)
    cluster.jobs.clear()
    assert not driver_is_gone(LEASE)
    cluster.nodes["n1"] = False
    assert driver_is_gone(LEASE)


def test_another_cluster_knows_nothing_of_it(cluster):
    """Its jobs have the same numbers."""
    cluster.jobs["01"], cluster.nodes = True, {"n2": True}
    assert not driver_is_gone(LEASE)


def test_ray_is_not_asked_in_vain(cluster, monkeypatch):
    assert not driver_is_gone({"host": "elsewhere"})
    monkeypatch.delenv("RAY_ADDRESS")
    assert not driver_is_gone(LEASE)
    assert cluster.joined == 0


DRIVER = """
import ray
ray.init(logging_level="error")
context = ray.get_runtime_context()
print(context.get_node_id(), context.get_job_id(), flush=True)
input()
"""


@pytest.mark.slow
def test_a_real_cluster_knows_of_a_killed_driver_within_seconds(tmp_path, monkeypatch):
    with LocalCluster(tmp_path) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        command = [sys.executable, "-c", DRIVER]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as driver:
            node, job = driver.stdout.readline().split()
            lease = {"node": node, "job": job}
            assert not driver_is_gone(lease)
            driver.kill()
        wait_for(lambda: driver_is_gone(lease), "the cluster to know it", 20)
        assert not driver_is_gone({"node": "0" * len(node), "job": job})
