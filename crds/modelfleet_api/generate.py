"""`python -m modelfleet_api.generate [--check]`: writes the CRDs and the chart's copies, or says that they are stale.

Must not decide anything about the schema: that is `crd_schema`. Works on the source tree that it lies in.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from modelfleet_api import names
from modelfleet_api.crd_kinds import INSTALLED_KINDS, LLM_DEPLOYMENT, Kind
from modelfleet_api.crd_schema import crd, crd_spec

ROOT = Path(__file__).resolve().parents[2]
HEADER = "Generated from modelfleet_api by `make generate`; edit the types, not this file."

_CHART_TEMPLATE = """\
{{{{- /* {header} */ -}}}}
{{{{- if .Values.crds.install }}}}
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {name}
  labels:
    {{{{- include "modelfleet.labels" . | nindent 4 }}}}
  {{{{- if .Values.crds.keep }}}}
  annotations:
    # Deleting the CRD deletes every {kind}: `helm uninstall` leaves it.
    helm.sh/resource-policy: keep
  {{{{- end }}}}
{spec}{{{{- end }}}}
"""


def crd_path(kind: Kind = LLM_DEPLOYMENT) -> Path:
    """Where the CRD of a kind is in the repository."""
    return Path("crds") / f"{names.GROUP}_{kind.plural}.yaml"


def chart_path(kind: Kind = LLM_DEPLOYMENT) -> Path:
    """Where the chart's template of it is."""
    return Path("helm") / "modelfleet" / "templates" / "crds" / f"{kind.plural}.yaml"


def rendered() -> dict[Path, str]:
    """What each generated file must hold, by its path in the repository; kinds that nothing reads have none."""
    files: dict[Path, str] = {}
    for kind in INSTALLED_KINDS:
        spec = _yaml({"spec": crd_spec(kind)})
        if "{{" in spec:
            raise ValueError(f"the CRD of {kind.name} holds '{{{{', which Helm would take for a template")
        files[crd_path(kind)] = f"# {HEADER}\n{_yaml(crd(kind))}"
        files[chart_path(kind)] = _CHART_TEMPLATE.format(
            header=HEADER, name=kind.definition_name, kind=kind.name, spec=spec
        )
    return files


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=True, width=120, allow_unicode=True)


class _PlainDumper(yaml.SafeDumper):
    """Writes equal objects twice instead of as an anchor and an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files, or with --check prints what differs and returns 1."""
    parser = argparse.ArgumentParser(prog="python -m modelfleet_api.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: the one of this file)")
    arguments = parser.parse_args(argv)
    is_stale = False
    for path, text in rendered().items():
        target = arguments.root / path
        present = target.read_text(encoding="utf-8") if target.exists() else ""
        if present == text:
            continue
        if arguments.check:
            is_stale = True
            diff = difflib.unified_diff(
                present.splitlines(True), text.splitlines(True), f"{path} (present)", f"{path} (generated)"
            )
            sys.stdout.writelines(diff)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    if is_stale:
        print("stale: run `make generate`", file=sys.stderr)
    return 1 if is_stale else 0


if __name__ == "__main__":
    sys.exit(main())
