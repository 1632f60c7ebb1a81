"""Where the API server is and how to prove who we are: in-cluster, or a kubeconfig file.

Must not log or show credentials: `Connection` hides them from its repr.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_KUBECONFIG = Path("~/.kube/config")


class ConnectionConfigError(ValueError):
    """The configuration cannot be used; the message says which entry is missing or not supported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One API server and one identity. PEM data as text; `token_file` is read anew by `bearer_token`."""

    server: str
    ca_pem: str | None = None
    client_certificate_pem: str | None = field(default=None, repr=False)
    client_key_pem: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    is_insecure: bool = False

    def bearer_token(self) -> str | None:
        """The token of now: kubelets replace the file of a service account about hourly."""
        if self.token_file is not None:
            return self.token_file.read_text(encoding="utf-8").strip()
        return self.token

    def ssl_context(self) -> ssl.SSLContext:
        """A client context with the server's CA and, where there is one, our certificate."""
        context = ssl.create_default_context(cadata=self.ca_pem)
        if self.is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_certificate_pem is not None and self.client_key_pem is not None:
            # ssl reads key pairs from files only; this one is readable by us alone, and gone at once.
            with tempfile.NamedTemporaryFile(mode="w", suffix=".pem") as pair:
                pair.write(f"{self.client_certificate_pem}\n{self.client_key_pem}\n")
                pair.flush()
                context.load_cert_chain(pair.name)
        return context


def load_connection(environment: Mapping[str, str] | None = None) -> Connection:
    """`KUBECONFIG` where set, else in-cluster where we run in a pod, else `~/.kube/config`.

    Raises ConnectionConfigError where none of them can be used.
    """
    environment = os.environ if environment is None else environment
    if environment.get("KUBECONFIG"):
        return load_kubeconfig(Path(environment["KUBECONFIG"]))
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return load_in_cluster(environment)
    return load_kubeconfig(DEFAULT_KUBECONFIG.expanduser())


def load_in_cluster(environment: Mapping[str, str], *, directory: Path = SERVICE_ACCOUNT_DIRECTORY) -> Connection:
    """The pod's own service account. Raises ConnectionConfigError where its files are not mounted."""
    host = environment["KUBERNETES_SERVICE_HOST"]
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    ca_file = directory / "ca.crt"
    if not ca_file.exists():
        raise ConnectionConfigError(f"{ca_file} is missing: is automountServiceAccountToken off?")
    return Connection(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        ca_pem=ca_file.read_text(encoding="utf-8"),
        token_file=directory / "token",
    )


def load_kubeconfig(path: Path, *, context: str | None = None) -> Connection:
    """One context of a kubeconfig file, by default its current one.

    Raises ConnectionConfigError for a missing file or entry, and for credential plugins (`exec`, `auth-provider`).
    """
    if not path.exists():
        raise ConnectionConfigError(f"no kubeconfig at {path}, and not running in a pod")
    document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    wanted = _entry(document, section="contexts", name=context or document.get("current-context"))
    cluster = _entry(document, section="clusters", name=wanted.get("cluster"))
    user = _entry(document, section="users", name=wanted.get("user"))
    for plugin in ("exec", "auth-provider"):
        if plugin in user:
            raise ConnectionConfigError(f"{path}: credential plugins ({plugin}) are not supported; use a token")
    token_file = user.get("tokenFile")
    return Connection(
        server=str(cluster["server"]).rstrip("/"),
        ca_pem=_pem(cluster, key="certificate-authority", directory=path.parent),
        client_certificate_pem=_pem(user, key="client-certificate", directory=path.parent),
        client_key_pem=_pem(user, key="client-key", directory=path.parent),
        token=user.get("token"),
        token_file=path.parent / token_file if token_file else None,
        is_insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
    )


def _entry(document: Mapping[str, Any], *, section: str, name: str | None) -> dict[str, Any]:
    for item in document.get(section) or []:
        if item.get("name") == name:
            content: dict[str, Any] = item.get(section.removesuffix("s")) or {}
            return content
    raise ConnectionConfigError(f"the kubeconfig has no entry {name!r} under {section}")


def _pem(entry: Mapping[str, Any], *, key: str, directory: Path) -> str | None:
    if entry.get(f"{key}-data"):
        return base64.b64decode(entry[f"{key}-data"]).decode("utf-8")
    if entry.get(key):
        return (directory / str(entry[key])).read_text(encoding="utf-8")
    return None
