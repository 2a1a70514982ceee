"""The sweep's own run in MLflow, and the trials' runs below it."""

import json
import shutil
from collections import ChainMap

import mlflow
import pytest

from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunRecord, write_record
from sid_ray.storage.store import Store
from sid_ray.sweep import parent as parents
from sid_ray.sweep.parent import Parent, after_event, described, params_of, record_of
from sid_ray.sweep.results import read_sweep
from tests.support.tracking import MadeUpRun, empty_store
from tests.support.waiting import wait_for
from tests.sweep.ledgers import asha_ledger, lsg_ledger, with_seeds
from tests.sweep.spaces import space_of

FD = "FD-digits-cnn"


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def begun(folder, name: str, run_id: str | None) -> None:
    """A trial's run folder, beside the sweep's."""
    config = replace(recipe("digits-sid"), output__run=name, output__folder=str(folder))
    (folder / name).mkdir(exist_ok=True)
    write_record(Store.at(folder / name), RunRecord(config.to_json(), run_id))


def tags(run: MadeUpRun) -> dict[str, str]:
    return dict(ChainMap(*[v["tags"] for kind, v in reversed(run.others) if kind == "tags"]))


def children(run: MadeUpRun) -> list[str]:
    return [values["run_id"] for kind, values in run.others if kind == "child"]


def test_what_is_told_of_a_sweep(tmp_path):
    ledger = asha_ledger(tmp_path / "made", state="running")
    sweep, run = read_sweep(ledger.folder), MadeUpRun()
    begun(tmp_path, "made-00000", "id0")
    begun(tmp_path, "made-00001", None)  # MLflow has not been reached by it
    parent = Parent(sweep, run=run)
    parent.tell(sweep)
    begun(tmp_path, "made-00001", "id1")
    parent.tell(sweep)
    assert parent._tracking.finish(20) == ""
    best = min(t.last(FD) for t in sweep.trials.values() if t.last(FD))
    assert run.told[f"best/{FD}", sweep.images_spent] == best
    assert run.told["images_spent", sweep.images_spent] == sweep.images_spent
    assert run.told["trials/diverged", sweep.events] == 1
    assert sum(n for (name, _), n in run.told.items() if name.startswith("trials/")) == 16
    assert children(run) == ["id0", "id1"]
    assert tags(run)["best.trial"] == sweep.best.name and tags(run)["sweep.state"] == "running"
    assert "sid-ray distill digits-sid" in tags(run)["mlflow.note.content"]
    assert (ledger.folder / "space.yaml").read_text() == ledger.text
    (front,) = json.loads((ledger.folder / "pareto.json").read_text())
    assert front["trial"] == sweep.best.name and front["scores"] == {FD: best}


def test_repeats_with_other_seeds_are_below_the_sweep_too(tmp_path):
    ledger = with_seeds(tmp_path / "made")
    for number, name in enumerate(("made-00000", "made-best-seed1", "made-recipe-seed2")):
        begun(tmp_path, name, f"id{number}")
    sweep, run = read_sweep(ledger.folder), MadeUpRun()
    assert Parent(sweep, run=run).finish(sweep, 20) == ""
    assert children(run) == ["id0", "id1", "id2"]
    mean = (sweep.best.last(FD) + 7.125 + 8.125) / 3
    assert run.told["mean_of_seeds/best", sweep.images_spent] == pytest.approx(mean)
    assert ("mean_of_seeds/recipe", sweep.images_spent) not in run.told  # one seed has no score


def test_a_store_that_is_away_gets_it_later(tmp_path):
    """No call waits, and the same numbers arrive."""
    ledger = asha_ledger(tmp_path / "made", trials=3, state="running")
    sweep, run = read_sweep(ledger.folder), MadeUpRun(failures=1, writes_first=True)
    parent = Parent(sweep, run=run)
    parent.tell(sweep)
    assert parent._tracking.finish(20) == ""
    assert ("images_spent", sweep.images_spent) in run.told and run.calls["open"] == 2


