"""Makes kuberay.json and gcp_instance.json, the strict JSON schemas that test_clusters.py uses.

    python tests/schemas/convert.py CRD_FOLDER COMPUTE_V1_JSON

CRD_FOLDER has KubeRay's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml (ray-project/kuberay,
ray-operator/config/crd/bases, Apache-2.0, August 2026). COMPUTE_V1_JSON is Google's discovery
document of the Compute Engine API (googleapiclient/discovery_cache/documents/compute.v1.json in
google-api-python-client, Apache-2.0, November 2026).

What is kept is types, not texts: descriptions, defaults and rules in CEL are left out, a subtree
that stands in several places is written once ($defs).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KEPT = (
    "type", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems", "minLength",
    "maxLength", "anyOf", "format",
)  # fmt: skip
SHARED_SIZE = 400  # characters from which on a repeated subtree is written once


def strict(node: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI v3 of a CRD as JSON schema in which an object takes only the properties it lists."""
    made = {name: node[name] for name in KEPT if name in node}
    if node.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if "items" in node:
        made["items"] = strict(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(node["additionalProperties"])
    if "properties" in node:
        properties = node["properties"]
        made["properties"] = {name: strict(child) for name, child in properties.items()}
        has_default = {name for name, child in properties.items() if "default" in child}
        made["required"] = sorted(set(node.get("required", [])) - has_default)
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if node.get("nullable"):
        made["type"] = [made["type"], "null"]
    return made


def shared(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas with a $defs of the large subtrees that stand in several places."""
    seen: Counter[str] = Counter()

    def text(node: Any) -> str:
        return json.dumps(node, sort_keys=True)

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if "type" in node and len(text(node)) >= SHARED_SIZE:
                seen[text(node)] += 1
                if seen[text(node)] > 1:
                    return
            for child in node.values():
                look(child)

    definitions: dict[str, Any] = {}

    def put(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        key = text(node)
        if seen.get(key, 0) < 2:
            return {name: put(child) for name, child in node.items()}
        name = hashlib.sha256(key.encode()).hexdigest()[:8]
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = {field: put(child) for field, child in node.items()}
        return {"$ref": f"#/$defs/{name}"}

    look(schemas)
    return {**{name: put(schema) for name, schema in schemas.items()}, "$defs": definitions}


def kuberay(folder: Path) -> dict[str, Any]:
    found = {}
    for name in ("ray.io_rayclusters.yaml", "ray.io_rayjobs.yaml"):
        definition = yaml.load((folder / name).read_text(), yaml.CSafeLoader)["spec"]
        v1 = next(version for version in definition["versions"] if version["name"] == "v1")
        found[definition["names"]["kind"]] = strict(v1["schema"]["openAPIV3Schema"])
    return shared(found)


def discovery(node: dict[str, Any]) -> dict[str, Any]:
    """One schema of a Google discovery document."""
    if "$ref" in node:
        return {"$ref": f"#/$defs/{node['$ref']}"}
    made = {name: node[name] for name in ("type", "enum", "pattern") if name in node}
    if made.get("type") == "any":
        del made["type"]
    if "items" in node:
        made["items"] = discovery(node["items"])
    if "properties" in node:
        made["properties"] = {n: discovery(child) for n, child in node["properties"].items()}
        made["additionalProperties"] = False
    if "additionalProperties" in node:
        made["additionalProperties"] = discovery(node["additionalProperties"])
    return made


def gcp_instance(document: Path) -> dict[str, Any]:
    schemas = json.loads(document.read_text())["schemas"]
    definitions: dict[str, Any] = {}
    waiting = ["Instance"]
    while waiting:
        name = waiting.pop()
        if name in definitions:
            continue
        definitions[name] = discovery(schemas[name])
        waiting += [
            part.split('"')[0] for part in json.dumps(definitions[name]).split("#/$defs/")[1:]
        ]
    return {"$ref": "#/$defs/Instance", "$defs": definitions}


def main() -> None:
    here = Path(__file__).parent
    crds, document = Path(sys.argv[1]), Path(sys.argv[2])
    (here / "kuberay.json").write_text(json.dumps(kuberay(crds), sort_keys=True) + "\n")
    (here / "gcp_instance.json").write_text(
        json.dumps(gcp_instance(document), sort_keys=True) + "\n"
    )


if __name__ == "__main__":
    main()
