"""What the driver decides before Ray Train starts; the cluster is faked."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sid_ray.actors import beside, own_ray, proof, trainer
from sid_ray.actors.tracker import Board
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.planning import fit
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunFolder, RunRecord
from sid_ray.storage.store import Store
from sid_ray.training.assemble import Start
from tests.commands.test_plan import straight

DIGITS = replace(recipe("digits-sid"), resources__num_workers=4)


@pytest.fixture
def shown(monkeypatch):
    """What was shown; a cluster of GPUs of 8 GiB is joined."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    fake = SimpleNamespace(remote=lambda: 8.0)
    monkeypatch.setattr(trainer, "gpu_memory_gib", fake)
    monkeypatch.setattr(trainer.ray, "get", lambda value: value)
    lines: list[str] = []
    return SimpleNamespace(lines=lines, update=lambda phase, metrics, events: lines.extend(events))


def test_workers_come_and_go_on_a_cluster_only(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert trainer.workers_of(DIGITS) == (4, 4)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    assert trainer.workers_of(DIGITS) == (1, 4)
    assert trainer.workers_of(replace(DIGITS, resources__min_workers=3)) == (3, 4)


def test_nodes_that_may_come_are_waited_for(shown, monkeypatch):
    monkeypatch.setattr(trainer.ray, "cluster_resources", lambda: {"CPU": 0.0})
    trainer.check_resources(DIGITS, shown)
    assert shown.lines == ["1 worker needs 1 CPU, the cluster has 0: waiting for nodes"]
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match="4 workers need 4 CPUs, the cluster has 0: lower"):
        trainer.check_resources(DIGITS, shown)


def resources(monkeypatch, **found):
    monkeypatch.setattr(trainer.ray, "cluster_resources", lambda: found)


BESIDE = replace(
    DIGITS, resources__num_workers=8, resources__use_gpu=True, evaluation__resources="GPU=1"
)


def test_the_evaluators_resources_are_counted_beside_the_workers(shown, monkeypatch):
    """On a Ray of the run's own, which never grows: the workers would wait without end."""
    resources(monkeypatch, CPU=16.0, GPU=8.0)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError) as refused:
        trainer.check_resources(BESIDE, shown)
    assert str(refused.value) == (
        "8 workers and the evaluator (evaluation.resources GPU=1) need 9 GPUs, the cluster has 8: "
        "lower --resources.num-workers, or leave --evaluation.resources empty"
    )
    trainer.check_resources(replace(BESIDE, resources__num_workers=7), shown)
    trainer.check_resources(replace(BESIDE, evaluation__resources=""), shown)
    trainer.check_resources(replace(BESIDE, evaluation__every=0), shown)
    assert shown.lines == []
    with pytest.raises(UserError, match="evaluator=1"):
        trainer.check_resources(replace(DIGITS, evaluation__resources="evaluator=1"), shown)


def test_a_cluster_is_told_what_is_waited_for(shown, monkeypatch):
    resources(monkeypatch, CPU=16.0, GPU=8.0)
    trainer.check_resources(BESIDE, shown)  # fewer workers will do there
    assert shown.lines == []
    trainer.check_resources(replace(BESIDE, resources__min_workers=8), shown)
    assert shown.lines == [
        "8 workers and the evaluator (evaluation.resources GPU=1) need 9 GPUs, the cluster has 8: "
        "waiting for nodes"
    ]


