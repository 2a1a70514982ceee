"""What no schema knows of the cluster files: which group is spot, what listens where, what may
stand in the open, which commands parse."""

from __future__ import annotations

import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import ray
import yaml
from ray.scripts.scripts import start as ray_start
from ray.serve.schema import ServeDeploySchema

from sid_ray.commands.arguments import expand_aliases, parse
from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.recipes.registry import check_supplied, recipe
from sid_ray.serving.application import TOKEN, ServeArguments
from sid_ray.serving.places import ReplicaRange

IMAGE = f"ray{ray.__version__}"
OUR_PODS = {"app.kubernetes.io/part-of": "sid-ray"}
SPOT = {
    "cloud.google.com/gke-spot": ["true"],
    "karpenter.sh/capacity-type": ["spot"],
    "eks.amazonaws.com/capacityType": ["SPOT"],
}
NAMES = {  # names in maps that a schema leaves open, by the map's own name
    "file_mounts": {"~/.ray/auth_token", "~/.aws/credentials"},
    "resources": {"CPU", "GPU", "evaluator", "requests", "limits"},
    "requests": {"cpu", "memory", "nvidia.com/gpu", "ephemeral-storage"},
    "limits": {"cpu", "memory", "nvidia.com/gpu", "ephemeral-storage"},
    "labels": {*OUR_PODS},
    "matchLabels": {*OUR_PODS, "kubernetes.io/metadata.name", "app.kubernetes.io/component"},
    "annotations": {"eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account"},
    "nodeSelector": {"cloud.google.com/gke-accelerator"},
    "data": {"SID_RAY_OUTPUT", "AWS_REGION"},
    "available_node_types": {"head", "gpu-spot", "evaluator", "ray.head.default", "spot"},
}
SECRET_NAME = re.compile(r"secret.?access|access.?key|password|passwd|token$|credential", re.I)
SECRET_VALUE = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|eyJhbGciOi|gh[pousr]_\w{20}")


