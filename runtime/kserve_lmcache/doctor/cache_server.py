"""The check of a cache server that several servers use."""

from __future__ import annotations

from kserve_lmcache.config.settings import MULTIPROCESS
from kserve_lmcache.doctor.check import Finding, ok, size, skipped, warning
from kserve_lmcache.doctor.context import Context


def cache_server(context: Context) -> Finding:
    """The cache server of the configured directory can be used."""
    if context.mode != MULTIPROCESS:
        return skipped("mode=in-process has none")
    if context.cache_server is None:
        return skipped("no cache_server_directory is configured: the server has one of its own")
    # Importing gRPC takes memory that other checks do not need.
    from kserve_lmcache.cache_server.choice import usable
    from kserve_lmcache.cache_server.rpc import CacheServerError

    try:
        welcome = usable(context.cache_server, 0)
    except CacheServerError as error:
        return warning(
            f"{error}; a server would start its own",
            f"Start one as the same user: kserve-lmcache cache-server "
            f"--directory={context.cache_server}. Let the containers share the directory and "
            "/dev/shm.",  # noqa: S108
        )
    return ok(
        f"the cache server of {context.cache_server} answers; it has {size(welcome.size)}, in "
        f"chunks of {welcome.chunk_tokens} tokens"
    )
