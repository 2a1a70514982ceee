"""What is checked before a job is sent, what would be uploaded, and what may be in a config.

No Ray is started here: tests/jobs/test_jobs.py (`make slow`) sends real jobs.
"""

import asyncio
import base64
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from ray.runtime_env import RuntimeEnv

from sid_ray.cli import main
from sid_ray.commands.arguments import of_recipe, with_flags
from sid_ray.commands.distill import mlflow_pages
from sid_ray.config.confidential import holds_credentials, named_secret, secrets_of
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.jobs import client, upload
from sid_ray.jobs.client import Tail, follow_job
from sid_ray.jobs.cluster import Cluster, Group, memory_of, of_nodes, read_cluster
from sid_ray.jobs.submit import (
    SubmitOptions,
    check_places,
    entry_of,
    look_at_storage,
    memory_of_job,
    runtime_env_of,
    typed,
    with_package,
)
from sid_ray.jobs.upload import (
    SECRET_FILES,
    SECRET_FOLDERS,
    Upload,
    check_no_secrets,
    check_size,
    looks_secret,
    upload_of,
)
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import default_tracking_uri, runs_folder
from sid_ray.tracking.mlflow_run import signed_in
from tests.commands.test_plan import straight
from tests.support.canaries import canary, leaks

REPOSITORY = Path(__file__).parents[2]
XS = recipe("img512-xs-sida")
CHECKOUT = Upload(REPOSITORY, {"sid_ray/cli.py": 1})


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("HF_TOKEN", True),
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("storage.secret-key", True),
        ("RAY_AUTH_MODE", False),
        ("RAY_AUTH_TOKEN_PATH", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("MONKEY", False),
    ],
)
def test_secrets_are_known_by_their_names(name, secret):
    assert named_secret(name) == secret


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("http://person:word@host:5000", True),
        ("postgresql+psycopg2://mlflow:word@db/mlflow", True),
        ("https://hf_abc@huggingface.co/x", True),
        ("https://host/f.pkl?X-Amz-Signature=abc", True),
        ("https://host/f.pkl?v=1&token=abc", True),
        ("https://host/f.pkl#sha256=0", False),
        ("hf://owner/repo/path@main", False),
        ("s3://bucket/a@b:c", False),
        ("sqlite:////home/a@b/mlflow.db", False),
        ("postgresql://mlflow@db/mlflow", False),
        ("a prompt: why @me?", False),
    ],
)
def test_credentials_in_an_address_are_seen(address, found):
    assert holds_credentials(address) == found


@pytest.mark.parametrize(
    "field", ["output__tracking_uri", "teacher__source", "data__source", "storage__endpoint_url"]
)
def test_a_config_takes_no_credentials(field):
    config = replace(XS, **{field: "https://person:word@host/x"})
    with pytest.raises(UserError, match="holds a password or a signature") as refusal:
        config.check()
    assert field.replace("__", ".") in str(refusal.value)
    assert "word@" not in str(refusal.value)


def test_a_secret_is_no_flag_and_is_not_repeated(capsys):
    for command in ("distill", "submit"):
        for flag in (["--storage.secret-key", "Tr0ub4dor"], ["--storage.secret=Tr0ub4dor"]):
            with pytest.raises(SystemExit) as stop:
                main([command, "digits-sid", *flag])
            assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "Tr0ub4dor" not in printed.out + printed.err


def test_values_of_secrets_are_found_in_an_environment():
    environment = {
        "HF_TOKEN": "a-long-token", "SHORT_TOKEN": "abc", "HOME": "/home/person",
        "MLFLOW_TRACKING_URI": "http://person:a-long-word@host",
        "RAY_AUTH_TOKEN_PATH": "/a/b/token",
    }  # fmt: skip
    assert secrets_of(environment) == {
        "HF_TOKEN": "a-long-token",
        "MLFLOW_TRACKING_URI": "a-long-word",
    }


def test_mlflows_pages_are_named_without_a_password():
    assert mlflow_pages("http://person:word@host:5000") == "http://host:5000"
    assert "word" not in mlflow_pages("postgresql://person:word@db/mlflow")
    assert mlflow_pages("sqlite:////a/mlflow.db").endswith("sqlite:////a/mlflow.db")


def test_mlflow_is_signed_in_to_and_told_no_password(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "other")
    assert signed_in("http://person:w%2Ford@host:5000/x") == "http://host:5000/x"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "person"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "w/ord"
    for uri in ("http://host:5000", "sqlite:////a/mlflow.db", "postgresql://a:b@db/x"):
        assert signed_in(uri) == uri