def test_params_say_the_space(tmp_path):
    found = params_of(read_sweep(lsg_ledger(tmp_path / "made", trials=1).folder))
    assert found["metric"] == "FID (min), CLIP (max)" and found["budget.images"] == 40_000
    assert found["space.guidance.scale"] == (
        "loguniform [1.25, 6] when guidance.strategy is long-short, long; "
        "uniform [0, 0.9] when guidance.strategy is short"
    )
    assert "budget.total" not in found
    (one,) = space_of("  training.group_size: {grid: [8, 16]}\n").parameters
    assert described(one) == "grid [8, 16]"


def test_a_sweep_is_known_again_by_its_key(tmp_path):
    key = record_of(tmp_path, True).key
    assert key == record_of(tmp_path, True).key
    (tmp_path / "parent.json").write_text(json.dumps({"key": key}))  # an earlier version's
    assert key == record_of(tmp_path, True).key
    (tmp_path / "parent.json").write_text("{")
    assert len(record_of(tmp_path, True).key) == 12


@pytest.mark.parametrize("moved", [True, False])
def test_a_sweep_in_a_moved_or_copied_folder_of_runs(tmp_path, moved):
    """It works on the runs beside it; a copy that shares a server with the first is another run,
    and leaves the first one's runs where they are below it.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    ledger = asha_ledger(one / "made", state="running")
    task = {"base": replace(recipe("digits-sid"), output__folder=str(one)).to_json()}
    (ledger.folder / "task.json").write_text(json.dumps(task))
    begun(one, "made-00000", "id0")
    first = Parent(read_sweep(one / "made"), run=MadeUpRun())
    first.tell(read_sweep(one / "made"))
    assert first._tracking.finish(20) == "" and first._children == {"made-00000"}
    one.rename(two) if moved else shutil.copytree(one, two)
    run = MadeUpRun(run_id="made-up" if moved else "second")
    parent = Parent(read_sweep(two / "made"), run=run)
    assert parent.config.output.folder == str(two)
    before, now = first._tracking._journal._key, parent._tracking._journal._key
    assert (now == before) == moved
    parent.tell(read_sweep(two / "made"))
    assert parent._tracking.finish(20) == ""
    assert children(parent._tracking._run) == []  # run.json is of a run that lay elsewhere
    begun(two, "made-00000", "id1")  # started here
    parent.tell(read_sweep(two / "made"))
    assert parent._children == {"made-00000"}


def test_trouble_is_a_line_never_an_error(tmp_path):
    assert "is no sweep" in after_event(tmp_path / "none")
    ledger = asha_ledger(tmp_path / "made", trials=1)
    (ledger.folder / "parent.json").mkdir()
    assert "warning: MLflow is not told of sweep made" in after_event(ledger.folder)


def test_mlflow_shows_the_trials_below_the_sweep(tmp_path, monkeypatch):
    """With a real store: killed after the first events, taken up and ended."""
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    base = recipe("digits-sid")
    where = client.create_experiment(base.output.experiment, f"{tmp_path}/artifacts")
    ids = [client.create_run(where, run_name=f"made-{n:05d}").info.run_id for n in range(2)]
    gone = client.create_run(where, run_name="made-00002").info.run_id
    client.delete_run(gone)
    for number, run_id in enumerate([*ids, gone]):
        begun(tmp_path, f"made-{number:05d}", run_id)

    ledger = asha_ledger(tmp_path / "made", trials=4, state="running")
    assert after_event(ledger.folder) == ""
    first = parents._parents[ledger.folder]
    wait_for(lambda: first._tracking.left == 0, "sent")
    first._tracking.finish(5)  # as if the driver had died
    parents._parents.clear()

    ledger.state("finished")
    monkeypatch.setattr(parents, "write_report", lambda sweep, out, found: [])  # test_report.py
    assert after_event(ledger.folder, timeout_s=30) == "" and not parents._parents
    found = client.search_runs([where], "tags.`sid_ray.sweep` = 'made'")
    assert len(found) == 1 and found[0].info.status == "FINISHED"
    own = found[0].info.run_id
    below = client.search_runs([where], f"tags.mlflow.parentRunId = '{own}'")
    assert {run.info.run_id for run in below} == set(ids)
    assert found[0].info.run_name == "made" and found[0].data.params["scheduler"] == "asha"
    assert found[0].data.tags["best.trial"] and found[0].data.metrics["trials/running"] == 0
    names = {item.path for item in client.list_artifacts(own)}
    assert {"space.yaml", "pareto.json", "importance.json", "report.csv"} <= names
