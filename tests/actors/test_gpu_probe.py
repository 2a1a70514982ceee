"""What is tried on a worker's GPU before the workers start. Ray is faked; no GPU is here."""

import sys
import types
from types import SimpleNamespace

import pytest
import torch

from sid_ray.actors import gpu_probe
from sid_ray.actors.gpu_probe import gpu_trouble, try_attention
from sid_ray.config.distill_config import replace
from sid_ray.denoisers import xformers_package
from sid_ray.device import found
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe

XFORMERS = replace(
    recipe("digits-sid"), resources__attention="xformers", training__precision="bfloat16"
)


@pytest.fixture
def asked(monkeypatch):
    """What was tried on a node; this cluster has two GPUs."""
    asked = []

    def remote(*arguments):
        asked.append(arguments)
        return "a line"

    monkeypatch.setattr(gpu_probe, "probe_gpu", SimpleNamespace(remote=remote))
    monkeypatch.setattr(gpu_probe.ray, "get", lambda value: value)
    monkeypatch.setattr(gpu_probe.ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(gpu_probe.ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 2.0})
    return asked


def test_xformers_is_tried_where_the_workers_are_in_the_runs_precision(asked):
    with pytest.raises(UserError, match=r"^a line$"):
        try_attention(XFORMERS, print)
    assert asked == [("xformers", "bfloat16")]


def test_waiting_for_a_busy_gpu_says_what_for(asked, monkeypatch):
    monkeypatch.setattr(gpu_probe.ray, "wait", lambda refs, timeout: ([], refs))
    said = []
    with pytest.raises(UserError):
        try_attention(XFORMERS, said.append)
    assert said == ["waiting for a free GPU, to try xformers on it"]


def test_torchs_own_attention_is_not_tried(asked):
    try_attention(recipe("digits-sid"), print)
    assert asked == []


def test_without_a_gpu_nothing_need_be_started(asked, monkeypatch):
    monkeypatch.setattr(gpu_probe.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(found, "no_gpu_reason", lambda: "no NVIDIA driver")
    with pytest.raises(UserError, match="no NVIDIA driver"):
        try_attention(XFORMERS, print)
    assert asked == []


def test_an_import_that_only_warns_is_one_line_on_the_node(monkeypatch):
    def no_operator(q, k, v):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\n...")

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = no_operator
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(xformers_package, "DEVICE", "cpu")
    monkeypatch.setattr(found, "no_gpu_reason", lambda: "")
    said = gpu_trouble("xformers", "float16")
    assert "No operator found" in said and "does not work in float16" in said
    assert "\n" not in said
    assert gpu_trouble("sdpa", "float16") == ""
