"""Growing, shrinking and failing as sid_ray wants it.

Ray Train's own elasticity (2.60) kills the workers where they stand when it resizes: the steps
since the last checkpoint are lost. It sees reservations up to 20 s late and counts draining nodes.
Here a planned resize is a question first: the policy asks for a pause through the tracker, the
workers save and stop by themselves (PausedError), and the controller starts them again like after
a failure, on what is there now. Failures are budgeted in a row: a new checkpoint fills the budget.

On another version of Ray, ``ray_train_private.fit`` says so and the stock policies are used: the
numbers stay the same, more steps are repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train

from sid_ray.actors.own_ray import environment
from sid_ray.actors.ray_train_private import (
    Elastic,
    FailureDecision,
    Failures,
    Fixed,
    NoopDecision,
    ResizeDecision,
    Trainer,
    workers_without_room,
)
from sid_ray.actors.signals import (
    OutOfMemoryAgainError,
    PausedError,
    SmallerPassesError,
    failed_in_words,
    lost_peer,
)
from sid_ray.actors.watch import LOST_S, Watch, answering, elsewhere
from sid_ray.ray_setup.ray_private import draining_nodes

CALL_TIMEOUT_S = 5.0
IDLE_S = 0.2
LEAVING = "a node is about to go"
# An actor of Ray's that would look for drains; AskFirst looks for them itself.
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"

logger = logging.getLogger(__name__)


def without_evaluators(
    reserved: Mapping[str, Mapping[str, float]], beside: Mapping[str, float], node: str
) -> dict[str, dict[str, float]]:
    """What is left of resources by node when the evaluator has its own, on ``node``.

    Where it has no place yet, the first node that can give it one keeps it free.
    """
    left = {name: dict(has) for name, has in reserved.items()}
    fitting = [
        name for name, has in left.items() if all(has.get(k, 0) >= v for k, v in beside.items())
    ]
    seat = node if node in left else next(iter(fitting), "")
    for kind, amount in beside.items():
        if kind in left.get(seat, {}):
            left[seat][kind] = max(0.0, left[seat][kind] - amount)
    return left


def places(workers: int, resources: Mapping[str, float]) -> str:
    """'2 workers (CPU 1, GPU 1 each)'."""
    each = ", ".join(f"{kind} {amount:g}" for kind, amount in sorted(resources.items()))
    return f"{workers} worker{'s' * (workers != 1)} ({each}{' each' * (workers != 1)})"


class AskFirst(Elastic):
    """Elastic, on fresh reservations without draining nodes; asks the workers to pause first.

    ``beside``: resources that the run's own evaluator takes. Ray counts places from what nodes have
    in all, so it would promise these to workers, too, and try to start them without end.
    """

    LOOK_S = 1.0  # between two looks at what is reserved

    def __init__(
        self, scaling_config: Any, tracker: Any, run: str, beside: Mapping[str, float] | None = None
    ):
        super().__init__(scaling_config)
        self.tracker, self._run, self._beside = tracker, run, dict(beside or {})
        self._waits = False  # for nodes; told once
        self._asked_at, self._found = float("-inf"), None  # type: Any, Any
        self._silent: set[str] = set()
        self._watch: Watch | None = None  # in the controller's process

    def after_controller_start(self, train_run_context: Any) -> None:
        self._watch = Watch()
        self._watch.start()
        self.begin_as(self._run)

    def reserved(self) -> Any:
        if time.monotonic() - self._asked_at < self.LOOK_S:
            return self._found
        try:
            asked = self.ask_reserved()
            leaving = draining_nodes()
            nodes = ray.nodes()
            there = answering(nodes)
            self._silent = {node["NodeID"] for node in nodes if node["Alive"]} - there
            there -= leaving
            reserved = ray.get(asked, timeout=CALL_TIMEOUT_S)
            self._found = {node: has for node, has in reserved.items() if node in there}
            if self._beside:
                seat = ray.get(self.tracker.evaluators_node.remote(), timeout=CALL_TIMEOUT_S)
                self._found = without_evaluators(self._found, self._beside, seat)
        except Exception:
            logger.warning("reservations cannot be read: not resizing now", exc_info=True)
            self._found = None
        self._asked_at = time.monotonic()
        return self._found

    def make_decision_for_non_running_worker_group(self) -> Any:
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            if not self._waits:
                least = places(self.scaling_config.min_workers, self.worker_resources)
                self.tracker.set_phase.remote(f"waiting for nodes: room for {least}")
            time.sleep(IDLE_S)  # the controller would ask again at once
        else:
            self.tracker.mark.remote("reserve", time.time())
        self._waits = isinstance(decision, NoopDecision)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        self._give_up_lost(worker_group_state.workers)
        if self._leaving(worker_group_state.workers):
            self.tracker.ask_pause.remote(LEAVING)
            return NoopDecision()
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if isinstance(decision, ResizeDecision):
            more = decision.num_workers > worker_group_state.num_workers
            self.tracker.ask_pause.remote("nodes have come" if more else LEAVING)
        return NoopDecision()

    def _leaving(self, workers: Any) -> bool:
        """Whether a worker's node is about to go: asked each time, however rarely a resize is."""
        try:
            leaving = draining_nodes()
        except Exception:  # the head is silent, or restarts: asked again in a second
            logger.warning("draining nodes cannot be read", exc_info=True)
            return False
        return any(worker.metadata.node_id in leaving for worker in workers)

    def _give_up_lost(self, workers: Any) -> None:
        """Ends, for Ray, workers whose node is silent: else it waits with all others for them.

        Not where too few would be left: then nothing is gained, and it may be this node's network.
        """
        lost = self._watch.lost if self._watch else set()
        gone = [worker for worker in workers if worker.metadata.node_id in lost]
        left = self.reserved() if gone else None
        if left is None or not self.suffices(left):
            return
        for host in sorted({worker.metadata.hostname for worker in gone}):
            self.tracker.event.remote(f"{host} has not answered for {LOST_S:.0f} s: without it")
        for worker in gone:
            ray.kill(worker.actor)

    def on_controller_start_worker_group(self, **_: Any) -> dict[str, str] | None:
        """Labels of the nodes that workers may be on: Ray may take a silent one for alive."""
        return elsewhere(self._silent)


