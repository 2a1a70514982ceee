"""Which device a command's own process takes; Ray and the GPUs are faked."""

from contextlib import contextmanager

import pytest
import torch

from sid_ray.actors import reserve
from sid_ray.commands import evaluate, held_device
from sid_ray.device import choice
from sid_ray.device.found import Gpu
from sid_ray.errors import UserError
from sid_ray.evaluation.options import EvaluateOptions

GPU = Gpu(0, "NVIDIA H100", 80 << 30, (9, 0))


@pytest.fixture
def given(monkeypatch):
    """A machine with a GPU, of a cluster that is joined; what Ray gives, and what it says."""
    given = [torch.device("cuda", 3), ""]

    @contextmanager
    def reserved(tell):
        if given[1]:
            tell(given[1])
        yield given[0]

    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.setattr(reserve, "reserved_device", reserved)
    monkeypatch.setattr(choice, "gpus_here", lambda: [GPU])
    monkeypatch.setattr(choice, "no_gpu_reason", lambda: "")
    return given


def device(asked, said=None) -> torch.device:
    with held_device.held_device(asked, (said if said is not None else []).append) as found:
        return found


def test_on_a_joined_cluster_it_is_the_gpu_that_ray_gives(given, monkeypatch):
    assert device("auto") == device("cuda") == torch.device("cuda", 3)
    assert device("cpu") == torch.device("cpu")
    monkeypatch.delenv("RAY_ADDRESS")
    assert device("auto") == torch.device("cuda", 0)


def test_where_none_gets_free_only_auto_goes_on(given):
    given[:] = torch.device("cpu"), "no GPU was free: on the CPU"
    said = []
    assert device("auto", said) == torch.device("cpu") and said == [given[1]]
    with pytest.raises(UserError, match=r"^--device cuda: no GPU was free$"):
        device("cuda")


def test_evaluate_leaves_a_clusters_gpus_to_its_actors(given, monkeypatch):
    options = EvaluateOptions("x", use_gpu=True)
    assert evaluate.own_device(options) == torch.device("cpu")
    assert not evaluate.is_here(1, options)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(evaluate, "gpus_here", lambda: [GPU])
    assert evaluate.own_device(options) == torch.device("cuda", 0)
    assert evaluate.is_here(1, options)
