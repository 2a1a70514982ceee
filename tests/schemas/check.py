"""What is wrong with a cluster file, by the schemas of those who read it.

Ray's own, KubeRay's CRDs, Kubernetes' core types, AWS's and Google's instances. All strict: an
unknown name is an error.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import kubernetes_validate
import ray.autoscaler
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.protocols import Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

HERE = Path(__file__).parent
KUBERNETES = kubernetes_validate.latest_version()
RAY_SCHEMA = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
# Ray's schema takes any name in `provider`; these are what its providers read.
PROVIDER = {
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "security_group"},
    "gcp": {"type", "region", "availability_zone", "project_id"},
    "local": {"type", "head_ip", "worker_ips"},
    "external": {
        "type", "module", "gcs_address", "head_node_id", "launch_multiple", "use_node_id_as_ip",
        "disable_node_updaters", "disable_launch_config_check",
    },
}  # fmt: skip


def first(validator: Validator, document: Any, where: str = "") -> list[str]:
    """The first error, or none: one is enough to refuse a file, and quicker."""
    error = next(validator.iter_errors(document), None)
    if error is None:
        return []
    return [f"{where}{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"]


@functools.cache
def ray_schema() -> Validator:
    return Draft7Validator(json.loads(RAY_SCHEMA.read_text()))


@functools.cache
def gcp_instance() -> Validator:
    return Draft202012Validator(json.loads((HERE / "gcp_instance.json").read_text()))


@functools.cache
def custom(kind: str) -> Validator:
    """KubeRay's. Of a RayService what we use: by its Go types (ray-project/kuberay,
    rayservice_types.go, Apache-2.0) its cluster is a RayCluster's spec, Serve's config a text.
    """
    schemas = json.loads((HERE / "kuberay.json").read_text())
    cluster = schemas["RayCluster"]
    service = {
        "rayClusterConfig": cluster["properties"]["spec"],
        "serveConfigV2": {"type": "string"},
    }
    spec = {"additionalProperties": False, "properties": service, "required": [*service]}
    schemas["RayService"] = cluster | {"properties": cluster["properties"] | {"spec": spec}}
    return Draft202012Validator({**schemas[kind], "$defs": schemas["$defs"]})


@functools.cache
def definitions() -> Registry:
    folder = f"kubernetes-json-schema/v{KUBERNETES}-local-strict"
    contents = schema_contents(f"{folder}/_definitions.json", KUBERNETES)
    return Resource.from_contents(contents) @ Registry()


@functools.cache
def core(name: str) -> Validator:
    """A core Kubernetes type as kubernetes-validate has it, read once: pod-v1, ..."""
    folder = f"kubernetes-json-schema/v{KUBERNETES}-local-strict"
    schema = Resource.from_contents(schema_contents(f"{folder}/{name}.json", KUBERNETES))
    return Draft202012Validator(schema.contents, registry=schema @ definitions())


@functools.cache
def aws_instance() -> tuple[Any, Any]:
    model = botocore.session.get_session().get_service_model("ec2")
    return botocore.validate.ParamValidator(), model.operation_model("RunInstances").input_shape


def node_problems(provider: str, config: dict[str, Any]) -> list[str]:
    """Of a node type's ``node_config``: what the cloud is asked for."""
    if provider == "aws":
        validator, shape = aws_instance()
        report = validator.validate({"MinCount": 1, "MaxCount": 1, **config}, shape)
        return [report.generate_report()] if report.has_errors() else []
    if provider == "gcp":
        return first(gcp_instance(), config, "node_config/")
    return ["node_config: nothing is read there"] if config else []


def ray_problems(document: dict[str, Any]) -> list[str]:
    """Of a file for `ray up` or `ray start --autoscaling-config`."""
    found = first(ray_schema(), document)
    if found:
        return found
    provider = document["provider"]
    unknown = provider.keys() - PROVIDER.get(provider["type"], set())
    found += [f"provider/{name}: unknown" for name in sorted(unknown)]
    for name, node_type in document.get("available_node_types", {}).items():
        found += [
            f"{name}: {text}" for text in node_problems(provider["type"], node_type["node_config"])
        ]
    return found


def templates(node: Any) -> list[dict[str, Any]]:
    """Every pod template of a custom resource."""
    if isinstance(node, list):
        return [found for child in node for found in templates(child)]
    if not isinstance(node, dict):
        return []
    own = [node[name] for name in ("template", "submitterPodTemplate") if name in node]
    return own + [found for child in node.values() for found in templates(child)]


def kube_problems(document: dict[str, Any]) -> list[str]:
    """Of one Kubernetes manifest: its first error."""
    kind, version = str(document.get("kind")), str(document.get("apiVersion"))
    if kind not in ("RayCluster", "RayJob", "RayService"):
        group, _, number = version.rpartition("/")
        name = "-".join(filter(None, (kind.lower(), group.split(".")[0], number)))
        try:
            return first(core(name), document)
        except FileNotFoundError:
            return [f"Kubernetes has no {kind} of {version}"]
    if version != "ray.io/v1":
        return [f"apiVersion {version}, expected ray.io/v1"]
    bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document.get("metadata")}
    found = first(custom(kind), document) or first(core("configmap-v1"), bare)
    for template in templates(document.get("spec")):
        found = found or first(core("pod-v1"), {"apiVersion": "v1", "kind": "Pod", **template})
    return found
