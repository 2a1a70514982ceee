"""Every file of clusters/ is right by its readers' schemas and by our rules, and a typo is caught.

No cluster is started here: benchmarks/local_elastic.py runs clusters/local-elastic.yaml.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import sid_ray
from sid_ray.device.found import DRIVER_OF
from tests.schemas.check import KUBERNETES, kube_problems, ray_problems
from tests.schemas.rules import kube_rules, ray_rules, walk

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
FILES = sorted(path.name for path in CLUSTERS.glob("*.yaml"))
RAY_FILES = [name for name in FILES if not name.startswith("kuberay")]


@functools.cache
def as_json(name: str) -> str:
    return json.dumps(list(yaml.safe_load_all((CLUSTERS / name).read_text())))


def documents(name: str) -> list[dict[str, Any]]:
    """A fresh copy each time, without the sharing of YAML's anchors."""
    return json.loads(as_json(name))


def policies() -> list[dict[str, Any]]:
    return [one for one in documents("kuberay-common.yaml") if one["kind"] == "NetworkPolicy"]


def problems(name: str, document: dict[str, Any]) -> list[str]:
    """By schemas first: rules look at what is known to have the right form."""
    if name in RAY_FILES:
        return ray_problems(document) or ray_rules(document)
    return kube_problems(document) or kube_rules(document, policies())


def at(document: Any, path: tuple) -> Any:
    return functools.reduce(lambda node, step: node[step], path, document)


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_right(name: str) -> None:
    for document in documents(name):
        assert problems(name, document) == []