class Budget(Failures):
    """Ray's failure policy, in which pauses are free and a new checkpoint fills the budget.

    Smaller passes after a lack of memory are free, too; a second lack is the end.
    """

    def __init__(self, failure_config: Any, tracker: Any):
        super().__init__(failure_config)
        self.tracker, self._stored = tracker, -1

    def make_decision(self, training_failed_error: Any) -> Any:
        failures = getattr(training_failed_error, "worker_failures", None) or {}
        paused = [error for error in failures.values() if isinstance(error, PausedError)]
        reason = str(paused[0]) if paused else failure_in_words(training_failed_error, failures)
        told = self.tracker.stopped.remote(reason, bool(paused), time.time())
        if paused or any(isinstance(error, SmallerPassesError) for error in failures.values()):
            return FailureDecision.RETRY
        if any(isinstance(error, OutOfMemoryAgainError) for error in failures.values()):
            return FailureDecision.RAISE
        if workers := workers_without_room(training_failed_error):
            self.tracker.set_phase.remote(f"waiting for room for {workers} workers")
        try:
            stored = ray.get(told, timeout=CALL_TIMEOUT_S)
        except ray.exceptions.RayError:
            stored = self._stored
        if stored > self._stored:
            self._stored = stored
            self.forget()
        return super().make_decision(training_failed_error)


def failure_in_words(error: BaseException, failures: Mapping[int, BaseException]) -> str:
    """What failed, in a few words: a person reads it above the progress line.

    A rank's own failure comes first: on NCCL it may end the processes of its peers.
    """
    deaths = {rank: e for rank, e in failures.items() if hasattr(e, "health_check_failure")}
    for rank, own in failures.items():
        if rank not in deaths and not lost_peer(own):
            return failed_in_words(rank, own)
    if deaths:  # what the others say is that they lost their peer
        return f"worker {', '.join(map(str, deaths))} died"
    if failures:
        return "a worker was lost"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]


class Alone(Fixed):
    """A fixed number of workers on a Ray of the run's own."""

    def __init__(self, scaling_config: Any, tracker: Any):
        super().__init__(scaling_config)
        self.tracker = tracker

    def make_decision_for_non_running_worker_group(self) -> Any:
        self.tracker.mark.remote("reserve", time.time())
        return super().make_decision_for_non_running_worker_group()


class OwnTrainer(Trainer):
    """A TorchTrainer with these policies.

    ``alone``: on a Ray of the run's own. ``beside``: what the run's evaluator takes.
    """

    def __init__(
        self,
        *args: Any,
        tracker: Any,
        alone: bool,
        beside: Mapping[str, float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.tracker, self.alone, self.beside = tracker, alone, beside

    def policies(self, is_elastic: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "failure_policy": Budget(self.run_config.failure_config, self.tracker)
        }
        if is_elastic:
            run = f"{self.run_config.storage_path}/{self.run_config.name}"
            found["scaling_policy"] = AskFirst(self.scaling_config, self.tracker, run, self.beside)
        elif self.alone:
            found["scaling_policy"] = Alone(self.scaling_config, self.tracker)
        return found

    def fit(self) -> Any:
        with environment(**{PREEMPTION_WATCHER: "0"}):
            return super().fit()
