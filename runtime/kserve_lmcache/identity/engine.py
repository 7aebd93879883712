"""The namespace of the entries of an engine that is configured and need not run yet."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kserve_lmcache.identity.model import model_path
from kserve_lmcache.identity.namespace import namespace, numerics_of
from kserve_lmcache.identity.weights import fingerprint

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def namespace_of(
    config: VllmConfig, how: str, keys: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str, str]:
    """The namespace, and a line for the log about how the model's content was told.

    Args:
        config: the engine's; held to the commit of the hub that was found.
        how: ``sampled``, ``full`` or ``private``.
        keys: how tokens become keys.
        environ: tells where sampled fingerprints are remembered.

    Raises:
        IdentityError: the model's content cannot be told.
    """
    if how == "private":
        content, detail = uuid.uuid4().hex, "private, nothing is shared with other servers"
    else:
        found = fingerprint(
            model_path(config), full=how == "full", cache_directory=_cache_directory(environ)
        )
        content, detail = found.digest, f"{found.method}, {found.detail}, {found.seconds:.2f} s"
    return namespace(content, numerics_of(config), keys), f"content {content[:16]}: {detail}"


def _cache_directory(environ: Mapping[str, str]) -> Path | None:
    """Of the XDG Base Directory Specification; None for a user without a home."""
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base) / "kserve-lmcache"
    home = environ.get("HOME")
    return Path(home) / ".cache" / "kserve-lmcache" if home else None
