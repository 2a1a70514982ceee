"""Faults of one rank in real runs of two workers: `make slow`.

What a rank that raises costs on NCCL is seen here on gloo, whose groups are made to end as NCCL's
do: only when what is pending in them ends.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import sid_ray
from tests.support.checkpoints import newest_whole, read_manifest
from tests.support.distill_runs import PATIENCE_S, hear_ctrl_c
from tests.support.faulty_objective import FAULT, LIKE_NCCL, entry_point, flags

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(sid_ray.__file__).parents[1]
SIXTEEN = "--resources.micro-batch", "16"  # a group


def start(folder: Path, run: str, fault: str, *more: str, **variables: str) -> subprocess.Popen:
    site = entry_point(folder / "site")
    unset = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    environment = {k: v for k, v in os.environ.items() if k not in unset} | variables
    environment |= {FAULT: fault, "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)])}
    return subprocess.Popen(
        [*flags(run, folder / "runs"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=hear_ctrl_c,
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    print(output)
    return process.returncode, output


def files_of(run: Path) -> dict[str, str]:
    return read_manifest(newest_whole(run)[0]).files


def test_a_lack_of_memory_halves_a_pass_once_for_the_same_bits(tmp_path):
    """As a run that had the smaller micro-batch from the start."""
    code, output = ended(start(tmp_path, "short", "memory:8", *SIXTEEN))
    assert code == 0
    line = "out of memory with 16 images in a pass: starting again with --resources.micro-batch 8"
    assert output.count(line) == 1 and output.count("out of memory") == 1
    assert json.loads((tmp_path / "runs/short/summary.json").read_text())["trained_images"] == 640
    code, _ = ended(start(tmp_path, "spared", "", "--resources.micro-batch", "8"))
    assert code == 0
    assert files_of(tmp_path / "runs/short") == files_of(tmp_path / "runs/spared")


def test_a_second_lack_of_memory_is_one_line_that_names_the_flags(tmp_path):
    code, output = ended(start(tmp_path, "again", "memory:4", *SIXTEEN))
    assert code == 3 and "Traceback" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("failed:"))
    assert "again out of memory with 8 images in a pass: --resources.micro-batch" in line
    assert "activation-checkpointing" in line and "offload-optimizer" in line


@pytest.mark.parametrize("like_nccl", [False, True], ids=["gloo", "as NCCL"])
def test_peers_of_a_rank_that_raises_are_gone_within_seconds(tmp_path, like_nccl):
    mark = tmp_path / "mark"
    variables = {LIKE_NCCL: "1"} if like_nccl else {}
    process = start(tmp_path, "raises", f"raise:384:{mark}", **variables)
    try:
        while not mark.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        raised_at = float(mark.read_text())
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "RayTrainWorker" in child.name()]
        psutil.wait_procs(workers, timeout=60)
        spent_s = time.time() - raised_at
        print(f"{len(workers)} workers were gone {spent_s:.2f} s after one of them had raised")
        code, output = ended(process)
    finally:
        process.kill()
    assert code == 0 and len(workers) == 2
    assert spent_s < 8
    assert "worker 1 failed: ValueError: this rank fails" in output
