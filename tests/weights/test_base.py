"""The base of adapters is named by its numbers: whatever files they are in, once for each."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.weights import base as module
from sid_ray.weights.base import base_sha256, tensors_sha256
from sid_ray.weights.command import convert
from sid_ray.weights.fused import find_lora, fused
from tests.denoisers.tiny_pipeline import write_pipeline

STEM = "unet/diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path) -> Path:
    write_pipeline(tmp_path / "base")
    return tmp_path / "base"


def test_files_may_be_moved_split_or_converted(base, tmp_path):
    own = base_sha256(base)
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    assert base_sha256(moved) == own
    convert(str(base), tmp_path / "one.safetensors")
    assert base_sha256(tmp_path / "one.safetensors") == own
    weights = load_file(moved / f"{STEM}.safetensors")
    names, half = sorted(weights), len(weights) // 2
    (moved / f"{STEM}.safetensors").unlink()
    index = {}
    for number, some in enumerate((names[:half], names[half:]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in some}, moved / "unet" / file)
        index |= dict.fromkeys(some, file)
    path = moved / f"{STEM}.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert base_sha256(moved) == own
    weights[names[0]].view(-1)[0] += 1
    save_file(weights, tmp_path / "moved" / "unet" / "x")
    shutil.move(moved / "unet" / "x", base / f"{STEM}.safetensors")
    assert base_sha256(base) != own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_by_its_values(base, tmp_path, dtype):
    """A variant's file, and the same numbers in float32."""
    weights = load_file(base / f"{STEM}.safetensors")
    half = {name: value.to(dtype) for name, value in weights.items()}
    wide = {name: value.float() for name, value in half.items()}
    (base / f"{STEM}.safetensors").unlink()
    save_file(half, base / f"{STEM}.fp16.safetensors")
    found = base_sha256(base)
    save_file(wide, base / f"{STEM}.safetensors")
    assert base_sha256(base) == found
    assert tensors_sha256(half) == tensors_sha256(wide) != tensors_sha256(weights)


def test_a_merged_lora_is_another_base(base, tmp_path):
    name = "unet.mid_block.attentions.0.proj_in"
    halves = {
        f"{name}.lora_A.weight": torch.ones(1, 16),
        f"{name}.lora_B.weight": torch.ones(16, 1),
    }
    halves = {n: v[..., None, None] if v.ndim == 2 else v for n, v in halves.items()}
    save_file(halves, tmp_path / "style.safetensors")
    merged = fused(base, find_lora(str(tmp_path / "style.safetensors")), "base")
    assert base_sha256(merged) != base_sha256(base)


def test_names_and_shapes_count(base):
    value = torch.arange(6.0)
    of = [{"a": value}, {"b": value}, {"a": value.reshape(2, 3)}, {"a": value.reshape(3, 2)}]
    assert len({tensors_sha256(tensors) for tensors in of}) == len(of)
    assert tensors_sha256({"a": value, "b": value + 1}) == tensors_sha256(
        {"b": value + 1, "a": value.double()}
    )


def test_it_is_taken_once_by_however_many_ask(base, monkeypatch):
    """Of files that did not change; whoever comes second waits for the first."""
    taken = []

    def counted(tensors):
        taken.append(1)
        return tensors_sha256(tensors)

    monkeypatch.setattr(module, "tensors_sha256", counted)
    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(lambda _: base_sha256(base), range(4)))
    assert len(found) == 1 and len(taken) == 1
