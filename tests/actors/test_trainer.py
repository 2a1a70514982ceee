"""What the driver decides before Ray Train starts; the cluster is faked."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sid_ray.actors import proof, trainer
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
    assert shown.lines == ["1 workers need 1 CPUs, the cluster has 0: waiting for nodes"]
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match="4 workers need 4 CPUs, the cluster has 0: lower"):
        trainer.check_resources(DIGITS, shown)


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