@pytest.mark.parametrize(("asked", "cpus"), [("CPU=3", 7), ("", 4), ("CPU=40", 8)])
def test_a_ray_of_ones_own_has_places_for_workers_and_evaluator(monkeypatch, asked, cpus):
    """A CPU of Ray's is a place; the evaluator's are no more than the machine has."""
    started = []
    monkeypatch.setattr(beside.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(trainer, "set_ray_environment", lambda: None)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/somewhere")
    monkeypatch.setattr(trainer, "with_ray", lambda start, join: start())
    monkeypatch.setattr(own_ray.ray, "init", lambda **options: started.append(options["num_cpus"]))
    trainer.start_ray(replace(DIGITS, evaluation__resources=asked))
    assert started == [cpus]


def test_memory_decides_how_far_a_run_may_shrink(shown, monkeypatch):
    asked = []

    def fits(config, description, workers, memory_gib, text):
        asked.append((workers, memory_gib))
        return 3

    monkeypatch.setattr(trainer, "fewest_that_fit", fits)
    start = Start(Path(), teacher_of(DIGITS))
    assert (
        trainer.with_workers_that_fit(DIGITS, start, shown) == DIGITS
    )  # on CPUs nothing is counted
    on_gpus = replace(DIGITS, resources__use_gpu=True)
    assert trainer.with_workers_that_fit(on_gpus, start, shown).resources.min_workers == 3
    assert asked == [((1, 4), 8.0)]
    assert shown.lines == ["needs 3 GPUs of 8 GiB: will not shrink further"]


def test_a_run_that_does_not_fit_is_refused_before_it_starts(shown, monkeypatch):
    monkeypatch.setattr(trainer, "gpu_memory_gib", SimpleNamespace(remote=lambda: 0.01))
    monkeypatch.setattr(fit, "trace", straight)  # refusals trace at many sizes: seconds
    on_gpus = replace(DIGITS, resources__use_gpu=True)
    with pytest.raises(UserError, match="fits"):
        trainer.with_workers_that_fit(on_gpus, Start(Path(), teacher_of(DIGITS)), shown)


def test_another_ray_falls_back_to_its_own_elasticity_with_a_warning(shown, monkeypatch):
    assert trainer.own_scaling(DIGITS, shown)
    assert not trainer.own_scaling(replace(DIGITS, resources__scaling="ray"), shown)
    assert shown.lines == []
    monkeypatch.setattr(trainer.ray_train_private, "fit", lambda: False)
    assert not trainer.own_scaling(DIGITS, shown)
    assert "its own elasticity is used" in shown.lines[0]


def test_checkpoints_go_to_the_runs_disk_first_where_all_is_one_machine(monkeypatch):
    run = Path("/runs/x")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert trainer.local_folder(DIGITS, run) == "/runs/x/.local"
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    assert trainer.local_folder(DIGITS, run) == ""
    named = replace(DIGITS, output__local_folder="/fast", output__run="x")
    assert trainer.local_folder(named, run) == "/fast"


@pytest.mark.parametrize("cluster", [True, False])
def test_what_the_workers_refuse_is_the_users_to_mend(monkeypatch, tmp_path, cluster):
    if cluster:
        monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    else:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(proof, "this_host", lambda: ("a", "host-a"))
    monkeypatch.setattr(trainer.ray, "get", lambda value: value)
    board = Board(refused="/runs/x is not one folder for all hosts")
    answers = {"board": lambda: board, "finish": lambda status: ""}
    remote = {name: SimpleNamespace(remote=does) for name, does in answers.items()}
    monkeypatch.setattr(trainer, "start_tracker", lambda *_: SimpleNamespace(**remote))
    monkeypatch.setattr(trainer, "start_evaluator", lambda *_: None)
    monkeypatch.setattr(trainer, "FitThread", lambda _: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(trainer, "follow", lambda *_: None)
    given = []
    monkeypatch.setattr(
        trainer, "build_trainer", lambda config, settings, _: given.append(settings)
    )
    run = RunFolder(Store.at(tmp_path), tmp_path)
    with pytest.raises(UserError, match="not one folder"):
        trainer.run_actors(
            DIGITS, Start(Path(), teacher_of(DIGITS)), run, RunRecord(""), None, trainer.Clock(0.0)
        )
    assert (given[0].seat is not None) == cluster  # one machine is asked nothing
    assert list(tmp_path.iterdir()) == []  # the driver's token is gone
