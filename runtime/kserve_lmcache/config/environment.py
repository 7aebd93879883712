"""The environment variables that must be set before Python starts.

``entrypoint.sh`` sets these variables too, and a test compares both. A process that starts without
them executes itself again with them (:func:`ensure`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from kserve_lmcache.config import directories
from kserve_lmcache.errors import UsageError
from kserve_lmcache.identity.namespace import DEFAULT_HASH_SEED

DEFAULTS: Mapping[str, str] = {
    # The seed of the hash of every prefix in vLLM. Replicas with different seeds share nothing.
    "PYTHONHASHSEED": DEFAULT_HASH_SEED,
    "LMCACHE_TRACK_USAGE": "false",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

_REEXECUTED = "_KSERVE_LMCACHE_REEXECUTED"


def missing(environ: Mapping[str, str]) -> dict[str, str]:
    """The defaults of the variables that are absent from ``environ``, or empty."""
    return {name: value for name, value in DEFAULTS.items() if not environ.get(name)}


def check_hash_seed(environ: Mapping[str, str]) -> None:
    """Refuse a random hash seed.

    Raises:
        UsageError: ``PYTHONHASHSEED`` is not a number that Python takes.
    """
    seed = environ.get("PYTHONHASHSEED", "")
    if not (seed.isascii() and seed.isdigit() and int(seed) < 2**32):
        raise UsageError(
            f"PYTHONHASHSEED={seed!r} gives every process other cache keys, so no KV would be "
            "shared. Set PYTHONHASHSEED to a number below 4294967296, the same in every replica, "
            "or unset it (the default is 0)."
        )


def ensure() -> None:
    """Execute this process again, once, if it started without the variables.

    Raises:
        UsageError: the hash seed is random, or the second start lacks a variable too.
        DirectoryError: there is no room for temporary files or for metrics.
    """
    directories.check(directories.at_process_start(os.environ))
    additions = missing(os.environ)
    if "PYTHONHASHSEED" not in additions:
        check_hash_seed(os.environ)
    if not additions:
        return
    if _REEXECUTED in os.environ:
        raise UsageError(
            f"this process cannot set {', '.join(sorted(additions))} for itself. "
            "Set these variables in the environment, or start the server by entrypoint.sh."
        )
    environ = {**os.environ, **additions, _REEXECUTED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606