def test_the_scan_finds_what_is_encoded():
    value = canary("HF_TOKEN")
    for before in ("", "a", "ab", "abc"):
        text = base64.b64encode(f"{before}{value}xyz".encode())
        assert leaks(b"..." + text, {"x": value}) == ["x"], before
    assert leaks(value.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D").encode(),
                 {"x": value}) == ["x"]  # fmt: skip
    assert leaks(base64.b64encode(b"nothing at all"), {"x": value}) == []


# What is uploaded


def zipped(folder, target, excludes=()):
    """Names in the zip that Ray's own client would upload."""
    everywhere = ray_constants.get_runtime_env_default_excludes()
    packaging.create_package(str(folder), target, True, False, [*everywhere, *excludes])
    shutil.unpack_archive(target, target.with_suffix(""))
    copy = target.with_suffix("")
    return {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}


def test_an_upload_is_what_ray_would_take(tmp_path):
    files = {
        "a.py": 10, "big/b.bin": 3000, "sub/keep.txt": 1, "sub/left.txt": 1, "logs/x.log": 5,
        ".git/config": 9, ".venv/lib/x.py": 9, "notes.md": 4, "skipped/c": 7,
    }  # fmt: skip
    folder = tmp_path / "work"
    for name, size in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    (folder / ".gitignore").write_text("*.log\n")
    (folder / ".rayignore").write_text("big\n")
    (folder / "sub" / ".rayignore").write_text("left.txt\n")
    upload = upload_of(folder, ["skipped"])
    assert upload.files.keys() == zipped(folder, tmp_path / "x.zip", ["skipped"])
    assert {"a.py", "notes.md", "sub/keep.txt"} <= upload.files.keys()
    assert upload.size >= (tmp_path / "x.zip").stat().st_size
    assert upload.holds("sub")
    assert upload.holds("./sub/keep.txt")
    assert not upload.holds("su")
    with pytest.raises(UserError, match="no such folder"):
        upload_of(folder / "nothing")


def test_this_repository_is_uploaded_small_and_whole(tmp_path):
    """The whole package with its assets; an entry script starts from the copy alone."""
    found = zipped(REPOSITORY, tmp_path / "copy.zip")
    upload = upload_of(REPOSITORY)
    assert upload.files.keys() == found
    assert (tmp_path / "copy.zip").stat().st_size <= upload.size < 20 << 20
    check_no_secrets(upload, {})
    package = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "sid_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package <= found
    assert {"sida_edm2.py", "tune_sid.py", "constraints.txt", "runtime_env.yaml"} <= found
    assert not any(name.startswith(("tests/", "docs/", "runs/", ".venv/")) for name in found)
    done = subprocess.run(
        [sys.executable, "sida_edm2.py", "nonsense"],
        cwd=tmp_path / "copy", capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("sid-ray: no recipe 'nonsense'")


def test_an_upload_too_large_names_the_largest_and_rayignore(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "LARGEST_UPLOAD", 2 << 20)
    check_size(Upload(tmp_path, {"a": 1 << 20}))
    with pytest.raises(UserError) as refusal:
        check_size(Upload(tmp_path, {"small": 10, "weights/big.pkl": 3 << 20}))
    assert "is 2 files, 3.0 MiB, Ray takes 2 MiB: name in .rayignore" in str(refusal.value)
    assert "the largest are weights/big.pkl (3 MiB)" in str(refusal.value)


def test_rayignore_leaves_out_every_kind_of_secret(tmp_path):
    """Those that the check would refuse, so that a checkout with them can be sent."""
    shutil.copy(REPOSITORY / ".rayignore", tmp_path)
    names = [pattern.replace("*", "x") for pattern in SECRET_FILES]
    names += [f"sub/{name}" for name in names] + [f"{name}/x" for name in SECRET_FOLDERS]
    for name in names:
        assert looks_secret(name), name
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert upload_of(tmp_path).files.keys() == {".rayignore"}
    (tmp_path / ".rayignore").unlink()
    with pytest.raises(UserError, match="looks like a secret"):
        check_no_secrets(upload_of(tmp_path), {})


def test_secrets_are_refused_whatever_their_file_is_called(tmp_path):
    (tmp_path / "secrets.py").write_text("import secrets\n")
    (tmp_path / "notes.txt").write_text("my token is a-long-token\n")
    upload = upload_of(tmp_path)
    check_no_secrets(upload, {"HF_TOKEN": "another-token"})
    with pytest.raises(UserError, match=r"value of HF_TOKEN, in notes.txt") as refusal:
        check_no_secrets(upload, {"HF_TOKEN": "a-long-token"})
    assert "a-long-token" not in str(refusal.value)
    (tmp_path / "notes.txt").write_text("-----BEGIN RSA PRIVATE KEY-----\n")
    with pytest.raises(UserError, match=r"a private key, notes.txt"):
        check_no_secrets(upload_of(tmp_path), {})


# What is sent


def test_own_flags_are_taken_out_and_the_others_left_as_typed():
    args = [
        "digits-sid",
        "--images",
        "5",
        "--address=http://h:1",
        "--no-wait",
        "--runtime-env",
        "r.yaml",
        "--x=1",
    ]
    asked, rest = with_flags(SubmitOptions, args, "sid-ray submit")
    assert asked == SubmitOptions(
        "digits-sid", address="http://h:1", runtime_env="r.yaml", wait=False
    )
    assert rest == ["--images", "5", "--x=1"]
    for wrong, said in (
        (["--adress", "h"], "no --adress. Did you mean --address"),
        (["--cluster"], "--cluster without a value"),
        (["--cluster", "--no-wait"], "--cluster without a value"),
        (["--cluster", "c", "--address", "a"], "one of them"),
    ):
        with pytest.raises(UserError, match=said):
            of_recipe(SubmitOptions, ["digits-sid", *wrong], "sid-ray submit")


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("img512-xxl-sida", "sida_edm2.py"),
        ("digits-sid", "sid_edm.py"),
        ("cifar10-cond-sid", "sid_edm.py"),
        ("sd15-lsg-kappa2", "sid_lsg_sd.py"),
        ("sana-600m-512-dit", "sid_flow.py"),
    ],
)
def test_a_recipe_has_its_entry_script(name, script):
    flags = ["--seed", "3"]
    assert entry_of(recipe(name), flags, CHECKOUT) == ["python", script, name, *flags]
    assert (REPOSITORY / script).is_file()


