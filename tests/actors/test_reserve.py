"""A GPU for the final report; Ray and the GPUs are faked."""

from types import SimpleNamespace

import pytest
import ray.exceptions
import torch

from sid_ray.actors import reserve
from sid_ray.actors.reserve import CPU, reserved_device
from sid_ray.device.found import Gpu
from sid_ray.errors import UserError

GPUS = [Gpu(index, "NVIDIA H100", 80 << 30, (9, 0)) for index in range(4)]


@pytest.fixture
def node(monkeypatch):
    """A node of a joined cluster, whose Ray gives GPU ``given``; None where none gets free."""
    found = SimpleNamespace(given="2", said=[], done=[])
    place = SimpleNamespace(gpu=SimpleNamespace(remote=lambda: "asked"))

    def answer(asked, timeout):
        if found.given is None:
            raise ray.exceptions.GetTimeoutError
        return found.given

    def options(**chosen):
        found.done.append(chosen)
        return SimpleNamespace(remote=lambda: place)

    monkeypatch.setattr(reserve, "gpus_here", lambda: GPUS)
    monkeypatch.setattr(reserve, "joins_cluster", lambda: True)
    monkeypatch.setattr(reserve, "with_ray", lambda start, join: found.done.append("joined"))
    monkeypatch.setattr(reserve, "this_node", lambda: "here")
    monkeypatch.setattr(reserve, "GpuPlace", SimpleNamespace(options=options))
    monkeypatch.setattr(reserve, "stop_like_ctrl_c", lambda: None)
    monkeypatch.setattr(reserve.ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(reserve.ray, "get", answer)
    monkeypatch.setattr(reserve.ray, "shutdown", lambda: found.done.append("left"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def device(node) -> torch.device:
    with reserved_device(node.said.append) as found:
        return found


def test_on_a_cluster_it_is_the_gpu_that_ray_gave_on_this_node(node, monkeypatch):
    """Not GPU 0, which another run's worker may have."""
    assert device(node) == torch.device("cuda", 2)
    assert node.done == ["joined", {"scheduling_strategy": "here"}, "left"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert device(node) == torch.device("cuda", 1)
    assert node.said == []


def test_where_none_gets_free_the_cpu_has_to_do(node, monkeypatch):
    node.given = None
    assert device(node) == CPU and "no GPU of this machine was free" in node.said[-1]
    node.given = "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert device(node) == CPU and "does not see GPU 7" in node.said[-1]
    assert node.done[-1] == "left"

    def gone(start, join):
        raise UserError("the cluster is gone")

    monkeypatch.setattr(reserve, "with_ray", gone)
    assert device(node) == CPU and "the cluster is gone" in node.said[-1]


def test_without_a_cluster_or_a_gpu_no_ray_is_asked(node, monkeypatch):
    monkeypatch.setattr(reserve, "joins_cluster", lambda: False)
    assert device(node) == torch.device("cuda", 0)
    monkeypatch.setattr(reserve, "gpus_here", list)
    assert device(node) == CPU
    assert node.done == [] == node.said
