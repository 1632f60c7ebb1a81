"""The programs the clusters are made of, built from their Go modules and cached by content.

`binary("kube-apiserver")` gives the path, after a build where the cache has none. A build is keyed by the module's
go.mod, go.sum and main.go, the version and the build flags, and is moved into the cache when it is complete; a lock
file keeps two processes from building the same thing. Nothing here starts any of these programs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.gotool import find_go
from e2e.cluster.locks import exclusive
from e2e.cluster.paths import cache_directory
from e2e.cluster.shell import run_long, say

MODULES = Path(__file__).parent / "go"
KUBERNETES_VERSION = "v1.34.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One Go program: its module, the package to build, and the names it is called by."""

    module: str
    version: str
    package: str = "."
    link_flags: tuple[str, ...] = ()
    names: tuple[str, ...]


TOOLS = (
    Tool(
        module="kube",
        version=KUBERNETES_VERSION,
        # Without these the components report v0.0.0, and clients complain about the version skew.
        link_flags=(
            f"-X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}",
            "-X k8s.io/component-base/version.gitMajor=1",
            "-X k8s.io/component-base/version.gitMinor=34",
            "-X k8s.io/component-base/version.gitTreeState=clean",
        ),
        names=(
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        ),
    ),
    Tool(module="coredns", version="v1.12.4", names=("coredns",)),
    Tool(module="helm", version="v3.18.6", package="helm.sh/helm/v3/cmd/helm", names=("helm",)),
    Tool(module="pause", version="1", names=("pause",)),
)

BUILD_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false")


def binary(name: str) -> Path:
    """The path of the program `name`, built now if the cache has none; raises KeyError for an unknown name."""
    for tool in TOOLS:
        if name in tool.names:
            return _built(tool) / name
    raise KeyError(f"{name}: not one of {', '.join(name for tool in TOOLS for name in tool.names)}")


def build_all() -> None:
    """Builds what the cache lacks, and removes earlier versions of the same tools."""
    for tool in TOOLS:
        current = _built(tool)
        for other in current.parent.glob(f"{tool.module}-*"):
            if other != current and other.is_dir() and _unused_for_days(other) > 14:
                shutil.rmtree(other)


def content_hash(tool: Tool) -> str:
    """What the binary is made from, as 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go"):
        path = MODULES / tool.module / name
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes() if path.exists() else b"")
    digest.update("\0".join((tool.version, tool.package, *tool.link_flags, *BUILD_FLAGS, *tool.names)).encode())
    return digest.hexdigest()[:12]


def _built(tool: Tool) -> Path:
    target = cache_directory() / "bin" / f"{tool.module}-{content_hash(tool)}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target.with_suffix(".lock"), what=f"the build of {tool.module}"):
            if not target.exists():
                _build(tool, target=target)
    return target


def _build(tool: Tool, *, target: Path) -> None:
    started = time.monotonic()
    go = find_go()
    say(f"building {tool.module} {tool.version} ({', '.join(tool.names)}); the first time takes minutes")
    building = Path(tempfile.mkdtemp(prefix=f".{tool.module}-", dir=target.parent))
    try:
        link = " ".join(("-s", "-w", *tool.link_flags))
        run_long(
            [str(go), "build", *BUILD_FLAGS, "-ldflags", link, "-o", str(building / tool.module), tool.package],
            what=f"building {tool.module}",
            log=target.with_suffix(".log"),
            cwd=MODULES / tool.module,
            # Our flags alone: the user's GOFLAGS would make the content hash a lie.
            env={"CGO_ENABLED": "0", "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off"},
        )
        for name in tool.names:
            if name != tool.module:
                (building / name).symlink_to(tool.module)
        building.chmod(0o755)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    say(f"built {tool.module} in {time.monotonic() - started:.0f} s")


def _unused_for_days(directory: Path) -> float:
    return (time.time() - os.stat(directory).st_mtime) / 86400
