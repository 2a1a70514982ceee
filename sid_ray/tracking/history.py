"""What MLflow has of a run: the history of each metric."""

from __future__ import annotations

from typing import NamedTuple

from sid_ray.errors import UserError


class Point(NamedTuple):
    """One value of a metric: images seen, the value, seconds since the epoch."""

    images_seen: int
    value: float
    at: float


History = dict[str, list[Point]]


def read_history(uri: str, run_id: str) -> History:
    """Every metric of a run, in order. Raises UserError where the store has no such run."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    try:
        names = client.get_run(run_id).data.metrics
        found = {name: client.get_metric_history(run_id, name) for name in names}
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"MLflow run {run_id} is not in {uri} ({reason}): name its store with "
            "MLFLOW_TRACKING_URI"
        ) from None
    return {
        name: sorted(Point(m.step, m.value, m.timestamp / 1000) for m in metrics)
        for name, metrics in found.items()
    }
