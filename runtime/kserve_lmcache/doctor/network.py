"""The road to a store: its name, and a TCP connection (or its Unix socket)."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Sequence
from functools import partial

from kserve_lmcache.config.stores import Address, Remote
from kserve_lmcache.doctor.check import Finding, failure, ok, warning
from kserve_lmcache.doctor.stage import Stage, within

NAME = "remote name"
CONNECTION = "remote connection"

_FIX_NAME = (
    "Correct the host in remote_url ({source}); in Kubernetes a service of another namespace is "
    "SERVICE.NAMESPACE.svc."
)
_FIX_REFUSED = (
    "Start the server, or correct the port ({source}); a server listens only on the addresses of "
    "its bind setting."
)
_FIX_SILENT = "Look for a firewall or a NetworkPolicy on the way, or correct the URL ({source})."


class Road:
    """The road to one store, which several servers may make up.

    Attributes:
        reached: the servers that accepted a connection, in the order of the URL.
    """

    def __init__(self, remote: Remote, addresses: Sequence[Address], patience: float) -> None:
        self._remote = remote
        self._addresses = addresses
        self._patience = patience
        self._resolved: dict[Address, list[Address]] = {}
        self.reached: list[Address] = []

    def stages(self) -> list[Stage]:
        """Both stages, in order."""
        return [Stage(NAME, self.resolve), Stage(CONNECTION, self.connect, (NAME,))]

    def resolve(self) -> Finding:
        """Ask the name service."""
        known, unknown = [], []
        for host, port in self._addresses:
            if _is_number(host):
                self._resolved[host, port] = [(host, port)]
                known.append(f"{host} is an address")
                continue
            try:
                found = within(self._patience, partial(_resolve, host, port))
            except TimeoutError:
                reason = f"the name service does not answer within {self._patience:g} s"
                unknown.append(f"{host} cannot be resolved ({reason})")
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                unknown.append(f"{host} cannot be resolved ({reason})")
            else:
                self._resolved[host, port] = found
                numbers = ", ".join(number for number, _ in found)
                known.append(f"{host} is {numbers}")
        fix = _FIX_NAME.format(source=self._remote.source)
        return _summary(NAME, known, unknown, fix)

    def connect(self) -> Finding:
        """Open a connection to every server, and close it."""
        open_ones, closed_ones = [], []
        fix = _FIX_SILENT
        patience = self._patience / len(self._addresses)
        for address, candidates in self._resolved.items():
            try:
                number = _connect(candidates, patience)
            except ConnectionRefusedError:
                closed_ones.append(f"{show(address)} refuses the connection")
                fix = _FIX_REFUSED
            except TimeoutError:
                closed_ones.append(f"{show(address)} does not answer within {patience:g} s")
            except OSError as error:
                closed_ones.append(f"{show(address)}: {error.strerror or error}")
            else:
                self.reached.append(address)
                open_ones.append(show(number))
        return _summary(CONNECTION, open_ones, closed_ones, fix.format(source=self._remote.source))


def connect_unix_socket(remote: Remote, path: str, patience: float) -> Finding:
    """Open a connection to a Unix socket, and close it."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(patience)
            client.connect(path)
    except OSError as error:
        return failure(
            CONNECTION,
            f"{path}: {error.strerror or error}",
            "Start the server, mount its socket here and let this user write to it, or correct "
            f"remote_url ({remote.source}).",
        )
    return ok(CONNECTION, path)


def show(address: Address) -> str:
    """``HOST:PORT``, as a URL has it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _summary(name: str, good: Sequence[str], bad: Sequence[str], fix: str) -> Finding:
    evidence = ", ".join(dict.fromkeys((*good, *bad)))
    if not bad:
        return ok(name, evidence)
    return (warning if good else failure)(name, evidence, fix)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolve(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(address[0]), port) for *_, address in found))


def _connect(candidates: Sequence[Address], patience: float) -> Address:
    """The first that accepts; the others' time is taken from the same ``patience``."""
    deadline = time.monotonic() + patience
    error: OSError = TimeoutError()
    for candidate in candidates:
        try:
            rest = max(0.001, deadline - time.monotonic())
            socket.create_connection(candidate, timeout=rest).close()
        except OSError as reason:
            error = reason
        else:
            return candidate
    raise error
