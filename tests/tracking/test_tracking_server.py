"""A real MLflow server that is killed under a stream of records and comes back."""

import os
import time

import mlflow
import pytest
from PIL import Image

from sid_ray.tracking.sender import Tracking
from tests.support.mlflow_server import mlflow_server
from tests.support.tracking import target

AWAY_S = float(os.environ.get("SID_RAY_TEST_AWAY_S", "15"))


@pytest.mark.slow
def test_a_server_that_is_killed_for_a_while_misses_nothing(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "sheet.png")
    told: list[str] = []
    longest, step = 0.0, 0
    with mlflow_server(tmp_path) as server:
        where = target(tmp_path, uri=server.uri)
        kept = Tracking(where, tmp_path, told.append)

        def stream(seconds: float) -> None:
            nonlocal longest, step
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                began = time.monotonic()
                kept.metrics({"loss": step / 8, "other": -step}, step)
                longest = max(longest, time.monotonic() - began)
                step += 1
                time.sleep(0.02)

        stream(5)
        server.kill()
        stream(AWAY_S / 2)
        kept.image("samples", tmp_path / "sheet.png", step)
        kept.file(tmp_path / "sheet.png", "report")
        stream(AWAY_S / 2)
        assert kept.left > 10
        assert len(told) == 1
        server.start()
        stream(5)
        kept.status("FINISHED")
        assert kept.finish() == ""
        client = mlflow.MlflowClient(server.uri)
        run = client.get_run(kept.run_id)
        assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
        for metric, factor in (("loss", 1 / 8), ("other", -1)):
            history = client.get_metric_history(kept.run_id, metric)
            found = [(point.step, point.value) for point in history]
            assert found == [(number, number * factor) for number in range(step)]
        files = [item.path for item in client.list_artifacts(kept.run_id, "report")]
        assert files == ["report/sheet.png"]
        assert len(client.list_artifacts(kept.run_id, "images")) == 2
    assert [line.split(" ")[:2] for line in told] == [["MLflow", "does"], ["MLflow", "is"]]
    print(f"{step} records, longest call {longest:.3f} s", *told, sep="\n")
    assert longest < 2