def walk(node: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(path, value) of every value inside."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for name, child in pairs:
        yield (*path, name), child
        if isinstance(child, dict | list):
            yield from walk(child, (*path, name))


def open_problems(document: Any) -> list[str]:
    """Names in open maps that mean nothing, and secrets in clear text."""
    found = []
    for path, value in walk(document):
        inside, name = str(path[-2]) if len(path) > 1 else "", str(path[-1])
        if inside in NAMES and name not in NAMES[inside] and "securityContext" not in path:
            found.append(f"{inside}/{name}: unknown")
        if isinstance(value, str) and SECRET_VALUE.search(value):
            found.append(f"{name}: a secret in clear text")
        if isinstance(value, str) and inside != "file_mounts" and SECRET_NAME.search(name):
            found.append(f"{name}: a secret in clear text")
    for path, value in walk(document):
        if path[-1] == "name" and isinstance(value, str) and SECRET_NAME.search(value):
            entry = document
            for step in path[:-1]:
                entry = entry[step]
            if "value" in entry:
                found.append(f"{value}: a secret in clear text")
    return found


def start_options(command: str) -> dict[str, Any]:
    """What `ray start` would be told by a shell command. Raises click.UsageError for a typo."""
    words = shlex.split(command)
    at = next(i for i in range(len(words)) if words[i : i + 2] == ["ray", "start"])
    return click_options(words[at + 2 :])


def click_options(words: list[str]) -> dict[str, Any]:
    return ray_start.make_context("ray start", list(words), resilient_parsing=False).params


def start_problems(commands: list[str], head: bool) -> list[str]:
    """Of head_start_ray_commands or worker_start_ray_commands."""
    starts = [command for command in commands if "ray start" in command]
    if commands[:1] != ["ray stop"] or len(starts) != 1:
        return ["expected `ray stop` and one `ray start`"]
    try:
        options = start_options(starts[0])
    except (click.ClickException, StopIteration, ValueError) as error:
        return [f"ray start: {error}"]
    found = [] if "RAY_AUTH_MODE=token" in starts[0] else ["ray start without a token"]
    if head:
        if options["dashboard_host"] not in ("127.0.0.1", "localhost"):
            found.append(f"the dashboard listens on {options['dashboard_host']}")
        if not options["head"] or not options["autoscaling_config"]:
            found.append("the head's `ray start` needs --head and --autoscaling-config")
        if options["system_config"]:
            wanted = {f"health_check_{name}" for name in (
                "initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold"
            )}  # fmt: skip
            if set(options["system_config"]) != wanted:
                found.append("system-config: unknown names")
    elif options["address"] != "$RAY_HEAD_IP:6379":
        found.append("workers join another address")
    return found


def is_spot(provider: str, config: dict[str, Any]) -> bool:
    if provider == "aws":
        return config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return config.get("scheduling", {}).get("provisioningModel") == "SPOT"


def group_problems(document: dict[str, Any]) -> list[str]:
    """Of the node types of a file for `ray up`: sizes, and which may be taken away."""
    types, provider = document["available_node_types"], document["provider"]["type"]
    head = types.get(document["head_node_type"])
    if head is None:
        return ["head_node_type is not one of available_node_types"]
    found = []
    if head["resources"].get("GPU") or head["resources"].get("CPU") != 0 or head["max_workers"]:
        found.append("the head offers GPUs or CPUs")
    groups = {n: group for n, group in types.items() if n != document["head_node_type"]}
    for name, group in groups.items():
        if not 0 <= group["min_workers"] <= group["max_workers"] <= document["max_workers"]:
            found.append(f"{name}: min_workers {group['min_workers']} to {group['max_workers']}")
    if sum(group["max_workers"] for group in groups.values()) != document["max_workers"]:
        found.append("max_workers is not the sum of the groups'")
    if provider in ("aws", "gcp"):
        if is_spot(provider, head["node_config"]):
            found.append("the head is a spot machine")
        found += [
            f"{name}: not a spot machine" for name, group in groups.items()
            if not is_spot(provider, group["node_config"])
        ]  # fmt: skip
        offered = groups.get("evaluator", {}).get("resources", {})
        if offered != {"CPU": 0, "GPU": 1, "evaluator": 1}:
            found.append("the evaluator group offers other than GPU=1, evaluator=1, no CPU")
        drains = [c for c in document["worker_start_ray_commands"] if "drain_on_notice" in c]
        if len(drains) != 1 or f"/opt/sid_ray/drain_on_notice.sh {provider} " not in drains[0]:
            found.append("nobody looks for the cloud's notice")
    return found


def ray_rules(document: dict[str, Any]) -> list[str]:
    """Of a file for `ray up` or `ray start`, after its schema."""
    found = open_problems(document)
    if document["provider"]["type"] != "external":
        image = document.get("docker", {}).get("image", "")
        if not image.endswith(IMAGE):
            found.append(f"image {image}, expected a tag with {IMAGE}")
        if "~/.ray/auth_token" not in document.get("file_mounts", {}):
            found.append("no token for the nodes")
        found += start_problems(document["head_start_ray_commands"], head=True)
        if document["worker_start_ray_commands"]:
            found += start_problems(document["worker_start_ray_commands"], head=False)
    elif not document["provider"]["gcs_address"].startswith("127.0.0.1:"):
        found.append("gcs_address is not on loopback")
    if document["provider"]["type"] != "local":
        found += group_problems(document)
    return found


def container_problems(template: dict[str, Any]) -> list[str]:
    """Of one pod: who it is, what it may do."""
    spec, found = template["spec"], []
    if template.get("metadata", {}).get("labels") != OUR_PODS:
        found.append("a pod without the label that NetworkPolicy knows")
    if not spec.get("securityContext", {}).get("runAsNonRoot"):
        found.append("a pod that may be root")
    for container in spec["containers"]:
        if not container["image"].endswith(IMAGE):
            found.append(f"image {container['image']}, expected a tag with {IMAGE}")
        if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
            found.append("a container that may gain privileges")
        asked = container["resources"]
        if asked["requests"].get("nvidia.com/gpu") != asked["limits"].get("nvidia.com/gpu"):
            found.append("GPUs requested and allowed differ")
    return found


def spot_terms(template: dict[str, Any], operator: str) -> dict[str, list[str]]:
    rules = template["spec"]["affinity"]["nodeAffinity"]
    terms = rules["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    asked = [one for term in terms for one in term["matchExpressions"]]
    return {one["key"]: one["values"] for one in asked if one["operator"] == operator}


def worker_problems(group: dict[str, Any]) -> list[str]:
    found = []
    if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        found.append(f"{group['groupName']}: replicas outside of minReplicas to maxReplicas")
    if spot_terms(group["template"], "In") != SPOT:
        found.append(f"{group['groupName']}: not on spot nodes")
    pod = group["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    if command[0] != "/opt/sid_ray/drain.sh" or len(command) != 2:
        found.append(f"{group['groupName']}: preStop does not drain")
    elif not 0 < int(command[1]) < pod["terminationGracePeriodSeconds"]:
        found.append(f"{group['groupName']}: drains longer than it is given")
    return found


def cluster_rules(
    spec: dict[str, Any],
    policies: list[dict[str, Any]],
    names: tuple[str, ...] = ("gpu-spot", "evaluator"),
) -> list[str]:
    """Of a RayCluster's spec; ``policies``: the NetworkPolicies that are applied before; ``names``:
    its groups.
    """
    head, found = spec["headGroupSpec"], []
    if spec["rayVersion"] != ray.__version__:
        found.append(f"rayVersion {spec['rayVersion']}, expected {ray.__version__}")
    if spec.get("authOptions") != {"mode": "token"}:
        found.append("no token")
    if head.get("serviceType") != "ClusterIP" or head.get("enableIngress"):
        found.append("the head's service is open")
    if head["rayStartParams"].get("num-cpus") != "0" or "nvidia.com/gpu" in json.dumps(head):
        found.append("the head offers CPUs or GPUs")
    if spot_terms(head["template"], "NotIn") != SPOT:
        found.append("the head may be on a spot node")
    closed = [p for p in policies if p["spec"]["podSelector"].get("matchLabels") == OUR_PODS]
    if head["rayStartParams"].get("dashboard-host") == "0.0.0.0" and not closed:
        found.append("the dashboard listens on 0.0.0.0 and no NetworkPolicy closes it")
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    if groups.keys() != {*names}:
        return [*found, f"expected the groups {' and '.join(names)}"]
    if "evaluator" in groups:
        offered = groups["evaluator"]["rayStartParams"].get("resources", "")
        if json.loads(offered.strip('"').replace("\\", "") or "{}") != {"evaluator": 1}:
            found.append("the evaluator group does not offer evaluator=1")
    for part in (head, *groups.values()):
        flags = [f"--{name}={value}" for name, value in part["rayStartParams"].items()]
        try:
            click_options(flags)
        except click.ClickException as error:
            found.append(f"rayStartParams: {error.format_message()}")
        found += container_problems(part["template"])
    return found + [text for group in groups.values() for text in worker_problems(group)]


def policy_problems(spec: dict[str, Any]) -> list[str]:
    """A policy lets in the cluster's own pods, and the operator to the dashboard: nobody else."""
    sources = [source for rule in spec["ingress"] for source in rule.get("from", [{}])]
    own = [{"podSelector": {"matchLabels": OUR_PODS}}]
    others = [source for source in sources if source not in own]
    found = [] if spec["policyTypes"] == ["Ingress"] else ["policyTypes is not Ingress"]
    if spec["podSelector"] != own[0]["podSelector"]:
        found.append("the policy is for other pods")
    if len(others) != 1 or not others[0].keys() >= {"podSelector", "namespaceSelector"}:
        found.append("the policy lets in more than the cluster and KubeRay's operator")
    if own[0] not in sources:
        found.append("the policy keeps the cluster's pods apart")
    for rule in spec["ingress"]:
        ports = [port.get("port") for port in rule.get("ports", [])]
        if rule["from"] != own and ports != [8265]:
            found.append("the operator needs port 8265 and no other")
    return found


def entrypoint_problems(entrypoint: str) -> list[str]:
    """Of a command that a job runs: parsed by sid-ray's own parser."""
    command = shlex.split(entrypoint.replace("$SID_RAY_OUTPUT", "s3://bucket/runs"))
    if command[:2] != ["sid-ray", "distill"]:
        return [f"entrypoint {command[:2]}, expected sid-ray distill"]
    try:
        defaults = recipe(command[2])
        check_supplied(
            parse(
                DistillConfig, expand_aliases(command[3:]), "sid-ray distill", default=defaults
            ).check()
        )
    except (Exception, SystemExit) as error:
        return [f"entrypoint: {error}"]
    return []


def service_problems(spec: dict[str, Any]) -> list[str]:
    """Of Serve's config in a RayService, by Ray's own schema and by what builds the application;
    and of its pods, which must hold the clients' token.
    """
    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
        (application,) = config.applications
        pkgutil.resolve_name(application.import_path)
        arguments = ServeArguments.model_validate(application.args)
        ReplicaRange.of(arguments.replicas)
    except (UserError, ValueError, AttributeError, ImportError, yaml.YAMLError) as error:
        return [f"serveConfigV2: {error}"]
    cluster, found = spec["rayClusterConfig"], []
    if not arguments.token_needed or arguments.hosts != ["*"]:
        found.append("answers without a token, or not by its service's name")
    if config.http_options.host != "0.0.0.0" or config.http_options.port != 8000:
        found.append("KubeRay's service looks for port 8000 of every pod")
    for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = part["template"]["spec"]["containers"]
        entry = {"name": "sid-ray-serve", "key": "token"}
        wanted = {"name": TOKEN, "valueFrom": {"secretKeyRef": entry}}
        if wanted not in container["env"]:
            found.append("a pod without the clients' token")
        if {"containerPort": 8000, "name": "serve"} not in container["ports"]:
            found.append("a pod without port 8000, called serve")
    return found


def kube_rules(document: dict[str, Any], policies: list[dict[str, Any]]) -> list[str]:
    """Of one manifest, after its schema."""
    kind, spec, found = document["kind"], document.get("spec", {}), open_problems(document)
    if document["metadata"].get("namespace", "sid-ray") != "sid-ray":
        found.append("another namespace")
    if kind == "RayCluster":
        found += cluster_rules(spec, policies)
    if kind == "RayJob":
        found += cluster_rules(spec["rayClusterSpec"], policies)
        found += container_problems(spec["submitterPodTemplate"])
        found += entrypoint_problems(spec["entrypoint"])
    if kind == "RayService":
        found += cluster_rules(spec["rayClusterConfig"], policies, ("gpu-spot",))
        found += service_problems(spec)
    if kind == "NetworkPolicy":
        found += policy_problems(spec)
    return found


def clusters(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))
