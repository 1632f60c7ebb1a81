"""kubectl as a typed helper for the demo and the e2e tests; strict field validation, one kubeconfig."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.shell import CommandError, run
from e2e.cluster.toolchain import binary

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """Runs kubectl against one cluster; every method raises CommandError with kubectl's own words."""

    kubeconfig: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line, for callers that need the process itself."""
        return [str(binary("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]

    def run(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60.0) -> str:
        """Runs one command to its end and returns its standard output."""
        return run(self.command(*arguments), stdin=stdin, timeout_seconds=timeout_seconds)

    def interactive(self, *arguments: str) -> int:
        """Runs one command on the caller's terminal and returns its exit code."""
        return subprocess.run(self.command(*arguments), check=False).returncode

    def apply(self, *manifests: Mapping[str, Any], namespace: str | None = None) -> None:
        """Server-side apply of objects, refused on any unknown field."""
        scope = ["-n", namespace] if namespace else []
        listing = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.run("apply", "--server-side", "--force-conflicts", "--validate=strict", *scope, "-f", "-", stdin=listing)

    def get(self, kind: str, name: str, *, namespace: str | None = None) -> Manifest | None:
        """One object, or None where there is none."""
        scope = ["-n", namespace] if namespace else []
        try:
            text = self.run("get", kind, name, *scope, "-o", "json")
        except CommandError as error:
            if "NotFound" in str(error):
                return None
            raise
        parsed: Manifest = json.loads(text)
        return parsed

    def list(self, kind: str, *, namespace: str, selector: str | None = None) -> Sequence[Manifest]:
        """All objects of a kind in a namespace."""
        chosen = ["-l", selector] if selector else []
        items: list[Manifest] = json.loads(self.run("get", kind, "-n", namespace, *chosen, "-o", "json"))["items"]
        return items

    def ensure_namespace(self, name: str) -> None:
        """Creates the namespace where it is absent."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
