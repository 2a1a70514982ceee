"""clusters/local-elastic.yaml as a person uses it: a job is sent there, and grows with its nodes.

`make slow`.
"""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.local_cluster import LocalAutoscaler
from tests.support.checkpoints import newest_whole, verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]


def test_a_job_grows_with_the_nodes(tmp_path):
    """Nodes join while workers run from the job's working directory, which must stay."""
    runs = tmp_path / "runs"
    with mock.patch.dict(os.environ), LocalAutoscaler(tmp_path) as cluster:
        done = subprocess.run(
            [sys.executable, "-m", "sid_ray.cli", "submit", "digits-sid", "--address", cluster.jobs,
             "--output.folder", str(runs), "--images", "5120", "--workers", "2",
             "--resources.resize-check-s", "1", "--evaluation.every", "0",
             "--evaluation.no-final-report"],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 0
    assert "SUCCEEDED, exit code 0" in done.stdout
    assert "first step of 1 worker" in done.stdout
    assert "nodes have come; 2 workers after 1, no step lost" in done.stdout
    assert verify(newest_whole(runs / "digits-sid")[0]).images_seen == 5120
