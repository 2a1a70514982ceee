"""An actor on another host compares what it finds there with the driver's; Ray is faked."""

from types import SimpleNamespace

import pytest

from sid_ray.actors import pool
from sid_ray.actors.pool import Looker
from sid_ray.errors import UserError


class FakeJob:
    """One whose data set or networks have another digest here than on the driver's host."""

    def bench(self, weights, device, tell):
        return SimpleNamespace(key=lambda device: f"other-{device}")


@pytest.fixture
def job(monkeypatch):
    fake = SimpleNamespace(
        get=lambda held: {},
        get_gpu_ids=list,
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "b"),
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.2"),
    )
    monkeypatch.setattr(pool, "ray", fake)
    return FakeJob()


def test_other_contents_on_another_host_are_refused_in_a_line(job):
    trouble = Looker(job, [None], driver="a", key="mine").trouble
    assert "is another one than on the driver's host" in trouble and "(10.0.0.2)" in trouble
    assert "\n" not in trouble and "s3://" in trouble
    block = {"start": [0], "stop": [256]}
    assert Looker(job, [None], "a", "mine")(block)["trouble"] == [trouble]


def test_the_same_contents_and_the_drivers_own_host_are_not(job):
    assert Looker(job, [None], driver="a", key="other-cpu").trouble == ""
    assert Looker(job, [None], driver="b", key="mine").trouble == ""


def test_what_a_host_lacks_is_said_with_its_name(job, monkeypatch):
    def lacking(*_):
        raise UserError("no file at /data")

    monkeypatch.setattr(job, "bench", lacking)
    trouble = Looker(job, [None], driver="a", key="mine").trouble
    assert trouble.startswith("no file at /data (on ") and "(10.0.0.2))" in trouble
