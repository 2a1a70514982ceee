"""A sweep from start to end on Ray. One that was stopped goes on when it is started again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sid_ray.checkpoint.find import newest_listed
from sid_ray.config.auto import AUTO
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.data.pipeline import check_shared
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import set_ray_environment
from sid_ray.ray_setup.start import with_ray
from sid_ray.run_folder import RunFolder
from sid_ray.storage.store import Store
from sid_ray.sweep.arithmetic import may_begin
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.notes import WATCHES, Notes, SweepWatch
from sid_ray.sweep.repeat_runs import Runner
from sid_ray.sweep.repeats import read_repeats, repeats_of
from sid_ray.sweep.results import SweepOrder
from sid_ray.sweep.schedulers import LastingAsha, Pbt
from sid_ray.sweep.searcher import LedgerSearch, again, count_of, spec_of
from sid_ray.sweep.segment import ACTORS_OWN, TrialStoppedError
from sid_ray.sweep.space import Space
from sid_ray.sweep.stop import stopping_in_order
from sid_ray.sweep.trainable import FOLDER, SPEC, SweepTask, TrialTrainable
from sid_ray.sweep.trials import RUNNING, spent_of

STATE = "tune"  # Ray Tune's notes in the sweep's folder
DECISIONS = "decisions.jsonl"  # what ASHA answered
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its frame of settings ignores verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: stop.py
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
A_LITTLE = 0.001  # of a node's own resource: keeps trials on the driver's node, takes no CPU
RETRIES = 3  # of a trial whose actor died


def run_sweep(order: SweepOrder, watch: SweepWatch | None = None) -> bool:
    """Runs all trials, or goes on with them; how each ended is in the ledger.

    Returns whether it came to its end: False after Ctrl-C. Raises UserError where the cluster
    cannot hold it.
    """
    folder, base = order.folder, order.base
    watch = WATCHES[str(folder)] = watch or SweepWatch()
    start_ray_for_sweep(base)
    try:
        token = check_shared(Store.at(base.output.folder), base.output.folder, "--output.folder")
        if token is not None:
            token.remove()
        SweepTask(
            name=order.name,
            space=order.text,
            source=order.space.source,
            base=base.to_json(),
            workers=share(base, order.concurrent),
            environment=own_environment(),
        ).write(folder)
        with stopping_in_order(folder, watch.say) as stopped:
            if anything_left(order):
                tuner_of(order).fit()
        if stopped and anything_left(order):
            return False
        account_for_cut_trials(base, folder)
        return repeat_with_seeds(order, watch)
    finally:
        ray.shutdown()


def start_ray_for_sweep(base: DistillConfig) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine for this sweep alone."""
    set_ray_environment()
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with_ray(
        start=lambda: ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            logging_level="warning",
            log_to_driver=False,
        ),
        join=lambda: ray.init(logging_level="warning"),
    )


def share(base: DistillConfig, concurrent: int) -> int:
    """Workers of a trial where so many run at once."""
    has, asked = ray.cluster_resources(), base.resources.use_gpu
    kind = "GPU" if asked is True or (asked == AUTO and has.get("GPU")) else "CPU"
    there = int(has.get(kind, 0))
    if there < concurrent:
        raise UserError(
            f"{concurrent} trials at once need {concurrent} {kind}s, the cluster has {there}: "
            "lower --concurrent"
        )
    return there // concurrent


def own_node() -> str:
    """The resource that only this driver's node has."""
    mine = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == mine)
    names = [name for name in node["Resources"] if name.startswith("node:")]
    return next(name for name in names if "internal" not in name)


