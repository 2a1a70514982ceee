"""How process groups of the workers begin and end; Ray's worker group, and CUDA, are faked."""

import os
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from ray.train.v2._internal.callbacks.accelerators import _get_visible_accelerator_ids_per_worker
from ray.train.v2._internal.execution.worker_group.worker import ActorMetadata
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

from sid_ray.actors import process_groups
from sid_ray.actors.process_groups import GroupConfig, bind, leave_groups, meeting_group


@pytest.fixture
def alone():
    """A gloo group of this process alone; its environment is as before behind it."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_deepspeed_takes_the_default_group_that_is_there(alone, monkeypatch):
    from sid_ray.distributed.deepspeed_role import init_deepspeed

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    made = []
    make = torch.distributed.init_process_group
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *a, **k: made.append(a) or make(*a, **k)
    )
    before = torch.distributed.group.WORLD
    init_deepspeed()
    assert torch.distributed.group.WORLD is before and made == []


def test_groups_are_left_though_what_is_pending_in_them_never_ends(alone, monkeypatch):
    """NCCL's normal exit waits for it; so does Ray Train, for 30 s."""
    pending = threading.Event()
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: pending.wait(60))
    began = time.monotonic()
    leave_groups()
    assert time.monotonic() - began < 30
    assert not torch.distributed.is_initialized()


def test_an_abort_that_hangs_does_not_keep_the_worker(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(process_groups, "abort_groups", lambda: ended.wait(60))
    began = time.monotonic()
    leave_groups(patience_s=0.1)
    assert time.monotonic() - began < 30
    ended.set()


def test_the_controller_has_the_workers_leave_and_waits_for_none(monkeypatch):
    """A worker that is dead, or does not answer, is no error: all their processes end."""
    asked, waited = [], []
    group = SimpleNamespace(execute_async=lambda work: asked.append(work) or ["a", "b"])
    monkeypatch.setattr(
        process_groups.ray, "wait", lambda refs, num_returns, timeout: waited.append(timeout)
    )
    config = GroupConfig(backend="nccl")
    config.backend_cls().on_shutdown(group, config)
    assert asked == [leave_groups] and waited[0] <= 2


def test_timeouts_are_set_on_purpose(monkeypatch):
    assert GroupConfig(backend="nccl").timeout_s == 600
    assert GroupConfig(backend="gloo").timeout_s == 1800
    made = {}
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.distributed, "new_group", lambda **how: made.update(how))
    meeting_group()
    assert made == {"backend": "gloo", "timeout": timedelta(seconds=1800)}
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "new_group", lambda **how: pytest.fail("a second one"))
    assert meeting_group() is None


@pytest.mark.parametrize(("waits_s", "said"), [(0.5, ["inside", "waits"]), (0, ["inside"])])
def test_ranks_wait_for_prompts_longer_than_for_a_collective_and_say_so(monkeypatch, waits_s, said):
    made, told, dist = {}, [], torch.distributed
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "new_group", lambda **how: made.update(how) or "patient")
    monkeypatch.setattr(dist, "barrier", lambda group: made.update(on=group) or time.sleep(waits_s))
    monkeypatch.setattr(dist, "destroy_process_group", lambda group: made.update(left=group))
    with process_groups.patiently(lambda: told.append("waits"), 0.1):
        told.append("inside")
    time.sleep(0.2)
    assert told == said
    assert made.pop("timeout") >= timedelta(hours=12)
    assert made == {"backend": "gloo", "on": "patient", "left": "patient"}
    made.clear()
    with pytest.raises(ValueError, match="mine"), process_groups.patiently(lambda: None):
        raise ValueError("mine")
    assert "on" not in made


def test_one_worker_alone_waits_for_nobody(alone, monkeypatch):
    monkeypatch.setattr(torch.distributed, "new_group", lambda **how: pytest.fail("a group"))
    with process_groups.patiently(lambda: pytest.fail("waits")):
        pass


def test_deepspeed_computes_on_the_gpu_that_ray_gave(monkeypatch):
    """On a node of 16 GPUs Ray names those that are visible as texts are sorted."""
    workers = [
        SimpleNamespace(metadata=ActorMetadata("host", "node", "ip", rank, {"GPU": [str(rank)]}))
        for rank in range(16)
    ]
    ranks = WorkerGroup._sort_workers_by_gpu_id_grouped_by_node(workers)
    visible = _get_visible_accelerator_ids_per_worker([w.metadata for w in ranks], "GPU")
    devices = [
        visible[0].split(",").index(worker.metadata.accelerator_ids["GPU"][0]) for worker in ranks
    ]
    assert devices != list(range(16)), "else local ranks would do"
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "2")
    bind(torch.device("cuda", devices[2]))
    assert os.environ["LOCAL_RANK"] == str(devices[2]) == "8"
    assert current == [torch.device("cuda:8")]
    bind(torch.device("cpu"))
    assert os.environ["LOCAL_RANK"] == "8" and len(current) == 1
