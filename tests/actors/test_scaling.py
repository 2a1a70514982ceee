"""Growing and failing as sid_ray wants it; Ray's controller and coordinator are faked."""

import os
import pickle
from types import SimpleNamespace

import pytest
import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    create_scaling_policy,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from sid_ray.actors import scaling
from sid_ray.actors.scaling import AskFirst, Budget
from sid_ray.actors.signals import OutOfMemoryAgainError, PausedError, SmallerPassesError


class Remote:
    """An actor handle: calls are noted, and answered by ``answers``."""

    def __init__(self, **answers):
        self.calls, self.answers = [], answers

    def __getattr__(self, name):
        def remote(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self.answers.get(name)

        return SimpleNamespace(remote=remote)

    def named(self, name):
        return [args for called, args, _ in self.calls if called == name]


@pytest.fixture
def policy(monkeypatch):
    """A policy of 1 to 4 workers on nodes "a" and "b" of one CPU each."""
    config = ray.train.ScalingConfig(
        num_workers=(1, 4), resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=0
    )
    made = AskFirst(config, Remote(), "/runs/x")
    made.cluster, made.draining = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}, set()
    made.dead = set()
    coordinator = Remote(get_reserved_resources=made.cluster)
    made._coordinator_client = SimpleNamespace(
        _autoscaling_coordinator=coordinator, maybe_send_resource_request=lambda *_: None
    )
    made.coordinator = coordinator
    monkeypatch.setattr(AskFirst, "LOOK_S", 0)
    monkeypatch.setattr(scaling, "IDLE_S", 0)
    monkeypatch.setattr(scaling.ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(scaling, "draining_nodes", lambda: set(made.draining))
    nodes = lambda: [{"NodeID": name, "Alive": True} for name in made.cluster]  # noqa: E731
    monkeypatch.setattr(scaling.ray, "nodes", nodes)
    monkeypatch.setattr(scaling, "answering", lambda nodes: set(made.cluster) - made.dead)
    return made


def running(workers):
    """A group of workers on "a", "b" ..."""
    placed = [
        SimpleNamespace(actor=node, metadata=SimpleNamespace(node_id=node, hostname=f"host-{node}"))
        for node in "abcd"[:workers]
    ]
    return SimpleNamespace(start_time=float("-inf"), num_workers=workers, workers=placed)


def test_a_resize_is_a_question_to_the_workers(policy):
    decision = policy.make_decision_for_running_worker_group(running(1), None)
    assert isinstance(decision, NoopDecision)
    assert policy.tracker.named("ask_pause") == [("nodes have come",)]


def test_nothing_is_asked_where_nothing_changed(policy):
    policy.make_decision_for_running_worker_group(running(2), None)
    assert policy.tracker.calls == []


def test_workers_pause_as_soon_as_one_of_their_nodes_is_to_go(policy):
    """Whenever else the cluster is looked at for a resize."""
    policy.scaling_config.elastic_resize_monitor_interval_s = 3600
    decide = lambda workers: policy.make_decision_for_running_worker_group(running(workers), None)  # noqa: E731
    decide(2)  # the first look
    policy.draining = {"b"}
    assert isinstance(decide(1), NoopDecision)
    assert policy.tracker.named("ask_pause") == []
    assert isinstance(decide(2), NoopDecision)
    assert policy.tracker.named("ask_pause") == [("a node is about to go",)]


def test_a_head_that_is_silent_changes_nothing(policy, monkeypatch):
    monkeypatch.setattr(scaling, "draining_nodes", lambda: 1 / 0)
    assert isinstance(policy.make_decision_for_running_worker_group(running(2), None), NoopDecision)
    assert policy.tracker.calls == []


def test_draining_nodes_do_not_count(policy):
    policy.draining = {"b"}
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 1
    assert policy.coordinator.calls[0][2] == {"recompute": True}
    policy.draining = {"a", "b"}
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)


def test_nodes_that_do_not_answer_do_not_count(policy):
    policy.dead = {"a"}
    assert policy.make_decision_for_non_running_worker_group().num_workers == 1


