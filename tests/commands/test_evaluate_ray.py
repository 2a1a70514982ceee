"""sid-ray evaluate on a real Ray: actor and driver killed with SIGKILL, a node that comes: `make
slow`.
"""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TEACHER, IMAGES = "builtin:digits-teacher", 6400  # 25 blocks
FLAGS = ["--num-images", str(IMAGES), "--steps", "8", "--trials", "1"]


def command(folder, *flags: str, cluster: str = "") -> subprocess.Popen:
    added = {"OMP_NUM_THREADS": "1", "SID_RAY_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "sid_ray.cli", "evaluate", TEACHER, *FLAGS, *flags],
        env=os.environ | added | ({"RAY_ADDRESS": cluster} if cluster else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return out


def wait(until, what: str) -> None:
    end = time.monotonic() + 240
    while not until():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def actors_of(node) -> list[psutil.Process]:
    raylets = [held.process.pid for held in node.all_processes["raylet"]]
    found = [child for pid in raylets for child in psutil.Process(pid).children(recursive=True)]
    return [child for child in found if "Looker" in " ".join(child.cmdline())]


def test_actor_and_driver_are_killed_and_a_node_comes(tmp_path):
    out, kept = tmp_path / "out.json", tmp_path / "cache" / "evaluations"

    def count() -> int:
        return len(list(kept.glob("*/*.npz")))

    with LocalCluster(tmp_path) as cluster:
        first = cluster.add()
        driver = command(tmp_path, "--out", str(out), cluster=cluster.address)
        wait(lambda: count() >= 2, "the first blocks")
        (actor,) = actors_of(first)
        actor.kill()
        seen = count()
        wait(lambda: count() > seen + 1, "blocks of the actor that came again")
        second = cluster.add()
        wait(lambda: actors_of(second), "an actor on the node that came")
        seen = count()
        wait(lambda: count() > seen, "a block after the node came")
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        assert 4 <= count() < 25 and not out.exists()
        shown = finished(command(tmp_path, "--out", str(out), cluster=cluster.address))
        assert "going on: " in shown and "warning" not in shown.lower()
    resumed = json.loads(out.read_text())
    assert 0 < resumed["images_made"] < IMAGES
    finished(command(tmp_path, "--out", str(out), "--actors", "1", "--fresh"))
    alone = json.loads(out.read_text())
    assert alone["images_made"] == IMAGES
    assert alone["trials"] == resumed["trials"]
