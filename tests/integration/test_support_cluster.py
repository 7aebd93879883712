"""The pods of the tests on a machine with the firewall that a container engine sets up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster.images import ROOT

pytestmark = pytest.mark.cluster

# A network namespace stands for the machine: the rules of the real one stay as they are.
MACHINE = """
ip link set lo up
iptables --policy FORWARD DROP
# It is missing where the kernel shows no bridge's packets to iptables.
FILTER=/proc/sys/net/bridge/bridge-nf-call-iptables
if [ -e "$FILTER" ]; then echo 1 > "$FILTER"; fi
exec "$@"
"""
# A refusal has passed between the two in both directions. A dropped packet is a timeout.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=3)
except ConnectionRefusedError:
    print("reached")
"""
PODS = f"""
import subprocess, sys
from pathlib import Path
from tests.support.cluster import Cluster

with Cluster.up(Path(sys.argv[1]), []) as cluster:
    one, other = (cluster.pod(name, {{}}) for name in ("one", "other"))
    connect = [sys.executable, "-c", {CONNECT!r}, other.address]
    for place in ([], ["nsenter", f"--net=/run/netns/{{one.namespace}}"]):
        subprocess.run([*place, *connect], check=True)
"""


def test_a_container_engines_firewall_does_not_reach_between_pods(tmp_path: Path) -> None:
    pods = [sys.executable, "-c", PODS, str(tmp_path)]
    command = ["unshare", "--net", "sh", "-ec", MACHINE, "sh", *pods]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("reached\nreached\n", "")
