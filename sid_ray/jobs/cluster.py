"""What a cluster's own YAML says of it: how jobs reach it, and its GPUs; or what its nodes say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError

# GiB that torch sees of a GPU, rounded down, by what names it: instance types, node labels, Ray's
# accelerator types. Known, not measured. The first that is found counts.
MEMORY_GIB = {
    r"\bp6-b200\.|\bb200\b": 178,
    r"\bp5en?\.|\bh200\b": 139,
    r"\bp5\.|\ba3-|\bh100\b": 79,
    r"\bp4de\.|\ba2-ultragpu|\ba100[-_a-z0-9]*80g|\ba100-80": 79,
    r"\bp4d\.|\ba2-|\ba100\b": 39,
    r"\bg6e\.|\bl40s\b": 44,
    r"\bg6\.|\bg2-standard|\bl4\b": 22,
    r"\bg5\.|\ba10g?\b": 22,
    r"\bp3dn\.|\bv100[-_a-z0-9]*32g": 31,
    r"\bp3\.|\bv100\b": 15,
    r"\bg4dn\.|\bt4\b": 14,
}
OWN = {"CPU", "GPU", "memory", "object_store_memory"}  # others keep a node for something else


@dataclass(frozen=True)
class Group:
    """Nodes of a kind: GPUs of all of them, and GiB of each GPU, 0 where that is not known."""

    gpus: int
    memory_gib: float


@dataclass(frozen=True)
class Cluster:
    """A cluster as far as it is known. ``reach``: the command that brings its Jobs API here."""

    nodes: int
    groups: tuple[Group, ...]
    reach: str = ""

    @property
    def gpus(self) -> int:
        return sum(group.gpus for group in self.groups)

    @property
    def memory_gib(self) -> float:
        """Of its smallest GPU; 0 where one is not known."""
        return min((group.memory_gib for group in self.groups), default=0.0)


def memory_of(text: str) -> float:
    """GiB of the GPU that a text names, 0 for none that is known."""
    for pattern, gib in MEMORY_GIB.items():
        if re.search(pattern, text, re.IGNORECASE):
            return gib
    return 0.0


def read_cluster(path: Path) -> Cluster:
    """A cluster of Ray's launcher, or a KubeRay RayCluster. Raises UserError for anything else."""
    import yaml

    try:
        documents = [doc for doc in yaml.safe_load_all(path.read_text()) if isinstance(doc, dict)]
    except OSError as error:
        raise UserError(f"--cluster {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--cluster {path} is no YAML: {first}") from None
    for document in documents:
        kind = document.get("kind")
        if "cluster_name" in document and "provider" in document:
            return of_launcher(path, document)
        if kind == "RayCluster":
            return of_kuberay(document)
        if kind == "RayJob":
            raise UserError(
                f"--cluster {path} is a RayJob, which brings its run with it: kubectl apply -f "
                f"{path}"
            )
    raise UserError(
        f"--cluster {path}: expected a file for `ray up` (cluster_name, provider) or a KubeRay "
        "RayCluster"
    )


def of_launcher(path: Path, document: Mapping[str, Any]) -> Cluster:
    kinds = document.get("available_node_types") or {}
    head, groups, nodes = document.get("head_node_type"), [], 1
    for name, kind in kinds.items():
        resources = kind.get("resources") or {}
        count = 1 if name == head else int(kind.get("max_workers", document.get("max_workers", 0)))
        nodes += count * (name != head)
        gpus = int(resources.get("GPU", 0)) * count
        if gpus and OWN.issuperset(resources):
            groups.append(Group(gpus, memory_of(str(kind.get("node_config", "")))))
    return Cluster(nodes, tuple(groups), f"ray dashboard {path}")


def of_kuberay(document: Mapping[str, Any]) -> Cluster:
    spec, meta = document.get("spec") or {}, document.get("metadata") or {}
    name, namespace = meta.get("name", "NAME"), meta.get("namespace", "default")
    groups, nodes = [], 1
    for group in spec.get("workerGroupSpecs") or ():
        count = int(group.get("maxReplicas", group.get("replicas", 1)))
        nodes += count
        pod = ((group.get("template") or {}).get("spec")) or {}
        gpus = sum(map(gpus_of, pod.get("containers") or ())) * count
        if gpus and not (group.get("rayStartParams") or {}).get("resources"):
            named = f"{pod.get('nodeSelector', '')} {pod.get('affinity', '')}"
            groups.append(Group(gpus, memory_of(named)))
    reach = f"kubectl port-forward -n {namespace} svc/{name}-head-svc 8265:8265"
    return Cluster(nodes, tuple(groups), reach)


def gpus_of(container: Mapping[str, Any]) -> int:
    """GPUs that a container of a pod is given."""
    resources = container.get("resources") or {}
    limits = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return int(limits.get("nvidia.com/gpu", 0))


def of_nodes(totals: Iterable[Mapping[str, float]]) -> Cluster:
    """A cluster that runs, from the resources of each of its nodes."""
    there = list(totals)
    return Cluster(len(there), tuple(gpu_groups(there)))


def gpu_groups(totals: Iterable[Mapping[str, float]]) -> Iterator[Group]:
    for total in totals:
        gpus = int(total.get("GPU", 0))
        kinds = [name for name in total if name.startswith("accelerator_type:")]
        if gpus:
            yield Group(gpus, memory_of(" ".join(kinds)))
