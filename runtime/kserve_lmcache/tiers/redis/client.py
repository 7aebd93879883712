"""Makes redis-py clients for a :class:`~kserve_lmcache.config.stores.Remote`."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.credentials import CredentialProvider
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from kserve_lmcache.config.store_url import Address
from kserve_lmcache.config.stores import Remote, read_password

# All keys begin with the prefix, so that an ACL can name them and an operator recognizes them.
KEY_PREFIX = "kserve-lmcache:"


def connect(remote: Remote, timeout: float, **options: Any) -> redis.Redis | redis.RedisCluster:
    """Makes a client of the store: the server, the cluster, or the sentinels' primary.

    Args:
        remote: must speak Redis.
        timeout: of each connection, request and answer, in seconds.
        options: of redis-py's connections. They replace those derived from ``remote``.

    Raises:
        ValueError: the URL is invalid.
        redis.RedisError: the nodes of a cluster do not report its layout. Other clients connect
            at their first command. An ACL's refusal is a ``NoPermissionError``.
    """
    location = remote.redis_location()
    if remote.scheme == "redis-cluster":
        return cluster_client(remote, timeout, **options)
    if remote.has_sentinels:
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
            location.addresses, sentinel_kwargs=_sentinel_options(remote, timeout)
        )
        options = {**_options(remote, timeout), "db": location.database, **options}
        primary: redis.Redis = sentinel.master_for(location.service, **options)
        return primary
    return node_client(remote, next(iter(location.addresses), None), timeout, **options)


def cluster_client(remote: Remote, timeout: float, **options: Any) -> redis.RedisCluster:
    """Makes a client of a whole cluster. The arguments and errors are those of :func:`connect`."""
    options = {**_options(remote, timeout), **options}
    # Keeps the servers of the URL, even where the cluster announces other addresses.
    options["dynamic_startup_nodes"] = False
    nodes = [
        ClusterNode(host, port)  # type: ignore[no-untyped-call]
        for host, port in remote.redis_location().addresses
    ]
    try:
        return redis.RedisCluster(startup_nodes=nodes, **options)
    except RedisClusterException as error:  # which is not a RedisError
        if refused := _refusal(error):
            raise refused from error
        raise redis.ConnectionError(str(error)) from error


def _refusal(error: BaseException | None) -> NoPermissionError | None:
    """The refusal of an ACL that redis-py took for a server that is part of no cluster."""
    while error is not None and not isinstance(error, NoPermissionError):
        error = error.__cause__ or error.__context__
    return error


def node_client(
    remote: Remote, address: Address | None, timeout: float, **options: Any
) -> redis.Redis:
    """Makes a client of one server, or of the Unix socket where ``address`` is ``None``.

    The client connects at its first command. The other arguments are those of :func:`connect`.

    Raises:
        ValueError: the URL is invalid.
    """
    location = remote.redis_location()
    options = {**_options(remote, timeout), **options}
    if remote.scheme != "redis-cluster":
        options["db"] = location.database
    if address is None:
        return redis.Redis(unix_socket_path=location.socket_path, **options)
    return redis.Redis(*address, **options)


def sentinel_client(remote: Remote, address: Address, timeout: float) -> redis.Redis:
    """Makes a client of one sentinel. The timeout is that of :func:`connect`."""
    return redis.Redis(*address, **_sentinel_options(remote, timeout))


def socket_of(connection: Any) -> socket.socket:
    """The socket of a client's connection, for what redis-py reads more slowly.

    Raises:
        redis.ConnectionError: another thread has closed the connection.
    """
    found: socket.socket | None = connection._sock  # nothing public gives it
    if found is None:
        raise redis.ConnectionError("the connection was closed")
    return found


def tls_context(remote: Remote) -> ssl.SSLContext:
    """Makes a TLS context that verifies and identifies as the clients do.

    The context trusts the system's authorities and those of ``ca_file``, as redis-py does.

    Raises:
        OSError: a file cannot be read, or holds no certificate or key (``ssl.SSLError``).
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if remote.ca_file:
        context.load_verify_locations(cafile=remote.ca_file)
    if remote.cert_file:
        context.load_cert_chain(remote.cert_file, remote.key_file)
    return context


def _options(remote: Remote, timeout: float) -> dict[str, Any]:
    return {
        **_timeouts(timeout),
        **_login(remote.username, remote.password, remote.password_file),
        **_tls(remote),
    }


def _sentinel_options(remote: Remote, timeout: float) -> dict[str, Any]:
    # The credentials of the primary are none of the sentinels': a sentinel without a password
    # refuses any.
    user, password = remote.sentinel_username, remote.sentinel_password
    return {
        **_timeouts(timeout),
        **_login(user, password, remote.sentinel_password_file),
        **_tls(remote),
    }


def _login(username: str | None, password: str | None, file: str | None) -> dict[str, Any]:
    if file:
        return {"credential_provider": _PasswordFile(username, file)}
    return {"username": username, "password": password}


def _tls(remote: Remote) -> dict[str, Any]:
    if not remote.uses_tls:
        return {}
    return {
        "ssl": True,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        "ssl_ca_certs": remote.ca_file,
        "ssl_certfile": remote.cert_file,
        "ssl_keyfile": remote.key_file,
    }


class _PasswordFile(CredentialProvider):
    """Reads the password for every new connection, since a mounted Secret may be rotated."""

    def __init__(self, username: str | None, path: str) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Returns the user, if there is one, and the password."""
        try:
            password = read_password(self._path)
        except (OSError, ValueError) as error:
            raise redis.AuthenticationError(f"{self._path!r} cannot be read ({error})") from None
        return (self._username, password) if self._username else (password,)


def _timeouts(timeout: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # A retry would multiply the timeout. The caller decides whether to try again.
        "retry": Retry(NoBackoff(), 0),
        # Every server and every proxy in front of one understands this version.
        "protocol": 2,
    }
