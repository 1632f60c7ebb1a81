"""A real API server and nothing behind it: etcd and kube-apiserver on free loopback ports, ready in about 3 s.

For integration tests: objects are stored, validated, defaulted, watched and served with their subresources; no
controller runs, so nothing is created, scheduled or garbage-collected. Needs neither root nor network once built.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from e2e.cluster import control_plane, processes
from e2e.cluster.certificates import Authority
from e2e.cluster.toolchain import binary


class ApiServer:
    """Context manager; inside it `url`, `ca_path`, `token`, the client certificate and `kubeconfig_path` are valid.

    Each credential is an administrator's (group system:masters). The processes end with the calling process,
    however that ends.
    """

    def __init__(self, *, extra_flags: tuple[str, ...] = ()) -> None:
        self._extra_flags = extra_flags
        self._directory = Path(tempfile.mkdtemp(prefix="modelfleet-api-"))
        secure, etcd, etcd_peer = control_plane.free_ports(3)
        self._plane = control_plane.ControlPlane(
            directory=self._directory,
            address="127.0.0.1",
            secure_port=secure,
            etcd_port=etcd,
            etcd_peer_port=etcd_peer,
            dies_with="parent",
        )
        pki = self._plane.pki
        self.url = self._plane.url
        self.token = secrets.token_hex(16)
        self.ca_path = pki / "ca.crt"
        self.client_certificate_path = pki / "admin.crt"
        self.client_key_path = pki / "admin.key"
        self.kubeconfig_path = self._plane.kubeconfig("admin")

    def __enter__(self) -> ApiServer:
        binary("kube-apiserver")
        authority = Authority("ca", directory=self._plane.pki)
        credentials = control_plane.write_credentials(self._plane, authority=authority)
        tokens = self._directory / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{self.token},admin,admin,"system:masters"\n')
        flags = (
            f"--token-auth-file={tokens}",
            # Nothing may be written on the server's own account: the loopback is no valid endpoint address, and
            # without controllers no service account would ever exist for a pod to be admitted with.
            "--endpoint-reconciler-type=none",
            "--disable-admission-plugins=ServiceAccount",
            *self._extra_flags,
        )
        try:
            control_plane.start_etcd(self._plane)
            control_plane.start_api_server(self._plane, credentials=credentials, extra_flags=flags)
            control_plane.wait_ready(self._plane)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log(self, name: str) -> str:
        """The log so far of `etcd` or `kube-apiserver`."""
        return self._plane.log(name).read_text(errors="replace")

    def close(self) -> None:
        """Stops both processes and removes their files; harmless a second time."""
        # A graceful stop of kube-apiserver takes seconds, and nothing here is worth saving.
        processes.stop(processes.read_records(self._plane.records), timeout_seconds=0)
        shutil.rmtree(self._directory, ignore_errors=True)
