"""The private parts of Ray Train are what ray_train_private.py takes them for."""

import inspect
from types import SimpleNamespace

import pytest
import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy
from ray.train.v2.api.exceptions import WorkerGroupError

from sid_ray.actors import ray_train_private, scaling
from sid_ray.actors.ray_train_private import Elastic, FailureDecision, Failures, Fixed

ELASTIC = ray.train.ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1})


def test_another_ray_is_not_touched(monkeypatch):
    assert ray_train_private.fit()
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    assert not ray_train_private.fit()


def test_ray_chooses_the_policies_that_ours_are_built_on():
    assert type(create_scaling_policy(ELASTIC)) is Elastic.__mro__[1]
    fixed = ray.train.ScalingConfig(num_workers=2)
    assert type(create_scaling_policy(fixed)) is Fixed.__mro__[1]


def test_an_elastic_policy_counts_workers_from_what_is_reserved():
    class Given(Elastic):
        def reserved(self):
            return {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}}

    policy = Given(ELASTIC)
    policy._coordinator_client = SimpleNamespace(maybe_send_resource_request=lambda *_: None)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 3
    assert policy.suffices({"a": {"CPU": 1.0}}) and not policy.suffices({"a": {"CPU": 0.0}})


def test_reservations_are_asked_anew_under_the_name_of_the_run(monkeypatch):
    asked = []
    coordinator = SimpleNamespace(
        get_reserved_resources=SimpleNamespace(remote=lambda *a, **k: asked.append((a, k)))
    )
    monkeypatch.setattr(
        "ray.train.v2._internal.execution.scaling_policy.scaling_policy."
        "TrainAutoscalingCoordinatorClient",
        lambda requester: SimpleNamespace(
            send_resource_request=lambda *_: None, _autoscaling_coordinator=coordinator
        ),
    )
    policy = Elastic(ELASTIC)
    policy.begin_as("/runs/x")
    policy.ask_reserved()
    assert asked == [(("train-/runs/x",), {"recompute": True})]


def test_the_coordinator_counts_anew_where_it_is_asked_to():
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    takers = [c for c in classes if hasattr(c, "get_reserved_resources")]
    assert any(
        "recompute" in inspect.signature(c.get_reserved_resources).parameters for c in takers
    )


def test_failures_are_counted_in_a_row():
    policy = Failures(ray.train.FailureConfig(max_failures=1))
    error = WorkerGroupError("failed", {0: RuntimeError("x")})
    assert policy.make_decision(error) == FailureDecision.RETRY
    assert policy.make_decision(error) == FailureDecision.RAISE
    policy.forget()
    assert policy.make_decision(error) == FailureDecision.RETRY


def test_a_trainer_makes_the_callbacks_that_are_left_out(tmp_path):
    """Else one of them has another name now, and its process is started again."""
    stock = TorchTrainer(
        print,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="x", storage_path=str(tmp_path)),
    )
    made = {type(callback) for callback in stock._create_default_callbacks()}
    left_out = {ray_train_private.DatasetsCallback, ray_train_private.PlacementGroupCleanerCallback}
    assert left_out <= made


@pytest.mark.parametrize("name", ["scaling_policy", "failure_policy"])
def test_the_controller_takes_policies_by_name(name):
    assert f"{name}=" in inspect.getsource(TorchTrainer.__mro__[1].fit)


def test_variables_of_ray_are_still_those_that_we_know():
    assert scaling.PREEMPTION_WATCHER == constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR
