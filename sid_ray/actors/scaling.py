"""Growing, shrinking and failing as sid_ray wants it, on private parts of Ray (own_ray.py too).

Ray Train's own elasticity (2.60) kills the workers where they stand when it resizes: the steps
since the last checkpoint are lost. It sees reservations up to 20 s late and counts draining nodes.
Here a planned resize is a question first: the policy asks for a pause through the tracker, the
workers save and stop by themselves (PausedError), and the controller starts them again like after
a failure, on what is there now. Failures are budgeted in a row: a new checkpoint fills the budget.

On another version of Ray, ``private_parts_fit`` says so and the stock policies are used: the
numbers stay the same, more steps are repeated.
"""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from sid_ray.actors.own_ray import VERSION, environment
from sid_ray.actors.signals import PausedError
from sid_ray.actors.watch import LOST_S, Watch, answering, elsewhere

CALL_TIMEOUT_S = 5.0
IDLE_S = 0.2
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was abort")

logger = logging.getLogger(__name__)

try:
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import (
        FixedScalingPolicy,
        NoopDecision,
        ResizeDecision,
    )
    from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

    PARTS_FOUND = True
except ImportError:
    ElasticScalingPolicy = FixedScalingPolicy = DefaultFailurePolicy = object
    PARTS_FOUND = False


def private_parts_fit() -> bool:
    """Whether this Ray is the one whose private parts this file knows."""
    return PARTS_FOUND and ray.__version__.startswith(VERSION)


def preempted(own_scaling: bool) -> bool:
    """Whether one of the run's nodes is about to go. Without the private parts a collective."""
    if own_scaling:
        return get_train_context().preemption_context.preemption_info is not None
    return ray.train.get_preemption_info() is not None


class AskFirst(ElasticScalingPolicy):
    """Elastic, on fresh reservations without draining nodes; asks the workers to pause first."""

    def __init__(self, scaling_config: Any, tracker: Any, run: str):
        super().__init__(scaling_config)
        self.tracker, self._run = tracker, run
        self._asked_at, self._found = float("-inf"), None  # type: Any, Any
        self._silent: set[str] = set()
        self._watch: Watch | None = None  # in the controller's process

    def after_controller_start(self, train_run_context: Any) -> None:
        self._watch = Watch()
        self._watch.start()
        # Ray's name for who asks is new with each start: after a kill -9 of the driver what the
        # dead one had reserved would be kept from the next for three minutes.
        super().after_controller_start(SimpleNamespace(run_id=self._run))

    def _get_reserved_resources(self) -> Any:
        if time.monotonic() - self._asked_at < self.GET_RESERVED_RESOURCES_INTERVAL_S:
            return self._found
        try:
            asked = self._autoscaling_coordinator.get_reserved_resources.remote(
                self._requester_id, recompute=True
            )
            leaving = ray._private.state.state.get_draining_nodes()
            nodes = ray.nodes()
            there = answering(nodes)
            self._silent = {node["NodeID"] for node in nodes if node["Alive"]} - there
            there -= set(leaving)
            reserved = ray.get(asked, timeout=CALL_TIMEOUT_S)
            self._found = {node: has for node, has in reserved.items() if node in there}
        except Exception:
            logger.warning("reservations cannot be read: not resizing now", exc_info=True)
            self._found = None
        self._asked_at = time.monotonic()
        return self._found

    def make_decision_for_non_running_worker_group(self) -> Any:
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(IDLE_S)  # the controller would ask again at once
        else:
            self.tracker.mark.remote("reserve", time.time())
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        self._give_up_lost(worker_group_state.workers)
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if isinstance(decision, ResizeDecision):
            more = decision.num_workers > worker_group_state.num_workers
            why = "nodes have come" if more else "a node is about to go"
            self.tracker.ask_pause.remote(why)
        return NoopDecision()

    def _give_up_lost(self, workers: Any) -> None:
        """Ends, for Ray, workers whose node is silent: else it waits with all others for them.

        Not where too few would be left: then nothing is gained, and it may be this node's network.
        """
        lost = self._watch.lost if self._watch else set()
        gone = [worker for worker in workers if worker.metadata.node_id in lost]
        left = self._get_reserved_resources() if gone else None
        if left is None or self._count_possible_workers(left) < self.scaling_config.min_workers:
            return
        for host in sorted({worker.metadata.hostname for worker in gone}):
            self.tracker.event.remote(f"{host} has not answered for {LOST_S:.0f} s: without it")
        for worker in gone:
            ray.kill(worker.actor)

    def on_controller_start_worker_group(self, **_: Any) -> dict[str, str] | None:
        """Labels of the nodes that workers may be on: Ray may take a silent one for alive."""
        return elsewhere(self._silent)


