"""What the driver decides before Ray Train starts; the cluster is faked."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sid_ray.actors import beside, found_nodes, own_ray, proof, trainer
from sid_ray.actors.tracker import Board
from sid_ray.config.distill_config import DistillConfig, replace, with_plain_resources
from sid_ray.device.found import Gpu
from sid_ray.errors import UserError
from sid_ray.planning import fit, here
from sid_ray.planning.choice import ResourceChoice
from sid_ray.planning.choose import choose_measured
from sid_ray.planning.fit import GIB, Gpus, Planner
from sid_ray.planning.machine import Machine, Node
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunFolder, RunRecord
from sid_ray.storage.store import Store
from sid_ray.training.assemble import Start
from tests.commands.test_plan import straight

ASKED = recipe("digits-sid")  # all of its resources are auto
DIGITS = replace(with_plain_resources(ASKED), resources__num_workers=4)


@pytest.fixture
def shown(monkeypatch):
    """What was shown; a cluster is joined."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.setattr(fit, "kept_trace", straight)  # a trace takes seconds
    lines: list[str] = []
    return SimpleNamespace(lines=lines, update=lambda phase, metrics, events: lines.extend(events))


GPU = {"CPU": 8.0, "GPU": 1.0, "memory": 64.0 * GIB, "node:1": 1.0, "accelerator_type:A": 1.0}


def cluster(monkeypatch, nodes, most=None, memory_gib=8.0):
    """Ray as a cluster of these nodes answers for it."""
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            total[name] = total.get(name, 0) + amount
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    look = SimpleNamespace(remote=lambda: ("A", int(memory_gib * GIB)))
    monkeypatch.setattr(found_nodes, "look_at_gpu", SimpleNamespace(options=lambda **_: look))
    monkeypatch.setattr(found_nodes, "most_of_cluster", lambda: most or {})
    monkeypatch.setattr(found_nodes.ray, "get", lambda value: value)
    monkeypatch.setattr(found_nodes.ray, "wait", lambda refs, **_: (refs, []))
    monkeypatch.setattr(found_nodes.ray, "nodes", lambda: alive)
    monkeypatch.setattr(found_nodes.ray, "cluster_resources", lambda: total)
    started: list[DistillConfig] = []
    monkeypatch.setattr(trainer, "start_ray", started.append)
    return started


def test_waiting_for_kinds_of_gpus_that_are_busy_says_which(monkeypatch):
    kinds = {"accelerator_type:A": 1.0, "accelerator_type:B": 1.0, "GPU": 2.0}
    cluster(monkeypatch, [kinds])
    names = iter("AB")
    look = SimpleNamespace(remote=lambda: (next(names), 1))
    monkeypatch.setattr(found_nodes, "look_at_gpu", SimpleNamespace(options=lambda **_: look))
    said: list[str] = []
    assert found_nodes.gpus_of_cluster(said.append).keys() == kinds.keys() - {"GPU"}
    assert said == []
    names = iter("AB")
    monkeypatch.setattr(found_nodes.ray, "wait", lambda refs, **_: (refs[:1], refs[1:]))
    found_nodes.gpus_of_cluster(said.append)
    assert said == ["waiting for a free GPU of kind B, to see what it is"]


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


START = Start(Path(), teacher_of(ASKED))


def test_a_start_on_a_cluster_takes_what_the_plan_says(shown, monkeypatch):
    """Through the driver's own code, against `sid-ray plan`'s machine of the same nodes."""
    cluster(monkeypatch, [GPU, GPU])
    choice = trainer.chosen_and_started(ASKED, START, shown)
    node = Node(cpus=8, gpus=1, gpu_bytes=8 * GIB)
    planned = choose_measured(ASKED, START.description, Machine((node, node), fixed=False))
    assert (choice.config, choice.sizes) == (planned.config, planned.sizes)
    assert shown.lines == [planned.line]
    resources = choice.config.chosen
    assert (resources.use_gpu, resources.min_workers, resources.num_workers) == (True, 1, 4)
    assert choice.line.startswith("2 of up to 4 workers, a GPU of 8 GiB each, ZeRO-0")


def test_a_start_on_this_machine_takes_what_the_plan_says(shown, monkeypatch):
    """Nothing is started before it is chosen: Ray has a place for each worker then."""
    monkeypatch.delenv("RAY_ADDRESS")
    started = cluster(monkeypatch, [{"CPU": 8.0, "GPU": 2.0}])
    gpus = [Gpu(index, "A", 8 * GIB, (9, 0)) for index in range(2)]
    monkeypatch.setattr(here, "gpus_here", lambda: gpus)
    choice = trainer.chosen_and_started(ASKED, START, shown)
    planned = choose_measured(ASKED, START.description, Machine.alike(1, 2, 8))
    assert started == [choice.config] == [planned.config]
    assert shown.lines == [planned.line]
    assert choice.config.chosen.num_workers == 2


def test_a_cluster_without_gpus_that_may_bring_some_is_waited_for(shown, monkeypatch):
    cluster(monkeypatch, [{"CPU": 2.0}], most={"GPU": 3, "CPU": 24})
    nodes = [{"Alive": True, "Resources": GPU}]  # when the look at its GPU has come back
    monkeypatch.setattr(found_nodes.ray, "nodes", lambda: nodes)
    choice = trainer.chosen_and_started(ASKED, START, shown)
    assert shown.lines[0] == "no node with a GPU is there yet: waiting for one"
    assert choice.config.chosen.use_gpu and choice.config.chosen.num_workers == 3


def test_a_cluster_of_cpus_has_a_worker_on_each(shown, monkeypatch):
    cluster(monkeypatch, [{"CPU": 2.0}])
    choice = trainer.chosen_and_started(ASKED, START, shown)
    resources = choice.config.chosen
    assert (resources.use_gpu, resources.min_workers, resources.num_workers) == (False, 1, 4)


def test_memory_decides_how_far_a_run_may_shrink(shown, monkeypatch):
    asked = replace(ASKED, resources__zero_stage=2, resources__micro_batch=1)
    full = [Planner(START.description).peak(asked, Gpus.of(n, 8)).total / GIB for n in (2, 3)]
    cluster(monkeypatch, [GPU] * 4, memory_gib=sum(full) / 2)
    choice = trainer.chosen_and_started(asked, START, shown)
    assert choice.config.chosen.min_workers == 3
    assert ", 3 at least, ZeRO-2" in choice.line


def test_a_run_that_does_not_fit_is_refused_before_it_starts(shown, monkeypatch):
    started = cluster(monkeypatch, [GPU] * 4, memory_gib=0.01)
    with pytest.raises(UserError, match="digits-sid does not fit on 4 GPUs"):
        trainer.chosen_and_started(ASKED, START, shown)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(here, "gpus_here", lambda: [Gpu(0, "A", GIB // 100, (9, 0))])
    started.clear()
    with pytest.raises(UserError, match="digits-sid does not fit on 1 GPU"):
        trainer.chosen_and_started(ASKED, START, shown)
    assert started == []


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
            ResourceChoice(DIGITS, ""), START, run, RunRecord(""), None, trainer.Clock(0.0)
        )
    assert (given[0].seat is not None) == cluster  # one machine is asked nothing
    assert list(tmp_path.iterdir()) == []  # the driver's token is gone
