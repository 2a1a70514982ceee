"""A driver that is cut off from S3 stops before another one may have its run.

`make slow`. Two real commands on Rays of their own, as on two machines, against a real server; the
first one reaches it through a proxy that is cut.
"""

import time
from collections import Counter

import mlflow
import pytest

from sid_ray.checkpoint.find import checkpoints
from sid_ray.storage.fence import newest_number, number_of, read_lease
from tests.actors.test_run_s3 import EVERY, Place, assert_same_bits, past
from tests.support.proxy import proxy_to
from tests.support.s3_server import s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
IMAGES, LEASE_S = 1920, 60
ELSEWHERE = """
from sid_ray import cli
from sid_ray.storage import lease
from sid_ray.storage import waiting
lease.place = leases.place = lambda: "another machine"  # where the first one's process is not seen
cli.main()
"""


@pytest.fixture
def place(tmp_path):
    with s3_server(tmp_path / "server") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        made = Place(server, tmp_path)
        made.images = IMAGES
        yield made
        for run in made.started:
            if run.process.poll() is None:
                run.kill()


def told_to(uri, name):
    """(metric, step) -> how often MLflow was told it, of all runs of a name."""
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    assert len(runs) == 1
    (run,) = runs
    points = (client.get_metric_history(run.info.run_id, metric) for metric in run.data.metrics)
    return Counter((point.key, point.step) for history in points for point in history)


def test_a_driver_that_is_cut_off_stops_and_a_second_one_goes_on(place, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    lease = ("--storage.lease-s", str(LEASE_S), "--evaluation.no-final-report")
    store = place.run("cut")
    with proxy_to(place.server.ports["s3"]) as proxy:
        through = f"http://127.0.0.1:{proxy.port}"
        first = place.start("cut", *lease, MLFLOW_TRACKING_URI=uri, AWS_ENDPOINT_URL=through)
        past(first, store, EVERY)
        proxy.cut()
        cut_at = time.monotonic()
        place.on_machine("two")
        place.entry = ("-c", ELSEWHERE)
        second = place.start("cut", *lease, MLFLOW_TRACKING_URI=uri)
        code = first.finish()
        stopped_s = time.monotonic() - cut_at
        assert newest_number(store) == 1, "nobody else had the run while the first one worked"
        print(f"stopped {stopped_s:.1f} s after the cut\n{first.output}")
        assert code == 4, first.output
        assert stopped_s < LEASE_S
        assert "stopped: the lease of run 'cut' could not be renewed for" in first.output
        assert "Start the same command again" in " ".join(first.output.split())
        undisturbed = place.start("undisturbed", *lease, MLFLOW_TRACKING_URI=uri)
        for run in (second, undisturbed):
            assert run.finish() == 0, run.output
        print(second.output)
    assert "waiting up to" in second.output
    assert "resumed at " in second.output
    assert {number_of(name) for name in checkpoints(store)} == {2}
    assert read_lease(store, 2)["ended"]
    assert_same_bits(place, "cut", "undisturbed", tmp_path)
    told = told_to(uri, "cut")
    assert set(told.values()) == {1}, "no step is told twice"
    assert told.keys() == told_to(uri, "undisturbed").keys()
    print(f"{len(told)} values of MLflow, each told once")