@pytest.mark.parametrize("name", ["kuberay-common.yaml"])
def test_kubernetes_validate_itself_agrees(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", FILES)
def test_any_misspelled_name_is_caught(name: str) -> None:
    missed = []
    for index, document in enumerate(documents(name)):
        for path, _ in walk(document):
            if not isinstance(path[-1], str) or "rayClusterSpec" in path[:-1]:
                continue  # the job's cluster is that of kuberay-cluster.yaml: see below
            changed = documents(name)[index]
            inside = at(changed, path[:-1])
            inside[path[-1] + "x"] = inside.pop(path[-1])
            if not caught(name, changed):
                missed.append("/".join(map(str, path)))
    assert missed == []


def caught(name: str, document: dict[str, Any]) -> bool:
    """Whether something is said of it; rules may also stumble over what is not there."""
    try:
        return bool(problems(name, document))
    except (KeyError, StopIteration):
        return True


def put(path: str, value: Any) -> Callable[[Any], None]:
    """Sets a value: a/b/0/c."""
    steps = tuple(int(step) if step.isdigit() else step for step in path.split("|"))

    def change(document: Any) -> None:
        at(document, steps[:-1])[steps[-1]] = value

    return change


def drop(path: str) -> Callable[[Any], None]:
    steps = tuple(int(step) if step.isdigit() else step for step in path.split("|"))

    def change(document: Any) -> None:
        del at(document, steps[:-1])[steps[-1]]

    return change


HEAD = "spec|headGroupSpec|template|spec|containers|0"
WORKER = "spec|workerGroupSpecs|0|template|spec"
SPOT = "available_node_types|gpu-spot"
TYPOS = {
    "more at least than at most": ("aws-spot.yaml", 0, put(f"{SPOT}|min_workers", 9)),
    "more in all than the groups": ("aws-spot.yaml", 0, put("max_workers", 50)),
    "a number as text": ("aws-spot.yaml", 0, put(f"{SPOT}|max_workers", "4")),
    "no provider": ("aws-spot.yaml", 0, drop("provider")),
    "an unknown resource": ("aws-spot.yaml", 0, put(f"{SPOT}|resources|GPUs", 4)),
    "an unknown head": ("gcp-spot.yaml", 0, put("head_node_type", "heads")),
    "a head that may go": (
        "aws-spot.yaml", 0,
        put("available_node_types|head|node_config|InstanceMarketOptions", {"MarketType": "spot"}),
    ),
    "a market nobody has": (
        "aws-spot.yaml", 0, put(f"{SPOT}|node_config|InstanceMarketOptions|MarketType", "sport"),
    ),
    "a group on demand": (
        "gcp-spot.yaml", 0, put(f"{SPOT}|node_config|scheduling|provisioningModel", "STANDARD"),
    ),
    "a model nobody has": (
        "gcp-spot.yaml", 0, put(f"{SPOT}|node_config|scheduling|provisioningModel", "SPOTTY"),
    ),
    "a key in the file": (
        "aws-spot.yaml", 0,
        put("worker_start_ray_commands|0", "export AWS_ACCESS_KEY_ID=AKIAABCDEFGHIJKLMNOP"),
    ),
    "a dashboard for all": (
        "gcp-spot.yaml", 0,
        put("head_start_ray_commands|1",
            "RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml"),
    ),
    "a dashboard for all on one machine": (
        "single-node.yaml", 0,
        put("head_start_ray_commands|1",
            "RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml"),
    ),
    "no token": ("gcp-spot.yaml", 0, drop("file_mounts|~/.ray/auth_token")),
    "a service that Ray cannot import": ("kuberay-service.yaml", 0, put(
        "spec|serveConfigV2",
        "applications: [{import_path: 'sid_ray.serving.application:built', args: {sources: [a]}}]",
    )),
    "a service of an option that is not there": ("kuberay-service.yaml", 0, put(
        "spec|serveConfigV2",
        "http_options: {host: 0.0.0.0}\napplications: [{import_path: "
        "'sid_ray.serving.application:build', args: {sources: [a], devise: cuda}}]",
    )),
    "a service for everybody": ("kuberay-service.yaml", 0, put(
        "spec|serveConfigV2",
        "http_options: {host: 0.0.0.0}\napplications: [{import_path: "
        "'sid_ray.serving.application:build', args: {sources: [a], token_needed: false}}]",
    )),
    "a pod without the clients' token": ("kuberay-service.yaml", 0, put(
        "spec|rayClusterConfig|workerGroupSpecs|0|template|spec|containers|0|env", [],
    )),
    "an option Ray has not": (
        "aws-spot.yaml", 0,
        put("worker_start_ray_commands|1",
            "RAY_AUTH_MODE=token ray start --adress=$RAY_HEAD_IP:6379"),
    ),
    "another Ray's image": ("aws-spot.yaml", 0, put("docker|image", "r/sid-ray:0.1.0-ray2.59.0")),
    "an open address": (
        "local-elastic.yaml", 0, put("provider|gcs_address", "0.0.0.0:6379"),
    ),
    "another Ray": ("kuberay-cluster.yaml", 0, put("spec|rayVersion", "2.59.0")),
    "another pod's image": ("kuberay-cluster.yaml", 0, put(f"{HEAD}|image", "r/s:ray2.6")),
    "replicas above the most": (
        "kuberay-cluster.yaml", 0, put("spec|workerGroupSpecs|0|replicas", 9),
    ),
    "no least": ("kuberay-job.yaml", 0, put(
        "spec|rayClusterSpec|workerGroupSpecs|0|minReplicas", 7,
    )),
    "no head": ("kuberay-cluster.yaml", 0, drop("spec|headGroupSpec")),
    "a public service": (
        "kuberay-cluster.yaml", 0, put("spec|headGroupSpec|serviceType", "LoadBalancer"),
    ),
    "no token for pods": ("kuberay-cluster.yaml", 0, put("spec|authOptions|mode", "disabled")),
    "a password in the open": (
        "kuberay-cluster.yaml", 0,
        put(f"{HEAD}|env|0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}),
    ),
    "a key in the ConfigMap": (
        "kuberay-common.yaml", 3, put("data|AWS_SECRET_ACCESS_KEY", "abc"),
    ),
    "no grace": ("kuberay-cluster.yaml", 0, put(f"{WORKER}|terminationGracePeriodSeconds", 30)),
    "no drain": ("kuberay-cluster.yaml", 0, put(
        f"{WORKER}|containers|0|lifecycle|preStop|exec|command", ["sleep", "10"],
    )),
    "a pod as root": ("kuberay-job.yaml", 0, put(
        "spec|submitterPodTemplate|spec|securityContext|runAsNonRoot", False,
    )),
    "workers of another label": ("kuberay-cluster.yaml", 0, put(
        "spec|workerGroupSpecs|1|template|metadata|labels", {"app.kubernetes.io/part-of": "x"},
    )),
    "a door in the policy": ("kuberay-common.yaml", 4, put("spec|ingress|0", {})),
    "a policy for nobody": ("kuberay-common.yaml", 4, put(
        "spec|podSelector|matchLabels", {"app.kubernetes.io/part-of": "other"},
    )),
    "a recipe that is not there": ("kuberay-job.yaml", 0, put(
        "spec|entrypoint", "sid-ray distill cifar10-sidda --output.folder $SID_RAY_OUTPUT",
    )),
    "a flag that is not there": ("kuberay-job.yaml", 0, put(
        "spec|entrypoint", "sid-ray distill cifar10-cond-sida --worker 16",
    )),
}  # fmt: skip


@pytest.mark.parametrize("what", TYPOS)
def test_planted_mistakes_are_caught(what: str) -> None:
    name, index, change = TYPOS[what]
    document = documents(name)[index]
    change(document)
    assert caught(name, document)


def test_an_open_dashboard_needs_a_policy() -> None:
    document = documents("kuberay-cluster.yaml")[0]
    assert kube_rules(document, policies()) == []
    found = kube_rules(document, [])
    assert found == ["the dashboard listens on 0.0.0.0 and no NetworkPolicy closes it"]


def test_the_job_has_the_cluster_of_its_own_file() -> None:
    job, cluster = documents("kuberay-job.yaml")[0], documents("kuberay-cluster.yaml")[0]
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_rays_own_autoscaler_reads_the_cluster() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    read = _derive_autoscaling_config_from_ray_cr(documents("kuberay-cluster.yaml")[0])
    types = read["available_node_types"]
    spot, evaluator = types["gpu-spot"], types["evaluator"]
    assert (spot["min_workers"], spot["max_workers"]) == (0, 4)
    assert spot["resources"]["GPU"] == 4 and spot["resources"]["CPU"] == 24
    offered = {name: evaluator["resources"].get(name) for name in ("CPU", "GPU", "evaluator")}
    assert offered == {"CPU": 0, "GPU": 1, "evaluator": 1}


def test_versions_are_the_locks() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert pins["ray"] == version("ray") and pins["kubernetes-validate"].startswith(KUBERNETES)
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pins['ray']}-" in dockerfile
    assert "-c constraints.txt '.[adapters,diffusers,serve,sweep]'" in dockerfile
    runtime_env = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    assert runtime_env["pip"]["packages"] == [
        "-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    ]


TAG = re.compile(r"\bsid-ray:([\w.-]+)")


def test_the_dockerfile_names_the_images_tag_and_all_others_follow() -> None:
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)-gpu$", dockerfile(), re.MULTILINE)
    (tag,) = set(TAG.findall(dockerfile()))
    assert base is not None
    assert tag == f"{sid_ray.__version__}-ray{base[1]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={base[2]}.{base[3]}"
    for path in [*CLUSTERS.iterdir(), *ROOT.glob("docs/*.md")]:
        if path.suffix in (".yaml", ".md", ".sh"):
            assert set(TAG.findall(path.read_text())) <= {tag}, path.name


def dockerfile() -> str:
    return (CLUSTERS / "Dockerfile").read_text()


def test_torch_on_nodes_has_a_driver_and_an_xformers_of_its_cuda() -> None:
    """torch 2.13 of the registry is CUDA 13: driver 580, and an xformers that is built for it."""
    families = re.findall(r"family/(common-cu\S+)", (CLUSTERS / "gcp-spot.yaml").read_text())
    assert families
    assert all(int(family.rpartition("-")[2]) >= int(DRIVER_OF[13]) for family in families)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (xformers,) = extras["optional-dependencies"]["xformers"]
    assert re.match(r"xformers @ https://\S+/cu13\d/xformers-[\d.]+-py39-none-manylinux", xformers)


@pytest.mark.parametrize("script", sorted(CLUSTERS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_and_may_be_run(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert os.access(script, os.X_OK)


def test_the_readme_names_every_file() -> None:
    readme = (CLUSTERS / "README.md").read_text()
    assert [path.name for path in CLUSTERS.iterdir() if f"`{path.name}`" not in readme] == [
        "README.md"
    ]


@pytest.fixture
def metadata() -> Iterator[tuple[str, list[str], threading.Event]]:
    """A cloud's metadata server: what was asked, and an event after which the machine goes."""
    asked, leaving = list[str](), threading.Event()

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.answer(200, b"token-1")

        def do_GET(self) -> None:
            if "preempted" in self.path:
                right = self.headers["Metadata-Flavor"] == "Google"
                self.answer(200 if right else 403, b"TRUE" if leaving.is_set() else b"FALSE")
            else:
                right = self.headers["X-aws-ec2-metadata-token"] == "token-1"
                there = leaving.is_set() and self.path.endswith("/spot/instance-action")
                self.answer((200 if there else 404) if right else 401, b"{}")

        def answer(self, status: int, body: bytes) -> None:
            asked.append(f"{self.command} {self.path} {status}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked, leaving
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", "110"), ("gcp", "25")])
def test_a_notice_drains_the_node(cloud: str, seconds: str, metadata: Any, tmp_path: Path) -> None:
    url, asked, leaving = metadata
    script = tmp_path / "drain_on_notice.sh"
    script.write_text((CLUSTERS / script.name).read_text())
    drain = tmp_path / "drain.sh"
    drain.write_text('#!/bin/bash\nprintf "%s|" "$@"\n')
    drain.chmod(0o755)
    watcher = subprocess.Popen(
        ["bash", str(script), cloud],
        env=os.environ | {"METADATA": url, "POLL_S": "0.1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(asked) < 6:
        assert watcher.poll() is None
    leaving.set()
    said = watcher.communicate(timeout=20)[0]
    assert watcher.returncode == 0
    assert said.endswith(f"{seconds}|spot machine taken back|")
    assert not [line for line in asked if line.endswith((" 401", " 403"))]


def test_a_drain_names_the_node_and_waits_for_its_end(tmp_path: Path) -> None:
    fake = tmp_path / "ray"
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/asked\nkill $RAYLET\n')
    fake.chmod(0o755)
    raylet = subprocess.Popen(
        ["/x/raylet", "-c", "import time; time.sleep(60)", "--node_id=abc123",
         "--gcs-address=10.0.0.9:6379"],
        executable=sys.executable,
    )  # fmt: skip
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RAYLET": str(raylet.pid),
        "RAY_NODE_ID": "abc123",
    }  # fmt: skip
    threading.Thread(target=raylet.wait, daemon=True).start()
    command = ["bash", str(CLUSTERS / "drain.sh")]
    done = subprocess.run([*command, "30", "spot"], env=environment, timeout=40)
    assert done.returncode == 0
    assert (tmp_path / "asked").read_text().split("\n")[:-1] == [
        "drain-node", "--address", "10.0.0.9:6379", "--node-id", "abc123",
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
        "--deadline-remaining-seconds", "30",
    ]  # fmt: skip
    again = subprocess.run([*command, "30"], env=environment, capture_output=True, text=True)
    assert again.returncode == 2 and "found 0 Ray nodes" in again.stderr
    assert subprocess.run([*command, "soon"], capture_output=True).returncode == 2
