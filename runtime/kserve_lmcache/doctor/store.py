"""The remote store: the table of its checks by the scheme of its URL."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import replace

from kserve_lmcache.config import store_url, stores
from kserve_lmcache.config.store_url import StoreURLError
from kserve_lmcache.config.stores import REDIS_SCHEMES, RedisLocation, Remote
from kserve_lmcache.doctor import connection, other_stores, redis_server, replicas, tls, topology
from kserve_lmcache.doctor.check import Check, Finding, failure, in_order, skipped
from kserve_lmcache.doctor.connection import CheckedStore
from kserve_lmcache.doctor.context import Context

# Stores other than Redis whose URL is a host and a port.
_WITH_A_SERVER = ("lm", "resp", "mooncakestore", "infinistore")
_NETWORK = (*(scheme for scheme in REDIS_SCHEMES if scheme != "unix"), *_WITH_A_SERVER)
# This runtime has stored and loaded values there.
_TRIED = ("resp", "s3", "mooncakestore")

_CONNECTED = ("remote connection",)
_OPEN = ("remote connection", "remote TLS", "remote sentinel")
_USABLE = ("remote login", "remote topology")
# In the order of the report: the schemes of each check, and the check.
CHECKS: tuple[tuple[Collection[str], Check[CheckedStore]], ...] = (
    (other_stores.PACKAGES, Check("remote package", other_stores.package)),
    (("infinistore",), Check("remote device", other_stores.device)),
    (("fs",), Check("remote directory", other_stores.directories)),
    (("unix",), Check("remote connection", connection.connect_unix_socket, may_pass=True)),
    (_NETWORK, Check("remote name", connection.resolve, may_pass=True)),
    (_NETWORK, Check("remote connection", connection.connect, ("remote name",), may_pass=True)),
    (("lm",), Check("remote server", other_stores.lookup, _CONNECTED)),
    (stores.TLS_SCHEMES, Check("remote TLS", tls.encryption, _CONNECTED)),
    (
        stores.SENTINEL_SCHEMES,
        Check("remote sentinel", topology.sentinel, _CONNECTED, may_pass=True),
    ),
    (REDIS_SCHEMES, Check("remote login", redis_server.login, _OPEN)),
    (REDIS_SCHEMES, Check("remote server", redis_server.server, ("remote login",))),
    (REDIS_SCHEMES, Check("remote topology", topology.topology, ("remote server",))),
    (REDIS_SCHEMES, Check("remote clock", redis_server.clock, ("remote server",))),
    (REDIS_SCHEMES, Check("remote memory", redis_server.memory, ("remote server",))),
    (REDIS_SCHEMES, Check("remote persistence", redis_server.persistence, ("remote server",))),
    (
        REDIS_SCHEMES,
        Check("remote round trip", redis_server.round_trip, (*_USABLE, "remote memory")),
    ),
    (REDIS_SCHEMES, Check("remote listing", redis_server.listing, _USABLE)),
    (REDIS_SCHEMES, Check("replicas", replicas.replicas, _USABLE)),
)


def store(context: Context) -> Iterator[Finding]:
    """Runs the checks of the store's scheme."""
    remote = context.remote
    if remote is None and context.remote_is_refused:
        yield skipped("needs a remote_url without mistakes")
        return
    if remote is None:
        yield skipped("no remote store is configured: replicas share nothing")
        return
    location = _location(remote, context)
    if isinstance(location, Finding):
        yield replace(location, name="remote address")
        return
    scheme = remote.scheme
    with closing(CheckedStore(context, remote, location)) as checked:
        checks = (check for schemes, check in CHECKS if scheme in schemes)
        yield from in_order(checks, checked, context.quote, context.patience)
    if scheme not in (*REDIS_SCHEMES, "lm", "fs"):
        untried = "" if scheme in _TRIED else "; no data was ever moved to one by this runtime"
        yield skipped(f"{scheme}:// was not looked at any further{untried}")


def _location(remote: Remote, context: Context) -> RedisLocation | Finding:
    """Returns the servers of the URL, or why the URL cannot be read."""
    try:
        url = store_url.parse(remote.url)
    except StoreURLError as error:
        fixes = " ".join(dict.fromkeys(fix for _, fix in error.faults))
        return failure(
            f"remote_url {context.quote(error)}", f"{fixes} remote_url is set by {remote.source}."
        )
    return remote.redis_location() if remote.speaks_redis else RedisLocation(url.addresses)
