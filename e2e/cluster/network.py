"""The local cluster's network: bridges, routes, firewall rules and kernel settings, and their removal.

Addresses are from 198.18.0.0/15 (RFC 2544, for benchmarks), which no user's network has. Pods of node i have
198.18.i.0/24 behind the bridge mfbr<i>; services have 198.19.0.0/16, which exists only as kube-proxy's DNAT rules.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.shell import CommandError, UserError, run

POD_RANGE = "198.18.0.0/16"
SERVICE_RANGE = "198.19.0.0/16"
CLUSTER_RANGE = "198.18.0.0/15"
BRIDGE_PREFIX = "mfbr"
# kube-proxy's and ours; the CNI plugins make none, because masquerading is done here.
CHAIN_PREFIXES = ("KUBE-", "MODELFLEET-")
# kube-proxy writes rules for both families where the kernel has both.
IPTABLES = ("iptables", "ip6tables") if Path("/proc/net/if_inet6").exists() else ("iptables",)

SETTINGS = {
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
}
# The kubelet sets these itself, without asking.
KUBELET_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNetwork:
    """The addresses of node `index` (0-based)."""

    index: int

    @property
    def bridge(self) -> str:
        return f"{BRIDGE_PREFIX}{self.index}"

    @property
    def address(self) -> str:
        """The bridge's own address: the pods' gateway, and the node's InternalIP."""
        return f"198.18.{self.index}.1"

    @property
    def pod_range(self) -> str:
        return f"198.18.{self.index}.0/24"


def set_up_machine(state: Path) -> None:
    """Kernel settings (their old values are kept in `state`) and the firewall rules all nodes share."""
    if not Path("/proc/sys/net/bridge").exists():
        try:
            run(["modprobe", "br_netfilter"])
        except CommandError as failed:
            raise UserError(f"load the kernel module br_netfilter: {failed}") from failed
    changed = [name for name in (*SETTINGS, *KUBELET_SETTINGS) if _setting(name).exists()]
    saved = {name: _setting(name).read_text().strip() for name in changed}
    (state / "sysctl.json").write_text(json.dumps(saved))
    for name, value in SETTINGS.items():
        _setting(name).write_text(value)
    for table, parent, chain, rule in (
        # Pods reach the outside as this machine; among themselves and to services they keep their addresses.
        ("nat", "POSTROUTING", "MODELFLEET-MASQ", ["-s", POD_RANGE, "!", "-d", CLUSTER_RANGE, "-j", "MASQUERADE"]),
        # A container engine on the same machine may have set the policy of FORWARD to DROP.
        ("filter", "FORWARD", "MODELFLEET-FORWARD", ["-s", CLUSTER_RANGE, "-j", "ACCEPT"]),
        ("filter", "FORWARD", "MODELFLEET-FORWARD", ["-d", CLUSTER_RANGE, "-j", "ACCEPT"]),
    ):
        _add_rule(table=table, parent=parent, chain=chain, rule=rule)


def set_up_node(network: NodeNetwork) -> None:
    """The node's bridge with its address; the first one also brings the routes of the whole cluster."""
    run(["ip", "link", "add", network.bridge, "type", "bridge"])
    run(["ip", "address", "add", f"{network.address}/24", "dev", network.bridge])
    run(["ip", "link", "set", network.bridge, "up"])
    if network.index == 0:
        # No stray packet may leave the machine. A blackhole on the service range itself would break DNAT of
        # locally generated packets, which are routed before they are translated.
        run(["ip", "route", "add", "blackhole", POD_RANGE, "metric", "4000"])
        run(["ip", "route", "add", SERVICE_RANGE, "dev", network.bridge])


def cni_configuration(network: NodeNetwork, *, state: Path) -> dict[str, object]:
    """The CNI network list of a node: the bridge plugin with host-local addresses."""
    ipam = {
        "type": "host-local",
        "dataDir": str(state / "ipam"),
        "ranges": [[{"subnet": network.pod_range, "gateway": network.address}]],
        "routes": [{"dst": CLUSTER_RANGE}, {"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": network.bridge,
        "isGateway": True,
        "ipMasq": False,
        # A pod that calls its own Service is answered through the port it came from.
        "hairpinMode": True,
        "ipam": ipam,
    }
    return {"cniVersion": "0.4.0", "name": network.bridge, "plugins": [bridge]}


def tear_down(state: Path) -> None:
    """Removes every bridge, veth, route and rule of ours and restores the kernel settings; safe to repeat."""
    for bridge in bridges():
        for port in _links("master", bridge):
            delete_link(port)
        # The routes through the bridge go with it.
        delete_link(bridge)
    if _blackhole_routes():
        run(["ip", "route", "delete", "blackhole", POD_RANGE])
    for command in IPTABLES:
        for table in _tables(command):
            _remove_chains(command, table=table)
    saved = state / "sysctl.json"
    if saved.exists():
        for name, value in json.loads(saved.read_text()).items():
            if _setting(name).read_text().strip() != value:
                _setting(name).write_text(value)


def delete_link(name: str) -> None:
    """Deletes a link. The kernel removes a dead pod's veth by itself, at a time of its own: gone is as good."""
    try:
        run(["ip", "link", "delete", name])
    except CommandError:
        if Path("/sys/class/net", name).exists():
            raise


def bridges() -> list[str]:
    """Our bridges that exist on this machine."""
    return [link for link in _links("type", "bridge") if link.startswith(BRIDGE_PREFIX)]


def leftovers() -> list[str]:
    """Network traces of a cluster, one line each."""
    found = [f"bridge {bridge}" for bridge in bridges()]
    found += [f"route {route}" for route in _blackhole_routes()]
    for command in IPTABLES:
        for table in _tables(command):
            rules = run([f"{command}-save", "-t", table])
            found += [f"{command} {table}: {line}" for line in rules.splitlines() if is_our_rule(line)]
    return found


def is_our_rule(line: str) -> bool:
    """Whether a line of iptables-save declares one of our chains, belongs to one or jumps to one."""
    words = line.split()
    if line.startswith(":"):
        words = [line[1:].split()[0]]
    return bool(words) and any(word.startswith(CHAIN_PREFIXES) for word in words)


def _remove_chains(command: str, *, table: str) -> None:
    before = run([f"{command}-save", "-c", "-t", table]).splitlines()
    kept = [line for line in before if not is_our_rule(line)]
    if kept != before:
        # All at once, and other people's rules keep their counters.
        run([f"{command}-restore", "-c", "-T", table], stdin="\n".join(kept) + "\n")


def _add_rule(*, table: str, parent: str, chain: str, rule: list[str]) -> None:
    existing = run(["iptables-save", "-t", table])
    if f":{chain} " not in existing:
        run(["iptables", "-w", "-t", table, "-N", chain])
        run(["iptables", "-w", "-t", table, "-I", parent, "-j", chain])
    run(["iptables", "-w", "-t", table, "-A", chain, *rule])


def _tables(command: str) -> list[str]:
    # Asking for a table that does not exist would create it.
    return [line[1:] for line in run([f"{command}-save"]).splitlines() if line.startswith("*")]


def _links(key: str, value: str) -> list[str]:
    output = json.loads(run(["ip", "-json", "link", "show", key, value]) or "[]")
    return [link["ifname"] for link in output if link]


def _blackhole_routes() -> list[str]:
    output = run(["ip", "route", "show", "type", "blackhole"]).splitlines()
    return [route.strip() for route in output if POD_RANGE in route]


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name
