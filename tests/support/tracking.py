"""What tests of tracking share."""

import functools
import tempfile
from collections import Counter
from pathlib import Path

import mlflow

from sid_ray.tracking.mlflow_run import Target


@functools.cache
def empty_store() -> bytes:
    """An sqlite store without runs: MLflow takes a second to make one."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def target(folder: Path, key: str = "key", uri: str = "", name: str = "run") -> Target:
    """A run in a sqlite store of the folder."""
    store = folder / "mlflow.db"
    if not uri and not store.exists():
        store.write_bytes(empty_store())
    uri = uri or f"sqlite:///{store}"
    return Target(uri, "tests", name, key, {"a": 1}, {"b": "c"}, f"{folder}/artifacts")


class MadeUpRun:
    """Stands in for MLflow: fails when told to, like a store that may have written all the same.

    Args:
        failures: how many of the next calls raise.
        writes_first: whether a call that raises has written what it was given.
    """

    def __init__(self, failures: int = 0, writes_first: bool = False, run_id: str = "made-up"):
        self.failures, self.writes_first = failures, writes_first
        self.run_id, self.best = run_id, {}
        self.calls: Counter[str] = Counter()
        self.told: dict = {}  # (metric, step): value, in order; the first one counts
        self.others: list = []

    def open(self) -> None:
        self._call("open")

    def write(self, records) -> None:
        if self.failures and not self.writes_first:
            self._call("write")
        for record in records:
            if record.kind == "metrics":
                for name, value in record.values["metrics"].items():
                    self.told.setdefault((name, record.values["step"]), value)
            elif (record.kind, dict(record.values)) not in self.others:
                self.others.append((record.kind, dict(record.values)))
        self._call("write")

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("nobody answers")
