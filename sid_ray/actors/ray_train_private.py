"""Private parts of Ray Train that sid_ray uses: all of them, and no other file names one.

Checked with Ray 2.60, where no public hook asks "may I resize now?" or "was that failure a pause?"
(its elastic policy came with ray-project/ray#60721 and is private). What a run decides is in
scaling.py; here the classes that it builds on get public names for the members that it needs. On
another version ``fit()`` is false and Ray's own policies are used.
tests/actors/test_ray_train_private.py fails where a part changes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.train.torch import TorchTrainer

from sid_ray.ray_setup.ray_private import is_known

try:
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import (
        FixedScalingPolicy,
        NoopDecision,
        ResizeDecision,
    )
    from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

    FOUND = True
except ImportError:
    ElasticScalingPolicy = FixedScalingPolicy = DefaultFailurePolicy = object
    FailureDecision = NoopDecision = ResizeDecision = None
    WorkerGroupStartupTimeoutError = ()
    FOUND = False


def fit() -> bool:
    """Whether this Ray is the one whose private parts this file knows."""
    return FOUND and is_known()


def workers_without_room(error: Any) -> int:
    """For how many workers the cluster found no room in time; 0 where something else failed."""
    failure = getattr(error, "controller_failure", None)
    if not isinstance(failure, WorkerGroupStartupTimeoutError):
        return 0
    return int(failure.num_workers)


class Elastic(ElasticScalingPolicy):
    """Ray's elastic policy: how many workers there may be is counted from ``reserved``."""

    def reserved(self) -> Any:
        """Resources by node that the run may use now; None for not known."""
        raise NotImplementedError

    def _get_reserved_resources(self) -> Any:
        return self.reserved()

    def ask_reserved(self) -> Any:
        """A promise of what Ray has reserved for this run, counted anew: it is else 20 s old."""
        return self._autoscaling_coordinator.get_reserved_resources.remote(
            self._requester_id, recompute=True
        )

    @property
    def worker_resources(self) -> dict[str, float]:
        """What one worker needs."""
        return dict(self.scaling_config._resources_per_worker_not_none)

    def suffices(self, reserved: Any) -> bool:
        """Whether the least number of workers has room."""
        least: int = self.scaling_config.min_workers
        return bool(self._count_possible_workers(reserved) >= least)

    def begin_as(self, name: str) -> None:
        """Registers with whatever shares the cluster out, under a name that each start has.

        Ray's own is new with each start: after a kill -9 of the driver what the dead one had
        reserved would be kept from the next for three minutes.
        """
        super().after_controller_start(SimpleNamespace(run_id=name))


class Fixed(FixedScalingPolicy):
    """A fixed number of workers, asked of nobody.

    Ray's would first start an actor that shares a cluster among several runs, and wait for it.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """No request is sent; without a client none is cancelled either."""

    def _maybe_send_resource_request(self) -> None:
        pass


class Failures(DefaultFailurePolicy):
    """Ray's failure policy, whose count can begin anew."""

    def forget(self) -> None:
        self._worker_group_failures = 0


class Trainer(TorchTrainer):
    """A TorchTrainer with policies of ours, without actors that a run of ours does not need.

    Each such actor is a process that imports Ray Train: 2 CPU seconds of every start. ``alone``:
    on a Ray of the run's own, which nothing outlives.
    """

    alone: bool

    def policies(self, is_elastic: bool) -> dict[str, Any]:
        """``scaling_policy`` and ``failure_policy``, where they are not to be Ray's."""
        raise NotImplementedError

    def _create_default_callbacks(self) -> list[Any]:
        # No Ray Data set is given. The cleaner asks the dashboard, which a Ray of our own has not:
        # at the end of a run it would be waited for, in vain, for 12 s.
        needless: tuple[type, ...] = (DatasetsCallback,)
        if self.alone:
            needless += (PlacementGroupCleanerCallback,)
        return [it for it in super()._create_default_callbacks() if not isinstance(it, needless)]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        is_elastic = isinstance(kwargs["scaling_policy"], ElasticScalingPolicy)
        return super()._initialize_and_run_controller(**kwargs | self.policies(is_elastic))
