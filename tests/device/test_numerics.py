"""The flags that decide numbers on GPUs, which a process on CPUs can set and read as well.

They are looked at in a process of its own: they hold for the whole process.
"""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sid_ray

CODE = """
import json, os, torch
from sid_ray.device.numerics import set_numerics
cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
torch.backends.cuda.matmul.allow_tf32 = True
for deterministic in (False, True):
    said = set_numerics(deterministic)
    print(json.dumps({
        "said": said,
        "tf32": [cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.conv.fp32_precision == "tf32",
                 cuda.matmul.fp32_precision == "tf32"],
        "matmul": torch.get_float32_matmul_precision(),
        "reductions": [cuda.matmul.allow_fp16_reduced_precision_reduction,
                       cuda.matmul.allow_bf16_reduced_precision_reduction,
                       cuda.matmul.allow_fp16_accumulation],
        "benchmark": cudnn.benchmark,
        "deterministic": [cudnn.deterministic, torch.are_deterministic_algorithms_enabled()],
        "cudnn_attention": cuda.cudnn_sdp_enabled(),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }))
"""


@functools.cache
def flags() -> list[dict]:
    """After set_numerics(False) and after set_numerics(True)."""
    command = [sys.executable, "-W", "error", "-c", CODE]
    clean = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_published_runs_numbers():
    """TF32 off for products and convolutions, sums in float32, cuDNN's search on."""
    found = flags()[0]
    assert found["tf32"] == [False] * 4
    assert found["matmul"] == "highest"
    assert found["reductions"] == [False] * 3
    assert found["benchmark"] is True
    assert found["deterministic"] == [False, False]
    assert found["cudnn_attention"] is True
    assert found["workspace"] is None
    assert "TF32 off" in found["said"]
    assert "\n" not in found["said"]


def test_deterministic():
    found = flags()[1]
    assert found["tf32"] == [False] * 4
    assert found["benchmark"] is False
    assert found["deterministic"] == [True, True]
    assert found["cudnn_attention"] is False
    assert found["workspace"] == ":4096:8"
    assert "deterministic" in found["said"]


ENTRIES = {  # what computes in a process of its own, or in a user's: the function that begins it
    "actors/worker.py": ["build_worker"],
    "actors/examiner.py": ["Examiner.__init__"],
    "evaluation/blocks.py": ["Bench.__init__"],
    "evaluation/picture_blocks.py": ["PictureBench.__init__"],
    "evaluation/final_report.py": ["final_report"],
    "data/encode.py": ["encode_pixels", "encode_prompts"],
    "commands/generate.py": ["generate"],
}


def calls(function: ast.AST) -> list[tuple[int, str]]:
    """(line, name) of what a function calls by a bare name."""
    found = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return [(node.lineno, node.func.id) for node in found if isinstance(node.func, ast.Name)]


@pytest.mark.parametrize("file", ENTRIES)
def test_every_entry_sets_them_before_it_loads_a_network(file):
    tree = ast.parse((Path(sid_ray.__file__).parent / file).read_text())
    functions = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif isinstance(node, ast.ClassDef):
            functions |= {f"{node.name}.{f.name}": f for f in node.body if hasattr(f, "name")}
    loads = {"build_networks", "family_of", "data_for", "load_model", "open_vae", "open_text"}
    for name in ENTRIES[file]:
        found = calls(functions[name])
        lines = [line for line, called in found if called == "set_numerics"]
        assert lines, f"{file}: {name} computes with torch's own flags"
        assert all(lines[0] < line for line, called in found if called in loads)
