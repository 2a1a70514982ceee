"""The flags that decide numbers on GPUs, which a process on CPUs can set and read as well.

They are looked at in a process of its own: they hold for the whole process.
"""

import functools
import json
import os
import subprocess
import sys

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
