"""Environment that must be in place before the interpreter starts.

``entrypoint.sh`` sets the same variables; a test holds the two alike. Started without them,
the process executes itself once more with them (:func:`ensure`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping

from kserve_lmcache.errors import UsageError
from kserve_lmcache.identity.namespace import DEFAULT_HASH_SEED

DEFAULTS: Mapping[str, str] = {
    # vLLM seeds the first hash of a prefix chain from it: replicas that differ never share.
    "PYTHONHASHSEED": DEFAULT_HASH_SEED,
    "LMCACHE_TRACK_USAGE": "false",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
METRICS_DIRECTORY_PREFIX = "kserve-lmcache-metrics."

_REEXECUTED = "_KSERVE_LMCACHE_REEXECUTED"


def missing(environ: Mapping[str, str]) -> dict[str, str]:
    """The defaults that ``environ`` does not set; what it sets is never replaced."""
    return {name: value for name, value in DEFAULTS.items() if not environ.get(name)}


def check_hash_seed(environ: Mapping[str, str]) -> None:
    """Refuse a random hash seed.

    Raises:
        UsageError: ``PYTHONHASHSEED`` is not a number that every replica could repeat.
    """
    seed = environ.get("PYTHONHASHSEED", "")
    if not (seed.isascii() and seed.isdigit() and int(seed) < 2**32):
        raise UsageError(
            f"PYTHONHASHSEED={seed!r} gives every process other cache keys, so that nothing would "
            "ever be shared. Set it to a number below 4294967296, the same in every replica, "
            "or leave it unset (0)."
        )


def ensure() -> None:
    """Execute this process again, once, if the interpreter started without the environment.

    Raises:
        UsageError: the environment cannot be put right (a random seed was asked for, or the
            second start still lacks it).
    """
    additions = missing(os.environ)
    if "PYTHONHASHSEED" not in additions:
        check_hash_seed(os.environ)
    if METRICS_DIRECTORY not in os.environ:
        additions[METRICS_DIRECTORY] = tempfile.mkdtemp(prefix=METRICS_DIRECTORY_PREFIX)
    if not additions:
        return
    if _REEXECUTED in os.environ:
        raise UsageError(
            f"{', '.join(sorted(additions))} cannot be set for this process. "
            "Set them in the environment, or start by entrypoint.sh."
        )
    environ = {**os.environ, **additions, _REEXECUTED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606