class Budget(DefaultFailurePolicy):
    """Ray's failure policy, in which pauses are free and a new checkpoint fills the budget."""

    def __init__(self, failure_config: Any, tracker: Any):
        super().__init__(failure_config)
        self.tracker, self._stored = tracker, -1

    def make_decision(self, training_failed_error: Any) -> Any:
        failures = getattr(training_failed_error, "worker_failures", None) or {}
        paused = [error for error in failures.values() if isinstance(error, PausedError)]
        reason = str(paused[0]) if paused else first_line(training_failed_error, failures)
        told = self.tracker.stopped.remote(reason, bool(paused), time.time())
        if paused:
            return FailureDecision.RETRY
        try:
            stored = ray.get(told, timeout=CALL_TIMEOUT_S)
        except ray.exceptions.RayError:
            stored = self._stored
        if stored > self._stored:
            self._stored, self._worker_group_failures = stored, 0
        return super().make_decision(training_failed_error)


def first_line(error: BaseException, failures: dict) -> str:
    """What failed, in a few words: a person reads it above the progress line."""
    deaths = {rank: e for rank, e in failures.items() if hasattr(e, "health_check_failure")}
    if deaths:  # what the others say is that they lost their peer
        return f"worker {', '.join(map(str, deaths))} died"
    rank, cause = next(iter(failures.items()), (None, error))
    if any(text in str(cause) for text in LOST_PEER):
        return "a worker was lost"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"
    return (text if rank is None else f"worker {rank} failed: {text}")[:200]


class Alone(FixedScalingPolicy):
    """A fixed number of workers on a Ray of the run's own, asked of nobody.

    Ray's would first start an actor that shares a cluster among several runs, and wait for it.
    """

    def __init__(self, scaling_config: Any, tracker: Any):
        super().__init__(scaling_config)
        self.tracker = tracker

    def after_controller_start(self, train_run_context: Any) -> None:
        """No request is sent; without a client none is cancelled either."""

    def _maybe_send_resource_request(self) -> None:
        pass

    def make_decision_for_non_running_worker_group(self) -> Any:
        self.tracker.mark.remote("reserve", time.time())
        return super().make_decision_for_non_running_worker_group()


class OwnTrainer(TorchTrainer):
    """A TorchTrainer with these policies, without actors that a run of ours does not need.

    Each such actor is a process that imports Ray Train: 2 CPU seconds of every start. ``alone``:
    on a Ray of the run's own. No node is drained there, and nothing outlives the run.
    """

    def __init__(self, *args: Any, tracker: Any, alone: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._tracker, self._alone = tracker, alone

    def _create_default_callbacks(self) -> list[Any]:
        # No Ray Data set is given. The cleaner asks the dashboard, which a Ray of our own has not:
        # at the end of a run it would be waited for, in vain, for 12 s.
        needless: tuple[type, ...] = (DatasetsCallback,)
        if self._alone:
            needless += (PlacementGroupCleanerCallback,)
        return [it for it in super()._create_default_callbacks() if not isinstance(it, needless)]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        if isinstance(kwargs["scaling_policy"], ElasticScalingPolicy):
            run = f"{self.run_config.storage_path}/{self.run_config.name}"
            kwargs["scaling_policy"] = AskFirst(self.scaling_config, self._tracker, run)
        elif self._alone:
            kwargs["scaling_policy"] = Alone(self.scaling_config, self._tracker)
        kwargs["failure_policy"] = Budget(self.run_config.failure_config, self._tracker)
        changed = {ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0"} if self._alone else {}
        with environment(**changed):
            return super()._initialize_and_run_controller(**kwargs)
