"""Kubernetes objects held against the CustomResourceDefinitions of KubeRay, as an API server would that refuses
unknown fields."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the definitions hold 100,000 lines

Json = dict[str, Any]


def folder() -> Path:
    """Where the definitions are: $UNET_BATCH_KUBERAY_CRDS, else beside the checkout."""
    return Path(os.environ.get("UNET_BATCH_KUBERAY_CRDS") or ROOT.parent / "shared" / "data" / "kuberay-crds")


def schema(plural: str) -> Json:
    """The strict schema of `ray.io/v1`'s rayclusters, rayjobs or raycronjobs."""
    text = gzip.decompress((folder() / f"ray.io_{plural}.yaml.gz").read_bytes())
    definition = yaml.load(text, Loader=LOADER)
    [version] = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    return strict(version["schema"]["openAPIV3Schema"])


def strict(node: Any) -> Any:
    """The schema with every object closed that lists its properties; the root's `metadata` lists none, stays open."""
    if isinstance(node, list):
        return [strict(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    closed = {key: strict(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not open_ended:
        closed["additionalProperties"] = False
    return closed


def problems(manifest: Json, schema: Json) -> list[str]:
    """What an API server would refuse, a line each: wrong types, unknown fields, and keys twice in a keyed list."""
    validator = jsonschema.Draft202012Validator(schema)
    found = [f"{'.'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(manifest)]
    return found + list(_doubles(manifest, schema, ""))


def _doubles(value: Any, node: Any, path: str) -> list[str]:
    """Entries of lists of the type `map` that share their keys; JSON Schema cannot say it."""
    if isinstance(value, dict):
        properties = node.get("properties", {})
        return [
            p for key, v in value.items() if key in properties for p in _doubles(v, properties[key], f"{path}.{key}")
        ]
    if not isinstance(value, list):
        return []
    found = [p for i, v in enumerate(value) for p in _doubles(v, node.get("items", {}), f"{path}[{i}]")]
    if keys := node.get("x-kubernetes-list-map-keys"):
        defaults = {key: node["items"]["properties"][key].get("default") for key in keys}
        names = [tuple(entry.get(key, defaults[key]) for key in keys) for entry in value]
        found += [f"{path}: {name} twice" for name in sorted({n for n in names if names.count(n) > 1}, key=str)]
    return found