def test_workers_of_a_silent_node_are_given_up_and_the_next_are_placed_elsewhere(
    policy, monkeypatch
):
    killed = []
    monkeypatch.setattr(scaling.ray, "kill", killed.append)
    policy._watch = SimpleNamespace(lost=set())
    policy.make_decision_for_running_worker_group(running(2), None)
    assert killed == [] and policy.on_controller_start_worker_group() is None
    policy._watch.lost, policy.dead = {"b"}, {"b"}
    policy.make_decision_for_running_worker_group(running(2), None)
    assert killed == ["b"]
    assert policy.tracker.named("event") == [("host-b has not answered for 6 s: without it",)]
    assert policy.make_decision_for_non_running_worker_group().num_workers == 1
    assert policy.on_controller_start_worker_group() == {"ray.io/node-id": "!in(b)"}


def test_nothing_is_given_up_where_too_few_would_be_left(policy, monkeypatch):
    monkeypatch.setattr(scaling.ray, "kill", lambda actor: pytest.fail("killed"))
    policy._watch = SimpleNamespace(lost={"a", "b"})
    policy.dead = {"a", "b"}  # or it is this node that is cut off
    policy.make_decision_for_running_worker_group(running(2), None)


def test_no_worker_is_promised_what_the_evaluator_has(policy):
    """Ray's coordinator counts what nodes have in all, also what actors hold already."""
    gpus = {"a": {"CPU": 8.0, "GPU": 4.0}, "b": {"CPU": 8.0, "GPU": 1.0}}
    policy.cluster.clear()
    policy.cluster.update(gpus)
    policy.scaling_config.resources_per_worker = {"CPU": 1, "GPU": 1}
    policy._beside = {"GPU": 1.0, "evaluator": 1.0}
    decide = lambda: policy.make_decision_for_non_running_worker_group().num_workers  # noqa: E731
    policy.tracker.answers["evaluators_node"] = "b"
    assert decide() == 4
    policy.cluster.pop("a")
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    policy.cluster.update(gpus)
    policy.tracker.answers["evaluators_node"] = ""  # and no node offers its own resource yet
    assert decide() == 4, "no more than max_workers"
    policy._beside = {"GPU": 1.0}
    policy.cluster.pop("b")
    assert decide() == 3, "a place is kept for it"
    assert gpus["a"]["GPU"] == 4.0, "and nothing was changed in what Ray had told"


def test_what_is_waited_for_is_said(policy, budget):
    policy.cluster.clear()
    for _ in range(3):
        policy.make_decision_for_non_running_worker_group()
    said = ("waiting for nodes: room for 1 worker (CPU 1)",)
    assert policy.tracker.named("set_phase") == [said]
    policy.cluster["a"] = {"CPU": 1.0}
    policy.make_decision_for_non_running_worker_group()
    policy.cluster.clear()
    policy.make_decision_for_non_running_worker_group()
    assert policy.tracker.named("set_phase") == [said] * 2
    budget.make_decision(ControllerError(WorkerGroupStartupTimeoutError(8)))
    assert budget.tracker.named("set_phase") == [("waiting for room for 8 workers",)]


def test_reservations_that_cannot_be_read_change_nothing(policy, monkeypatch):
    def fail(value, timeout=None):
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(scaling.ray, "get", fail)
    for decide in (
        policy.make_decision_for_non_running_worker_group,
        lambda: policy.make_decision_for_running_worker_group(running(1), None),
    ):
        assert isinstance(decide(), NoopDecision)


@pytest.fixture
def budget(monkeypatch):
    monkeypatch.setattr(scaling.ray, "get", lambda value, timeout=None: value)
    return Budget(ray.train.FailureConfig(max_failures=2), Remote(stopped=-1))


def failure(*errors):
    return WorkerGroupError("failed", dict(enumerate(errors)))


def test_pauses_are_free(budget):
    for _ in range(10):
        paused = failure(PausedError("a node is about to go"), RuntimeError("peer is gone"))
        assert budget.make_decision(paused) == FailureDecision.RETRY
    assert budget.tracker.named("stopped")[0][:2] == ("a node is about to go", True)


