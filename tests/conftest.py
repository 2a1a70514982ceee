"""Shared pieces of the tests."""

from __future__ import annotations

import gc
import json
import os
import signal
import uuid
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from torch import Tensor

from tests.support.distill_runs import Runs
from tests.support.s3_server import s3_server

# Ray of the tests is their own: no cluster of the machine, no telemetry, quiet workers.
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Tests of endings hold under nohup and in the background of a script too, where these are ignored.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Properties are tried on the same examples each time; new ones are for benchmarks/fuzz_*.py and
# pytest --hypothesis-profile=default.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


LONGEST = (  # real runs, of which the tests behind them wait for each other's processes
    "test_distill.py",
    "test_rehearsal.py",
    "test_deepspeed_role.py",
    "test_toys.py",
    "test_earlier_run.py",
    "test_hostile.py",
)


def pytest_collection_modifyitems(items):
    """What takes longest is begun first: several processes share the files of tests."""
    last = len(LONGEST)
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, last))


def pytest_collection_finish():
    """What imports have made, a million objects, stays: collecting garbage looks at it no more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def distill_runs(tmp_path_factory):
    """The runs of distill_runs.py, which may not have ended yet."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.end()


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A real S3 server on loopback, shared by all tests; kill only one of your own."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3, monkeypatch, request):
    """s3:// address of a new bucket, with the server in the environment."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    return s3.make_bucket(f"test-{uuid.uuid4().hex[:12]}")


REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def no_store_is_left():
    """mlflow.set_tracking_uri puts its store into the environment: not for the tests behind."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def one_thread():
    """The same threads whatever ran before: results of convolutions depend on it."""
    torch.set_num_threads(1)


class Reference:
    """A reference file: tensors by name, JSON metadata by name."""

    def __init__(self, name: str):
        with safe_open(REFERENCE / f"{name}.safetensors", framework="pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.metadata = file.metadata()

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def json(self, key: str):
        return json.loads(self.metadata[key])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64; 0 where both are the same."""
    if torch.equal(found, expected):
        return 0.0
    return float((found.double() - expected.double()).norm() / expected.double().norm())