def test_the_same_can_be_typed_for_ray():
    entry = entry_of(XS, ["--run", "a b"], CHECKOUT)
    assert typed(entry, SubmitOptions("x", runtime_env="r.yaml"), {}, "http://h:1") == (
        "ray job submit --address http://h:1 --working-dir . --runtime-env r.yaml "
        "-- python sida_edm2.py img512-xs-sida --run 'a b'"
    )
    default = runtime_env_of("")
    assert '--runtime-env-json \'{"env_vars"' in typed(
        entry, SubmitOptions("x"), default, "http://h:1"
    )


def test_a_folder_that_is_no_checkout_goes_with_the_package():
    entry = entry_of(XS, ["--seed", "3"], Upload(Path("/x"), {"prompts.txt": 3}))
    assert entry == ["python", "-m", "sid_ray.cli", "distill", "img512-xs-sida", "--seed", "3"]
    given = {"pip": ["a"], "py_modules": ["mine"]}
    env = with_package(given)
    package = str(REPOSITORY / "sid_ray")
    assert env == {"pip": ["a"], "py_modules": ["mine", package]}
    assert given["py_modules"] == ["mine"]
    line = typed(entry, SubmitOptions("x", runtime_env="r.yaml"), env, "http://h:1")
    sent = shlex.split(line)
    assert json.loads(sent[sent.index("--runtime-env-json") + 1]) == env
    assert sent[sent.index("--") + 1 :] == entry
    assert {"cli.py", "assets/digits-teacher/model.json", "tune_spaces/edm-sid.yaml"} <= set(
        upload_of(Path(package)).files
    )


