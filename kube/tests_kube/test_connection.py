"""Finding the API server: kubeconfig files and the pod's own service account."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml
from modelfleet_kube.connection import ConnectionConfigError, load_connection, load_in_cluster, load_kubeconfig

USER = {"client-certificate-data": base64.b64encode(b"CERT").decode(), "client-key": "key.pem"}


def kubeconfig(directory: Path, *, user: dict[str, object] | None = None) -> Path:
    document = {
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "broken", "context": {"cluster": "absent", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://example:6443/", "certificate-authority": "ca.pem"}}],
        "users": [{"name": "u", "user": USER if user is None else user}],
    }
    path = directory / "config"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    (directory / "ca.pem").write_text("CA", encoding="utf-8")
    (directory / "key.pem").write_text("KEY", encoding="utf-8")
    return path


def test_a_kubeconfig_gives_data_inline_or_from_files_beside_it(tmp_path: Path) -> None:
    connection = load_kubeconfig(kubeconfig(tmp_path))
    assert (connection.server, connection.ca_pem) == ("https://example:6443", "CA")
    assert (connection.client_certificate_pem, connection.client_key_pem) == ("CERT", "KEY")


@pytest.mark.parametrize(
    ("context", "user", "message"),
    [("broken", None, "no entry 'absent' under clusters"), (None, {"exec": {}}, r"plugins \(exec\) are not supported")],
)
def test_what_cannot_be_used_says_so(
    tmp_path: Path, context: str | None, user: dict[str, object] | None, message: str
) -> None:
    with pytest.raises(ConnectionConfigError, match=message):
        load_kubeconfig(kubeconfig(tmp_path, user=user), context=context)


def test_a_missing_file_says_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(ConnectionConfigError, match=r"no kubeconfig at .*nothing"):
        load_connection({"KUBECONFIG": str(tmp_path / "nothing")})


def test_in_a_pod_the_token_file_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("CA", encoding="utf-8")
    (tmp_path / "token").write_text("first\n", encoding="utf-8")
    connection = load_in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1"}, directory=tmp_path)
    assert (connection.server, connection.bearer_token()) == ("https://[fd00::1]:443", "first")
    (tmp_path / "token").write_text("second\n", encoding="utf-8")
    assert connection.bearer_token() == "second"


def test_a_pod_without_a_mounted_token_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConnectionConfigError, match="automountServiceAccountToken"):
        load_in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, directory=tmp_path)