def test_failures_in_a_row_use_up_the_budget_and_a_checkpoint_fills_it(budget):
    decide = lambda: budget.make_decision(failure(RuntimeError("x")))  # noqa: E731
    assert [decide(), decide()] == [FailureDecision.RETRY] * 2
    budget.tracker.answers["stopped"] = 640
    assert [decide(), decide(), decide()] == [FailureDecision.RETRY] * 2 + [FailureDecision.RAISE]


def test_the_reason_is_said_in_a_line(budget):
    dead = WorkerHealthCheckFailedError("unhealthy", RuntimeError("The actor died\nlong story"))
    peer = RuntimeError("[/gloo/pair.cc:553] Connection closed by peer [192.0.2.1]")
    wrong = ValueError("wrong\nlong story")
    for errors in ((peer, dead), (peer,), (wrong,), (peer, dead, wrong)):
        budget.make_decision(failure(*errors))
    told = [(reason, planned) for reason, planned, _ in budget.tracker.named("stopped")]
    assert told == [
        ("worker 1 died", False),
        ("a worker was lost", False),
        ("worker 0 failed: ValueError: wrong", False),
        ("worker 2 failed: ValueError: wrong", False),  # NCCL ends the processes of its peers
    ]


def test_smaller_passes_are_free_and_a_second_lack_of_memory_is_the_end(budget):
    smaller, peer = SmallerPassesError("less"), RuntimeError("Connection closed by peer")
    for _ in range(5):
        assert budget.make_decision(failure(peer, smaller)) == FailureDecision.RETRY
    again = failure(peer, OutOfMemoryAgainError("again"))
    assert budget.make_decision(again) == FailureDecision.RAISE


def test_what_goes_to_the_controller_can_be_sent():
    for kind in (PausedError, SmallerPassesError, OutOfMemoryAgainError):
        assert pickle.loads(pickle.dumps(kind("why"))).args == ("why",)


def test_a_new_driver_takes_over_what_a_dead_one_had_reserved(policy, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ray.train.v2._internal.execution.scaling_policy.scaling_policy."
        "TrainAutoscalingCoordinatorClient",
        lambda requester: SimpleNamespace(send_resource_request=lambda *_: asked.append(requester)),
    )
    monkeypatch.setattr(scaling, "Watch", lambda: SimpleNamespace(start=lambda: None))
    for run_id in ("first driver", "second driver"):
        policy.after_controller_start(SimpleNamespace(run_id=run_id))
    assert asked == ["train-/runs/x"] * 2


def test_a_run_on_its_own_ray_asks_nobody_for_workers():
    config = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
    policy = scaling.Alone(config, Remote())
    policy.after_controller_start(None)
    decision = policy.make_decision_for_non_running_worker_group()
    assert (decision.num_workers, decision.resources_per_worker) == (2, {"CPU": 1})
    assert [call[0] for call in policy.tracker.calls] == ["mark"]
    running_on = policy.make_decision_for_running_worker_group(running(2), None)
    assert isinstance(running_on, NoopDecision)
    policy.before_controller_abort()


@pytest.mark.parametrize("alone", [True, False])
def test_a_trainer_has_the_policies_of_its_ray(alone, tmp_path, monkeypatch):
    seen = {}

    def controller(self, **kwargs):
        seen.update(kwargs, watcher=os.environ.get(scaling.PREEMPTION_WATCHER))

    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", controller)
    monkeypatch.setattr(
        TorchTrainer,
        "fit",
        lambda self: self._initialize_and_run_controller(
            scaling_policy=create_scaling_policy(self.scaling_config)
        ),
    )
    workers = 2 if alone else (1, 2)
    trainer = scaling.OwnTrainer(
        print,
        tracker=Remote(),
        alone=alone,
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(name="x", storage_path=str(tmp_path)),
    )
    trainer.fit()
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert "DatasetsCallback" not in names
    assert ("PlacementGroupCleanerCallback" in names) is not alone
    assert type(seen["scaling_policy"]) is (scaling.Alone if alone else AskFirst)
    assert isinstance(seen["failure_policy"], Budget)
    assert seen["watcher"] == "0"
    assert scaling.PREEMPTION_WATCHER not in os.environ
