"""Free TCP ports."""

import random
import socket
from pathlib import Path

_LOWEST = 10_000


def free_port() -> int:
    """Of those that no outgoing connection is given.

    So it stays free while a server is down, and no client that tries it meanwhile is connected to
    itself. The port that a node of a cluster uses beside it, 10,000 above, is such a one as well,
    and never one that this function gives to another.
    """
    outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(_LOWEST, min(max(outgoing - _LOWEST, _LOWEST + 1000), 2 * _LOWEST))
        if may_listen("127.0.0.1", port):
            return port


def may_listen(host: str, port: int, reuse: bool = True) -> bool:
    """Whether a server may listen there, which sets SO_REUSEADDR as most do, or does not."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        try:
            listener.bind((host, port))
        except OSError:  # in use
            return False
        return True