def tuner_of(order: SweepOrder) -> tune.Tuner:
    """An experiment of the trials that have not come to their end.

    Always a new one. Tuner.restore (2.60) brings back an empty scheduler, trials with the settings
    of the first start, and not what was begun in the last second; the ledger has it all.
    """
    space, base, folder = order.space, order.base, order.folder
    together = space.scheduler == "pbt"
    # No CPU: Ray's autoscaling coordinator promises trials all CPUs of a node, free or not. A
    # population's trials all exist from the start: there the places limit how many run at once.
    taken = int(1e4 / order.concurrent) / 1e4 if together else A_LITTLE
    place = tune.PlacementGroupFactory([{own_node(): taken}])
    shutil.rmtree(folder / STATE, ignore_errors=True)
    return tune.Tuner(
        tune.with_resources(TrialTrainable, place),
        param_space=population_of(order) if together else {},
        tune_config=tune.TuneConfig(
            search_alg=None if together else LedgerSearch(order),
            num_samples=1 if together else -1,  # the searcher says when it is enough
            scheduler=scheduler_of(space, base, folder),
            reuse_actors=True,  # each imports for seconds, and holds nothing between two steps
            trial_dirname_creator=dirname_of,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            callbacks=[Notes(str(folder), space)],
            verbose=0,
        ),
    )


def dirname_of(trial: object) -> str:
    return str(trial.trial_id)  # type: ignore[attr-defined]


def population_of(order: SweepOrder) -> dict:
    """All trials of a population that have not come to their end: they exist together.

    They are in the ledger afterwards.
    """
    ledger = Ledger(order.folder)
    while len(told := ledger.trials()) < order.space.trials:
        spec = spec_of(order, list(told.values()))
        ledger.begin(spec.trial, spec.run, spec.point)
    left = [one for trial in told.values() if (one := again(order.space, trial))]
    return {SPEC: tune.grid_search([one._asdict() for one in left]), FOLDER: str(order.folder)}


def anything_left(order: SweepOrder) -> bool:
    """Whether a trial has not come to its end, or one more is to begin."""
    space, told = order.space, Ledger(order.folder).trials().values()
    if any(again(space, trial) for trial in told):
        return True
    return len(told) < count_of(space, order.base) and may_begin(space, spent_of(told))


def scheduler_of(space: Space, base: DistillConfig, folder: Path) -> TrialScheduler:
    """Ray's scheduler, which judges by the first metric."""
    if space.scheduler == "pbt":
        return Pbt(str(folder), space, base)
    if space.scheduler == "asha":
        return LastingAsha(space.budget, space.metrics[0], folder / DECISIONS)
    return FIFOScheduler()


def repeat_with_seeds(order: SweepOrder, watch: SweepWatch) -> bool:
    """Best trial and recipe with each of the space's seeds. Returns whether it came to the end."""
    folder, told = order.folder, Ledger(order.folder).trials().values()
    found = repeats_of(order.name, order.space, order.base, told, read_repeats(folder))
    left = [repeat for repeat in found if not repeat.ended]
    if not left:
        return True
    seeds = ", ".join(map(str, order.space.seeds))
    watch.say(f"best trial and recipe with seeds {seeds}: {len(left)} runs more")
    runner = Runner(
        order,
        ray.get_runtime_context().gcs_address,
        share(order.base, order.concurrent),
        own_environment(),
        watch.say,
        watch.show,
    )
    try:
        with stopping_in_order(folder, watch.say):
            runner.run(left)
    except (KeyboardInterrupt, TrialStoppedError):
        return False
    return True


def own_environment() -> dict[str, str]:
    """What Ray sets otherwise for an actor without CPUs, as the user has it."""
    return {key: os.environ[key] for key in ACTORS_OWN if key in os.environ}


def account_for_cut_trials(base: DistillConfig, folder: Path) -> None:
    """Ends in the ledger what Ray Tune did not bring to an end, with the images that it cost."""
    ledger = Ledger(folder)
    for trial in ledger.trials().values():
        if trial.state != RUNNING:
            continue
        run = RunFolder.of(replace(base, output__run=trial.run))
        there = newest_listed(run.store)
        seen = there[1].images_seen if there else trial.images_seen
        why = "Ray Tune ended without it"
        ledger.end(trial.name, "lost", why, seen)
