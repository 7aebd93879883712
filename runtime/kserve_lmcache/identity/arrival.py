"""The place of a model's files, looked at before anything slow starts.

KServe mounts what it downloads, or a claim's folder, at ``/mnt/models``. For an ``oci://`` model it
starts a sidecar of the model's image, which lays a link to its own files there
(``/mnt/models -> /proc/PID/root/models``) some time after the server has started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from kserve_lmcache.errors import UsageError

logger = logging.getLogger(__name__)

# KServe sets it to "async" in a pod whose model's files come by a link.
INIT_MODE = "MODEL_INIT_MODE"
LIMIT_SECONDS = 120.0
_POLL_SECONDS = 0.5


def await_model(directory: Path, environ: Mapping[str, str], limit: float = LIMIT_SECONDS) -> None:
    """Wait for a model's files that come by a link, and refuse a place that holds no model.

    Args:
        directory: where KServe mounts the model.
        environ: says whether the files come by a link.
        limit: how many seconds to wait for the link's target.

    Raises:
        UsageError: the files did not come, cannot be read, or are not there.
    """
    if environ.get(INIT_MODE) == "async" or _leads_into_a_container(directory):
        _await_link(directory, limit)
    if reason := why_no_model(directory):
        raise UsageError(reason)


def why_no_model(directory: Path) -> str:
    """Why a directory holds no model, with the likely mistake; empty when it may hold one."""
    try:
        entries = sorted(directory.iterdir())
    except PermissionError as error:
        return f"{directory} cannot be read: {_why_denied(directory, error)}"
    except OSError:
        return ""  # whoever wants a model there says that there is none
    if not entries:
        return (
            f"{directory} is empty: the claim probably has no folder of the name that storageUri "
            "gives (pvc://CLAIM/FOLDER), and Kubernetes made an empty one"
        )
    if all(entry.is_dir() for entry in entries):
        names = ", ".join(entry.name for entry in entries[:5])
        return (
            f"{directory} holds folders alone ({names}): storageUri probably lacks the name of the "
            "model's folder (pvc://CLAIM/FOLDER)"
        )
    return ""


def _leads_into_a_container(directory: Path) -> bool:
    return directory.is_symlink() and directory.readlink().is_relative_to("/proc")


def _await_link(directory: Path, limit: float) -> None:
    deadline = time.monotonic() + limit
    said = False
    while True:
        try:
            directory.stat()
            return
        except PermissionError as error:
            reason = _why_denied(directory, error)
            raise UsageError(f"{directory} cannot be read: {reason}") from error
        except OSError:
            if time.monotonic() >= deadline:
                break
        if not said:
            logger.info("Waiting at most %.0f s for the model's files at %s", limit, directory)
            said = True
        time.sleep(_POLL_SECONDS)
    state = "leads nowhere" if directory.is_symlink() else "is not there"
    raise UsageError(
        f"{directory} {state} after {limit:.0f} s: the container of the model's image (modelcar) "
        "did not start, or its image has no folder /models"
    )


def _why_denied(directory: Path, error: OSError) -> str:
    if directory.is_symlink():
        return (
            "it is a link into another container, whose files only a process of the same user and "
            "group may read; remove runAsUser and runAsGroup from the InferenceService"
        )
    return f"{error.strerror}; give this container's user read access to the volume"