def test_a_runtime_env_is_ray_s_and_holds_no_secret(tmp_path, monkeypatch):
    shipped = runtime_env_of(str(REPOSITORY / "runtime_env.yaml"))
    assert RuntimeEnv(**shipped).to_dict()["pip"]["packages"] == shipped["pip"]["packages"]
    assert shipped["env_vars"] == runtime_env_of("")["env_vars"]
    file = tmp_path / "r.yaml"
    for text, said in (
        (
            "env_vars: {AWS_SECRET_ACCESS_KEY: abc, OTHER: x}",
            "names AWS_SECRET_ACCESS_KEY, and Ray",
        ),
        ("- a", "expected keys"),
        ("a: [", "is no YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said) as refusal:
            runtime_env_of(str(file))
        assert "abc" not in str(refusal.value)
    with pytest.raises(UserError, match="No such file"):
        runtime_env_of(str(tmp_path / "none.yaml"))


def test_files_must_be_where_the_nodes_find_them(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    upload = upload_of(tmp_path)
    shared = replace(XS, output__folder="s3://bucket/runs")
    check_places(shared, upload)
    check_places(replace(shared, output__folder="/nfs/runs"), upload)
    check_places(replace(shared, data__source="prompts.txt"), upload)
    with pytest.raises(UserError, match="is relative, and a job"):
        check_places(XS, upload)
    hub = "hpsv2=hf://adams-story/HPSv2-hf"
    check_places(replace(shared, evaluation__metric_weights=hub), upload)
    with pytest.raises(UserError, match=r"evaluation.metric_weights 'clip' is not in the upload"):
        check_places(replace(shared, evaluation__metric_weights=f"{hub},cmmd=clip"), upload)
    with pytest.raises(UserError, match=r"data.source 'data/latents' is not in the upload"):
        check_places(replace(shared, data__source="data/latents"), upload)
    lines = list(look_at_storage(replace(XS, output__folder="/nfs/runs"), Cluster(3, ())))
    assert ("warning", "storage", "/nfs/runs must be one disk that all 3 nodes share") in lines


def test_a_relative_folder_is_refused_in_a_job(tmp_path, monkeypatch):
    """Ray deletes the copy of a working directory: everything would go with it."""
    monkeypatch.chdir(tmp_path)
    assert runs_folder("runs") == str(tmp_path / "runs")
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for folder in ("runs", "./x/runs", str(copy / "runs")):
        with pytest.raises(UserError, match="a temporary copy that is deleted"):
            runs_folder(folder)
    assert runs_folder("/nfs/runs") == "/nfs/runs"
    assert runs_folder("s3://bucket/runs") == "s3://bucket/runs"
    assert str(copy) not in default_tracking_uri("s3://bucket/runs")


# The cluster

LAUNCHER = """
cluster_name: x
provider: {type: aws}
max_workers: 5
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, node_config: {InstanceType: m6i.2xlarge}}
  gpu: {resources: {CPU: 48, GPU: 4}, max_workers: 4, node_config: {InstanceType: g5.12xlarge}}
  judge: {resources: {GPU: 1, evaluator: 1}, max_workers: 1, node_config: {InstanceType: g4dn.x}}
"""
KUBERAY = """
kind: Namespace
---
kind: RayCluster
metadata: {name: a, namespace: n}
spec:
  workerGroupSpecs:
  - maxReplicas: 2
    template:
      spec:
        nodeSelector: {cloud.google.com/gke-accelerator: nvidia-a100-80gb}
        containers: [{resources: {limits: {nvidia.com/gpu: "8"}}}]
  - maxReplicas: 1
    rayStartParams: {resources: '"{}"'}
    template: {spec: {containers: [{resources: {limits: {nvidia.com/gpu: 1}}}]}}
"""


def test_a_cluster_file_says_its_gpus_and_how_to_reach_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(LAUNCHER)
    assert read_cluster(file) == Cluster(6, (Group(16, 22),), f"ray dashboard {file}")
    file.write_text(KUBERAY)
    reach = "kubectl port-forward -n n svc/a-head-svc 8265:8265"
    assert read_cluster(file) == Cluster(4, (Group(16, 79),), reach)
    for text, said in (
        ("kind: RayJob", "kubectl apply -f"),
        ("a: 1", "expected a file for `ray up`"),
        ("a: [", "is no YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            read_cluster(file)
    with pytest.raises(UserError, match="No such file"):
        read_cluster(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("{'InstanceType': 'p5.48xlarge'}", 79),
        ("{'InstanceType': 'p5en.48xlarge'}", 139),
        ("{'InstanceType': 'p4d.24xlarge'}", 39),
        ("{'InstanceType': 'p4de.24xlarge'}", 79),
        ("{'InstanceType': 'g6e.xlarge'}", 44),
        ("{'machineType': 'g2-standard-24'}", 22),
        ("{'machineType': 'a2-ultragpu-1g'}", 79),
        ("{'nvidia.com/gpu.product': 'NVIDIA-A100-SXM4-80GB'}", 79),
        ("nvidia-tesla-t4", 14),
        ("accelerator_type:H100", 79),
        ("accelerator_type:A100", 39),
        ("m6i.2xlarge", 0),
    ],
)
def test_gpus_are_known_by_what_names_them(name, gib):
    assert memory_of(name) == gib


def test_the_plan_is_held_against_the_cluster(monkeypatch):
    """A run on two GPUs; that the plan itself is right, test_choose.py shows."""
    monkeypatch.setattr("sid_ray.planning.fit.kept_trace", straight)
    config = recipe("digits-sid")
    node = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}
    cluster = of_nodes([{"CPU": 4.0}, node, node])
    assert (cluster.nodes, cluster.gpus, cluster.memory_gib) == (3, 2, 79)
    ((state, name, text),) = memory_of_job(config, cluster)
    assert (state, name) == ("ok", "resources")
    assert text.startswith("2 workers, a GPU of 79 GiB each, ZeRO-0 (")
    _, fewer = memory_of_job(replace(config, resources__num_workers=4), cluster)
    assert fewer[2] == "2 GPUs at most for 4 workers"
    with pytest.raises(UserError, match=r"does not fit on 2 GPUs of 1\.0 GiB"):
        list(memory_of_job(config, Cluster(1, (Group(2, 1.0),))))
    assert list(memory_of_job(config, Cluster(1, ()))) == []  # it may run on CPUs
    on_gpus = replace(config, resources__use_gpu=True)
    ((state, _, text),) = memory_of_job(on_gpus, Cluster(1, ()))
    assert state == "warning"
    assert "not known" in text


# Following


class BrokenLine:
    """A client whose connection to a job's output breaks twice."""

    text = "one\ntwo\nthree\nfour\n"

    def __init__(self, status="SUCCEEDED"):
        self.calls, self.status = 0, status

    async def tail_job_logs(self, job):
        self.calls += 1
        for end in range(0, 3 + 7 * self.calls, 4):
            yield self.text[end : end + 4]
        if self.calls < 3:
            raise RuntimeError("closed")

    def get_job_status(self, job):
        ended = self.calls >= 3
        return SimpleNamespace(is_terminal=lambda: ended, value=self.status)

    def get_job_info(self, job):
        code = {"SUCCEEDED": 0, "FAILED": None}.get(self.status)
        return SimpleNamespace(driver_exit_code=code, message="runtime_env setup failed")


def test_a_line_that_breaks_is_taken_up_and_nothing_is_printed_twice(capsys, monkeypatch):
    monkeypatch.setattr("sid_ray.jobs.client.AGAIN_S", 0.0)
    assert follow_job(BrokenLine(), "job") == 0
    assert capsys.readouterr().out == f"{BrokenLine.text}job job SUCCEEDED, exit code 0\n"


@pytest.mark.parametrize(("status", "said"), [("STOPPED", "STOPPED"), ("FAILED", "setup failed")])
def test_a_job_that_did_not_finish_is_exit_code_1(status, said, capsys, monkeypatch):
    monkeypatch.setattr("sid_ray.jobs.client.AGAIN_S", 0.0)
    assert follow_job(BrokenLine(status), "job") == 1
    assert said in capsys.readouterr().out


def test_ctrl_c_leaves_the_job(capsys, monkeypatch):
    def interrupt(coroutine):
        coroutine.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "run", interrupt)
    assert follow_job(BrokenLine(), "job") == 130
    assert "goes on" in capsys.readouterr().out
    assert Tail(BrokenLine(), "job").printed == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["img512-xs-sidda"], "no recipe"),
        (["img512-xs-sida", "--seed", "x"], "training.seed"),
        (["img512-xs-sida"], "output.folder 'runs' is relative"),
        (["img512-xs-sida", "--output.folder", "/r", "--working-dir", "PART"], "a whole checkout"),
        (["img512-xs-sida", "--output.folder", "/r/a-long-token"], "a flag holds the value of HF"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_sent(flags, said, capsys, monkeypatch, tmp_path):
    (tmp_path / "sid_ray").mkdir()
    (tmp_path / "sid_ray" / "cli.py").touch()
    flags = [str(tmp_path) if flag == "PART" else flag for flag in flags]
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "a-long-token")
    monkeypatch.setattr("sid_ray.jobs.submit.connect", lambda *_: pytest.fail("was sent"))
    with pytest.raises(SystemExit) as stop:
        main(["submit", *flags])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_where_nothing_answers_the_next_step_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free.getsockname()[1]}")
        file = tmp_path / "c.yaml"
        file.write_text(KUBERAY)
        for flags, said in (
            (["--cluster", str(file)], "run `kubectl port-forward -n n svc/a-head-svc 8265:8265`"),
            ([], "`ray dashboard FILE`"),
        ):
            with pytest.raises(SystemExit) as stop:
                main(["submit", "img512-xs-sida", "--output.folder", "/nfs/runs", *flags])
            assert stop.value.code == 2
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "no cluster at 127.0.0.1:1 (connection refused)"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://[::1", "Invalid IPv6"),
        ("htp://host", "expected http://HOST:8265"),
        ("host", "expected HOST:PORT"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address, words):
    with pytest.raises(UserError) as told:
        client.connect(address, "")
    assert words in str(told.value) and str(told.value).isprintable()


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(client, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"no Jobs API at .*timed out"):
            client.connect(address, "")
