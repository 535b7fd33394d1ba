"""The fields that the JobSet API knows, as far as our manifest goes, and a check against them.

`jobset_schema.json` is cut out of the CRD of kubernetes-sigs/jobset (config/components/crd/bases, commit 08dfbdf):
objects that the manifest fills in are whole to one level, so that a field that the API does not have is seen. It was
recorded with

    python tests/launch/jobset_schema.py jobset.x-k8s.io_jobsets.yaml < MANIFEST > tests/launch/jobset_schema.json
"""

import json
import pathlib
import sys
from typing import Any

import yaml

KEPT = ("type", "enum", "required", "x-kubernetes-int-or-string")
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def pruned(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """The schema, followed only where the example goes; other fields keep their names."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if isinstance(example, dict) and "properties" in schema:
        kept["properties"] = {
            name: pruned(inner, example[name]) if name in example else {}
            for name, inner in schema["properties"].items()
        }
    elif isinstance(example, dict) and "additionalProperties" in schema:
        kept["additionalProperties"] = pruned(schema["additionalProperties"], None)
    elif isinstance(example, list) and example:
        kept["items"] = pruned(schema["items"], example[0])
    return kept


def faults(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """One line for every place where the value is not what the schema wants."""
    kind = TYPES.get(schema.get("type", ""))
    if kind is not None and (
        not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)
    ):
        return [f"{path}: {value!r} is no {schema['type']}"]
    lines = []
    if "enum" in schema and value not in schema["enum"]:
        lines.append(f"{path}: {value!r} is none of {schema['enum']}")
    if isinstance(value, dict):
        known, rest = schema.get("properties"), schema.get("additionalProperties", {})
        lines += [f"{path}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if known is not None and name not in known:
                lines.append(f"{path}/{name}: no such field")
            lines += faults(inner, (known or {}).get(name, rest), f"{path}/{name}")
    if isinstance(value, list):
        for number, inner in enumerate(value):
            lines += faults(inner, schema.get("items", {}), f"{path}/{number}")
    return lines


def record(crd: pathlib.Path, manifest: str) -> None:
    (version,) = yaml.safe_load(crd.read_text(encoding="utf-8"))["spec"]["versions"]
    whole = version["schema"]["openAPIV3Schema"]
    print(json.dumps(pruned(whole, yaml.safe_load(manifest)), indent=1, sort_keys=True))


if __name__ == "__main__":
    record(pathlib.Path(sys.argv[1]), sys.stdin.read())
