"""The directory in which the processes of one server keep the metrics of vLLM and LMCache.

prometheus_client takes the directory from ``PROMETHEUS_MULTIPROC_DIR`` when it is imported, and
adds up all files that are in the directory. Every server therefore makes a directory of its own
below the one that a user names, and removes only what a server has made. No other command uses it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from kserve_lmcache.errors import UsageError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "kserve-lmcache-metrics."
_OLD_VARIABLE = "prometheus_multiproc_dir"  # prometheus_client reads it as well
_LOCK = "lock"  # locked by the directory's server as long as the server lives


def make(environ: MutableMapping[str, str]) -> Path:
    """Make a directory for this process and its children, which is removed when the process ends.

    Directories beside it whose servers were killed are removed, too.

    Args:
        environ: names the directory in which to make one, or none; names the new one then.

    Returns:
        The new directory.

    Raises:
        UsageError: the directory cannot be made.
    """
    given = _given(environ)
    try:
        parent = _parent(environ)
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        _lock(own)
    except OSError as error:
        where = f"{VARIABLE}={given}" if given else "the directory for temporary files (TMPDIR)"
        raise UsageError(
            f"{where} cannot hold the metrics of this server: {error.strerror or error}. "
            "Name a directory that this user may write, or mount one."
        ) from error
    leave(environ)
    environ[VARIABLE] = str(own)
    atexit.register(_remove, own, os.getpid())
    return own


def leave(environ: MutableMapping[str, str]) -> None:
    """Let this process keep its metrics to itself: it has those of no server."""
    for name in (VARIABLE, _OLD_VARIABLE):
        environ.pop(name, None)


def of_live_servers(environ: Mapping[str, str]) -> list[Path]:
    """The directories that live processes of this user have made. Changes nothing.

    Args:
        environ: names the directory in which they are, or none, as for :func:`make`.
    """
    found = []
    for lock in sorted(_parent(environ).glob(f"{PREFIX}*/{_LOCK}")):
        with contextlib.suppress(OSError):  # it was removed meanwhile
            if lock.parent.stat().st_uid == os.geteuid() and _is_locked(lock):
                found.append(lock.parent)
    return found


def _given(environ: Mapping[str, str]) -> str | None:
    return environ.get(VARIABLE) or environ.get(_OLD_VARIABLE)


def _parent(environ: Mapping[str, str]) -> Path:
    return Path(_given(environ) or tempfile.gettempdir()).absolute()


def _is_locked(lock: Path) -> bool:
    file = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _lock(own: Path) -> None:
    # Another server takes a directory for abandoned when it can lock the file. It must not see the
    # file before it is locked.
    new = own / f"{_LOCK}.new"
    file = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    new.rename(own / _LOCK)


def _remove_abandoned(parent: Path) -> None:
    for lock in parent.glob(f"{PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # another server's user, or another server was faster
            file = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(file)


def _remove(own: Path, server: int) -> None:
    if os.getpid() == server:  # not in a process that was forked
        shutil.rmtree(own, ignore_errors=True)
