"""Whether the cache server of a directory can be used by the servers of this user."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

from kserve_lmcache import __version__
from kserve_lmcache.cache_server.announcement import announced
from kserve_lmcache.cache_server.messages import Hello, Welcome
from kserve_lmcache.cache_server.rpc import CacheServerError, Client

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux has it)
_HELLO_SECONDS = 2.0
_PAUSE = 0.2


def usable(directory: Path, seconds: float) -> Welcome:
    """What the directory's cache server is.

    Args:
        directory: of the server.
        seconds: to wait for a server.

    Raises:
        CacheServerError: it cannot be used. The message says why.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _usable(directory)
        except CacheServerError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def _usable(directory: Path) -> Welcome:
    try:
        found = announced(directory)
    except OSError as error:
        raise CacheServerError(f"{directory} cannot be read: {error.strerror}") from error
    if found is None:
        raise CacheServerError(f"no cache server is announced in {directory}")
    name = f"the cache server of {directory}"
    if found.version != __version__:
        raise CacheServerError(f"{name} is of version {found.version}, not {__version__}")
    with closing(Client(directory / found.socket)) as client:
        welcome: Welcome = client.call("hello", Hello(), _HELLO_SECONDS)
    segment = SHARED_MEMORY / welcome.segment
    if not segment.exists():
        raise CacheServerError(f"the memory of {name} is not in this {SHARED_MEMORY}")
    if not os.access(segment, os.R_OK | os.W_OK):
        raise CacheServerError(f"the memory of {name} belongs to another user")
    return welcome
