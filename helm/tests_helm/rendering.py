"""Renders the chart with the real helm, and reads values.yaml and the guides as data.

`PYTHONPATH=.:helm python -m tests_helm.rendering` writes the golden files and the guide's table of values anew.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.toolchain import binary

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "modelfleet"
GOLDEN = Path(__file__).parent / "golden"
FULL_VALUES = Path(__file__).parent / "full-values.yaml"
GUIDE = ROOT / "docs" / "guides" / "helm.md"
SCENARIOS: dict[str, tuple[str, ...]] = {"default": (), "full": ("--values", str(FULL_VALUES))}
TABLE_HEAD = "| value | default | meaning |\n|---|---|---|\n"

WITH_GATEWAY = "--set=gateway.enabled=true"

Manifest = dict[str, Any]


class HelmError(Exception):
    """helm refused; the message is its standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One leaf of values.yaml: its path, its default and the comment above it."""

    path: str
    default: Any
    comment: str


def helm(*arguments: str) -> str:
    """Runs helm; raises HelmError."""
    done = subprocess.run([str(binary("helm")), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HelmError(done.stderr)
    return done.stdout


def render(*arguments: str, release: str = "modelfleet") -> list[Manifest]:
    """The objects of `helm template`, in its order."""
    text = helm("template", release, str(CHART), "--namespace=modelfleet-system", "--kube-version=1.34.0", *arguments)
    return [document for document in yaml.safe_load_all(text) if document]


def one(manifests: list[Manifest], kind: str, *, name: str = "") -> Manifest:
    """The only object of a kind, or of that kind and name."""
    (found,) = [item for item in manifests if item["kind"] == kind and name in ("", item["metadata"]["name"])]
    return found


def golden_text(scenario: str) -> str:
    """What a golden file must hold: every object, CRDs without their schemas (compared with crds/ elsewhere)."""
    manifests = render(*SCENARIOS[scenario])
    for manifest in manifests:
        if manifest["kind"] == "CustomResourceDefinition":
            manifest["spec"] = "as in crds/"
    return yaml.safe_dump_all(manifests, sort_keys=True, width=120)


def documented_values() -> list[Value]:
    """The leaves of values.yaml with their comments, in order; a leaf without a comment raises ValueError."""
    found: list[Value] = []
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
            continue
        member = re.fullmatch(r"( *)(\w+):(.*)", line)
        if member is None:
            comment = []
            continue
        indent, key, rest = len(member[1]), member[2], member[3].strip()
        parents = [item for item in parents if item[0] < indent]
        path = ".".join([*(name for _, name in parents), key])
        if not comment:
            raise ValueError(f"{path} has no comment")
        if rest:
            found.append(Value(path=path, default=yaml.safe_load(rest), comment=" ".join(comment)))
        else:
            parents.append((indent, key))
        comment = []
    return found


def values_table() -> str:
    """The table of docs/guides/helm.md."""
    rows = [f"| `{value.path}` | `{json.dumps(value.default)}` | {value.comment} |" for value in documented_values()]
    return TABLE_HEAD + "\n".join(rows) + "\n"


def table_in_guide() -> str:
    """The table as it stands in the guide."""
    found = re.search(re.escape(TABLE_HEAD) + r"(\|.*\n)*", GUIDE.read_text(encoding="utf-8"))
    return found[0] if found else ""


def write() -> None:
    """Writes what the tests compare with."""
    GOLDEN.mkdir(exist_ok=True)
    for scenario in SCENARIOS:
        (GOLDEN / f"{scenario}.yaml").write_text(golden_text(scenario), encoding="utf-8")
    guide = GUIDE.read_text(encoding="utf-8")
    GUIDE.write_text(guide.replace(table_in_guide(), values_table()), encoding="utf-8")


if __name__ == "__main__":
    write()
