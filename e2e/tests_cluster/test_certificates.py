"""Certificates hold in a real TLS handshake, both ways."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from pathlib import Path

import pytest

from e2e.cluster.certificates import Authority, KeyPair, write_kubeconfig


def _handshake(server: KeyPair, *, client: KeyPair, authority: Path, host: str) -> str:
    """The common name the server sees of the client."""
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority))
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.load_cert_chain(server.certificate, server.key)
    asking = ssl.create_default_context(cafile=str(authority))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    asking.load_cert_chain(client.certificate, client.key)
    near, far = socket.socketpair()
    seen: list[str] = []

    def accept() -> None:
        with near, accepting.wrap_socket(near, server_side=True) as connection:
            certificate = connection.getpeercert()
            assert certificate is not None
            seen.extend(str(pair[1]) for part in certificate["subject"] for pair in part)
            connection.sendall(b"!")

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        with far, asking.wrap_socket(far, server_hostname=host) as connection:
            assert connection.recv(1) == b"!"
    finally:
        thread.join()
    return " ".join(seen)


@pytest.mark.parametrize("host", ["kubernetes.default.svc", "198.19.0.1"])
def test_server_and_client_certificates_of_one_authority_accept_each_other(tmp_path: Path, host: str) -> None:
    authority = Authority("ca", directory=tmp_path)
    server = authority.server("server", hosts=["kubernetes.default.svc", "198.19.0.1"])
    client = authority.client("client", user="system:node:one", groups=["system:nodes"])
    subject = _handshake(server, client=client, authority=authority.files.certificate, host=host)
    assert subject == "system:nodes system:node:one"


def test_keys_are_for_the_owner_alone(tmp_path: Path) -> None:
    client = Authority("ca", directory=tmp_path).client("client", user="x")
    assert client.key.stat().st_mode & 0o777 == 0o600


def test_a_kubeconfig_carries_everything_inline(tmp_path: Path) -> None:
    authority = Authority("ca", directory=tmp_path)
    client = authority.client("client", user="x")
    path = write_kubeconfig(
        tmp_path / "config", server="https://a:1", authority=authority.files.certificate, client=client
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(tmp_path) not in path.read_text()
    assert json.loads(path.read_text())["clusters"][0]["cluster"]["server"] == "https://a:1"
