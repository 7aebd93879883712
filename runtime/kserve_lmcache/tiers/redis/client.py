"""Clients of redis-py for a :class:`Remote`: every form of its URL, its credentials, TLS."""

from __future__ import annotations

import ssl
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.credentials import CredentialProvider
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from kserve_lmcache.config.stores import Address, Remote

# What all keys begin with, so that an ACL can be limited to them and an operator knows whose
# they are.
KEY_PREFIX = "kserve-lmcache:"


def connect(remote: Remote, timeout: float, **more: Any) -> redis.Redis | redis.RedisCluster:
    """A client of the store: of the node, of the whole cluster, or of the sentinels' primary.

    Args:
        remote: must speak Redis.
        timeout: of each connection, request and answer, in seconds.
        more: options of redis-py's connections, over those that come from the rest.

    Raises:
        ValueError: the URL cannot be used.
        redis.RedisError: the cluster's nodes cannot be asked for its layout; the other clients
            connect at their first command.
    """
    location = remote.redis_location()
    if remote.scheme == "redis-cluster":
        return cluster_client(remote, timeout, **more)
    if remote.scheme == "redis-sentinel":
        # The credentials are the primary's: a sentinel without a password refuses any.
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
            location.addresses, sentinel_kwargs=_patience(timeout)
        )
        options = {**_options(remote, timeout), "db": location.database, **more}
        primary: redis.Redis = sentinel.master_for(location.service, **options)
        return primary
    return node_client(remote, next(iter(location.addresses), None), timeout, **more)


def cluster_client(remote: Remote, timeout: float, **more: Any) -> redis.RedisCluster:
    """A client of a whole cluster; arguments and errors are as for :func:`connect`."""
    options = {**_options(remote, timeout), **more}
    # The servers that are named stay known even when the cluster announces other addresses.
    options["dynamic_startup_nodes"] = False
    nodes = [
        ClusterNode(host, port)  # type: ignore[no-untyped-call]
        for host, port in remote.redis_location().addresses
    ]
    try:
        return redis.RedisCluster(startup_nodes=nodes, **options)
    except RedisClusterException as error:  # which is no RedisError
        raise redis.ConnectionError(str(error)) from error


def node_client(
    remote: Remote, address: Address | None, timeout: float, **more: Any
) -> redis.Redis:
    """A client of one server of the store, or of its Unix socket when there is no address.

    It connects at its first command; the other arguments are as for :func:`connect`.

    Raises:
        ValueError: the URL cannot be used.
    """
    location = remote.redis_location()
    options = {**_options(remote, timeout), **more}
    if remote.scheme != "redis-cluster":
        options["db"] = location.database
    if address is None:
        return redis.Redis(unix_socket_path=location.socket_path, **options)
    return redis.Redis(*address, **options)


def sentinel_client(address: Address, timeout: float) -> redis.Redis:
    """A client of one sentinel; ``timeout`` is as for :func:`connect`."""
    return redis.Redis(*address, **_patience(timeout))


def tls_context(remote: Remote) -> ssl.SSLContext:
    """What the clients demand of the server's certificate and show of their own.

    It trusts what redis-py trusts: the system's authorities, and the remote's beside them.

    Raises:
        OSError: one of the files cannot be read or holds nothing of use (``ssl.SSLError``).
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if remote.ca_file:
        context.load_verify_locations(cafile=remote.ca_file)
    if remote.cert_file:
        context.load_cert_chain(remote.cert_file, remote.key_file)
    return context


def _options(remote: Remote, timeout: float) -> dict[str, Any]:
    options = _patience(timeout)
    if remote.password_file:
        options["credential_provider"] = _MountedPassword(remote)
    else:
        options.update(username=remote.username, password=remote.password)
    if remote.uses_tls:
        options.update(
            ssl=True,
            ssl_cert_reqs="required",
            ssl_check_hostname=True,
            ssl_min_version=ssl.TLSVersion.TLSv1_2,
            ssl_ca_certs=remote.ca_file,
            ssl_certfile=remote.cert_file,
            ssl_keyfile=remote.key_file,
        )
    return options


class _MountedPassword(CredentialProvider):
    """Reads the password for every new connection, since a mounted Secret may be rotated."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """The user, if there is one, and the password."""
        try:
            password = self._remote.read_password()
        except (OSError, ValueError) as error:
            path = self._remote.password_file
            raise redis.AuthenticationError(f"{path!r} cannot be read ({error})") from None
        return (self._remote.username, password) if self._remote.username else (password,)


def _patience(timeout: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # A retry would multiply the time; who calls knows better whether to try again.
        "retry": Retry(NoBackoff(), 0),
        # The version that every server and every proxy before one understands.
        "protocol": 2,
    }
