"""What the local provider needs from the distribution, and how to get it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from e2e.cluster.node import CNI_PLUGINS
from e2e.cluster.paths import cache_directory
from e2e.cluster.shell import UserError, run_long, say

# Program (or CNI plugin) -> the Debian and Ubuntu package that has it.
PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ip": "iproute2",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
CNI_PACKAGE = "containernetworking-plugins"
# Ubuntu has it as a package of its own; debootstrap checks Debian's signatures with it.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def missing_packages() -> list[str]:
    """The Debian packages this machine still needs."""
    # A user's PATH may lack the directories these programs are in.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None}
    if not any((Path(directory) / "bridge").exists() for directory in CNI_PLUGINS):
        missing.add(CNI_PACKAGE)
    if not KEYRING.exists():
        missing.add("debian-archive-keyring")
    return sorted(missing)


def require() -> None:
    """Raises UserError, in one line, when the local provider cannot run here."""
    if missing := missing_packages():
        raise UserError(f"install: {' '.join(missing)} (`python -m e2e.cluster prerequisites` does it with apt)")
    if os.geteuid() != 0:
        raise UserError("the local cluster runs as root: `sudo make …`, or install Docker and kind")


def install() -> None:
    """Installs what is missing with apt, through sudo where this is not root; raises UserError when it cannot."""
    missing = missing_packages()
    if not missing:
        say("prerequisites: all there")
        return
    if shutil.which("apt-get") is None:
        raise UserError(f"install: {' '.join(missing)} (Debian package names; there is no apt-get here)")
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    if prefix and shutil.which("sudo") is None:
        raise UserError(f"as root: apt-get install --no-install-recommends {' '.join(missing)}")
    log = cache_directory() / "logs" / "apt.log"
    quiet = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    run_long([*prefix, "env", *quiet, "update"], what="apt-get update", log=log)
    install_command = [*prefix, "env", *quiet, "install", "-y", "--no-install-recommends", *missing]
    run_long(install_command, what=f"installing {' '.join(missing)}", log=log)
