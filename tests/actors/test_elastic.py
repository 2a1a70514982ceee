"""Nodes that come, are drained and are killed, on several Ray nodes of this machine: `make slow`.

benchmarks/recovery.py has every kind of interruption with its seconds.
"""

import pytest

from benchmarks.local_cluster import LocalCluster, Run
from benchmarks.recovery import difference
from tests.support.checkpoints import newest_whole, verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
IMAGES = 5120
FLAGS = [
    "--images", str(IMAGES), "--output.checkpoint-every", "640", "--output.report-every", "64",
    "--workers", "2", "--resources.resize-check-s", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run that grows, is drained and loses a node, and one that nothing happens to."""
    folder = tmp_path_factory.mktemp("elastic")
    with LocalCluster(folder) as cluster:
        cluster.add()
        run = Run(folder, "disturbed", FLAGS, cluster.address)
        run.wait(lambda: run.said("first step of 1 worker "))
        second = cluster.add()
        run.wait(lambda: run.said("2 workers after 1,"))
        cluster.drain(second, 60)
        run.wait(lambda: run.said("1 worker after 2,"))
        cluster.kill(second)
        third = cluster.add()
        run.wait(lambda: len(run.said("2 workers after 1,")) == 2)
        cluster.kill(third)
        run.wait(lambda: run.said("a worker") or run.said("died"))
        summary = run.finish()
        cluster.add()
        quiet = Run(folder, "undisturbed", FLAGS, cluster.address)
        quiet.finish()
    return run, summary, quiet


def test_planned_changes_cost_no_step(ended):
    run, summary, _ = ended
    stops = summary["interruptions"]
    planned = [stop for stop in stops if stop["planned"]]
    assert [(s["workers_before"], s["workers_after"]) for s in stops] == [
        (1, 2), (2, 1), (1, 2), (2, 1)
    ], run.output()  # fmt: skip
    assert [stop["steps_lost"] for stop in planned] == [0, 0, 0]
    assert not stops[-1]["planned"]


def test_the_run_ends_with_the_same_weights(ended):
    run, _, quiet = ended
    newest, damage = newest_whole(run.folder)
    assert verify(newest).images_seen == IMAGES
    assert damage == []
    # Other world sizes add floats in another order, which 80 steps of Adam amplify.
    assert difference(run.folder, quiet.folder) < 1e-3
