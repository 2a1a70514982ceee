"""`sid-ray doctor`: what is wrong is named with the next step, and the other checks go on."""

from collections import namedtuple
from dataclasses import replace as replace_fields

import pytest

from sid_ray.commands import doctor
from sid_ray.commands.checks import FAILED, OK, SKIPPED, WARNING, Patient, examine
from sid_ray.commands.doctor import run_doctor
from sid_ray.config.distill_config import replace
from sid_ray.device.found import Gpu
from sid_ray.errors import UserError
from sid_ray.planning import fit, here
from sid_ray.ray_setup import start
from sid_ray.recipes.registry import recipe
from sid_ray.storage.shared import Token
from sid_ray.storage.store import Store, probe
from tests.commands.test_plan import straight
from tests.support.other_host import on_host

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def findings(runs, config=None, **found) -> dict[str, list]:
    """Check -> [(state, text)]."""
    answers: dict[str, list] = {}
    for name, finding in examine(Patient(config, str(runs), found=found)):
        answers.setdefault(name, []).append((finding.state, finding.text))
    return answers


def failures(answers: dict[str, list]) -> dict[str, str]:
    return {n: t for n, found in answers.items() for state, t in found if state == FAILED}


def test_a_machine_that_is_well(tmp_path, capsys):
    assert run_doctor(recipe("digits-sid"), str(tmp_path / "runs"), deep=False) == 0
    text = capsys.readouterr().out
    assert "nothing found wrong" in text and "1x8x8, 10 classes" in text
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_tracking_store_that_takes_nothing_or_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert findings(tmp_path)["tracking"] == [
        (OK, f"sqlite:///{tmp_path}/mlflow.db: experiment 'sid_ray' will be made")
    ]
    (tmp_path / "mlflow.db").write_bytes(b"something else" * 100)
    assert "is no sqlite database: move it away" in failures(findings(tmp_path))["tracking"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    ((state, text),) = findings(tmp_path)["tracking"]
    assert state == WARNING and "a run keeps its numbers and sends them later" in text


def test_an_experiment_of_the_environment_is_told_not_to_be_read(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    (state, text), (other, _) = findings(tmp_path)["tracking"]
    assert (state, other) == (WARNING, OK)
    assert "'sid_ray'; --output.experiment NAME" in text
    named = replace(recipe("digits-sid"), output__experiment="mine")
    assert [state for state, _ in findings(tmp_path, named)["tracking"]] == [OK]


def test_a_library_of_another_version(tmp_path, monkeypatch):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "0.1" if name == "ray" else real(name))
    found = failures(findings(tmp_path))
    assert list(found) == ["versions"]
    assert "ray 0.1, needed" in found["versions"] and "pip install 'ray" in found["versions"]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "access denied"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "no answer at http://127.0.0.1:9"),
    ],
)
def test_storage_that_cannot_be_used(bucket, monkeypatch, name, value, what):
    assert failures(findings(f"{bucket}/runs")) == {}
    monkeypatch.setenv(name, value)
    found = failures(findings(f"{bucket}/runs"))
    assert list(found) == ["storage"] and what in found["storage"]
    assert "check AWS_" in found["storage"] and "\n" not in found["storage"]


def test_a_bucket_that_is_not_there(bucket):
    assert "create it first" in failures(findings("s3://none-such/runs"))["storage"]


def test_a_store_that_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "read_text", lambda self, name: "written")
    with pytest.raises(UserError, match="wrote 'replaced' and read 'written'"):
        probe(Store.at(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_other_images(tmp_path):
    config = replace(recipe("digits-sid"), data__name="cifar10")
    answers = findings(tmp_path, config)
    assert "choose a teacher of this data" in failures(answers)["teacher"]
    assert "disk" in answers  # the others went on


def test_a_gpu_that_is_too_small(tmp_path, monkeypatch):
    # What saves memory is on already: traces of other settings are test_plan.py's.
    config = replace(
        recipe("digits-sid"),
        resources__use_gpu=True,
        resources__num_workers=1,
        resources__offload_optimizer=True,
        resources__activation_checkpointing=True,
        training__precision="bfloat16",
    )
    assert findings(tmp_path, config)["memory"][0][0] == SKIPPED  # no GPU is here
    monkeypatch.setattr(fit, "kept_trace", straight)
    one = [Gpu(0, "A", 1 << 30, (9, 0))]
    monkeypatch.setattr(here, "gpus_here", lambda: one)
    answers = findings(tmp_path, config)
    assert answers["memory"][0][0] == FAILED and "does not fit" in answers["memory"][0][1]
    one[0] = replace_fields(one[0], memory=80 << 30)
    ((state, text),) = findings(tmp_path, config)["memory"]
    assert state == OK and "1 worker on a GPU of 80 GiB" in text
    config = replace(recipe("digits-sid"), resources__use_gpu=False)
    ((state, text),) = findings(tmp_path, config)["memory"]
    assert state == OK and "a CPU" in text and "micro-batch 32" in text


def test_a_gpu_that_is_not_there(tmp_path):
    config = replace(recipe("digits-sid"), resources__use_gpu=True)
    assert "driver" in failures(findings(tmp_path, config))["machine"]


def test_more_workers_than_processors(tmp_path):
    config = replace(recipe("digits-sid"), resources__num_workers=1000)
    assert any(state == WARNING for state, _ in findings(tmp_path, config)["machine"])


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(10, 10, 1000))
    found = failures(findings(tmp_path, recipe("digits-sid")))
    assert list(found) == ["ray", "disk"]
    assert "set output.folder to another disk" in found["disk"]


def test_a_temporary_folder_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / (60 * "a")))
    ((state, text),) = findings(tmp_path)["ray"]
    assert state == WARNING and "sockets" in text and text.endswith("go to /tmp/ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / (60 * "a")))
    assert "set RAY_TMPDIR to a short folder" in failures(findings(tmp_path))["ray"]


def test_shared_memory_that_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "SPARE_SHARED_MIB", 1 << 40)
    assert any("--shm-size" in text for _, text in findings(tmp_path)["ray"])
    monkeypatch.setattr(start, "SHARED_MEMORY", "/nowhere")
    assert any("/nowhere is missing" in text for _, text in findings(tmp_path)["ray"])


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    for name in ("SID_RAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/none")
    assert "the cache (SID_RAY_CACHE)" in failures(findings(tmp_path))["cache"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "nonsense"])
def test_a_cluster_that_is_gone(tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    told = failures(findings(tmp_path))
    assert list(told) == ["ray"] and address in told["ray"]
    assert told["ray"].isprintable()


@pytest.mark.slow
def test_every_node_of_a_cluster_is_asked(tmp_path, monkeypatch):
    from benchmarks.local_cluster import LocalCluster

    with LocalCluster(tmp_path) as cluster:
        cluster.add()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        answers = findings(tmp_path / "runs")
        assert answers["cluster"] == [(OK, "2 nodes, 1 CPUs, 0 GPUs")]
        (tmp_path / "file").write_text("")
        found = findings(tmp_path / "file" / "runs")
        assert len([s for s, t in found["cluster"] if s == FAILED]) == 2  # on each node


def test_nodes_that_do_not_share_the_folder_of_runs(tmp_path, monkeypatch):
    """Each node's part of the check is done here, as on a host with that disk."""
    from sid_ray.actors import nodes

    disks = {"host-b": None, "host-c": tmp_path / "c"}
    versions = {name: doctor.version(name) for name in nodes.SAME}

    def look(reach):
        found = []
        for name, disk in disks.items():
            trouble, token = "", None
            work = lambda: reach(True)  # noqa: E731
            try:
                token = on_host(disk, monkeypatch, work) if disk else work()
            except UserError as error:
                trouble = str(error)
            found.append(nodes.NodeFacts(name, versions, 1, 0, 0.0, trouble, token))
        return found

    monkeypatch.setattr(nodes, "look_at_cluster", look)
    monkeypatch.setattr(Token.seen, "__defaults__", (0.0,))
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    runs = tmp_path / "runs"
    asked = lambda config: list(doctor.look_at_nodes(Patient(config, str(runs))))  # noqa: E731
    (failed,) = (found.text for found in asked(None) if found.state == FAILED)
    assert failed.startswith(f"host-c: {runs} is not one folder for all hosts: this node sees")
    assert "set --output.folder to s3://BUCKET/PREFIX" in failed
    assert list(runs.iterdir()) == []
    disks["host-c"] = None
    config = replace(recipe("digits-sid"), teacher__source=str(tmp_path / "teacher.pkl"))
    (tmp_path / "teacher.pkl").write_text("weights")
    assert [found.state for found in asked(config)] == [OK]
