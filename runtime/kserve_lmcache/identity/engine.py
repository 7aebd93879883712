"""Whose cache entries are those of an engine that is configured and need not run yet."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kserve_lmcache.identity import cache
from kserve_lmcache.identity.model import model_path
from kserve_lmcache.identity.namespace import namespace, numerics_of, summarize
from kserve_lmcache.identity.weights import fingerprint

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class EngineIdentity:
    """Whose an engine's entries are.

    Attributes:
        namespace: the part of every key that says so.
        content: digest of the model's files.
        inputs: what else decides whether two engines share, by name; nothing of it is secret.
        summary: a line for the log about how the content was told.
    """

    namespace: str
    content: str
    inputs: Mapping[str, str | int | float | None]
    summary: str


def identify(
    config: VllmConfig, how: str, keys: Mapping[str, Any], environ: Mapping[str, str]
) -> EngineIdentity:
    """Tell whose the engine's entries are.

    Args:
        config: the engine's; held to the commit of the hub that was found.
        how: ``sampled``, ``full`` or ``private``.
        keys: how tokens become keys.
        environ: tells where sampled fingerprints are remembered.

    Raises:
        IdentityError: the model's content cannot be told.
    """
    if how == "private":
        content, summary = uuid.uuid4().hex, "private, nothing is shared with other servers"
    else:
        found = fingerprint(
            model_path(config), full=how == "full", cache_directory=cache.directory(environ)
        )
        content, summary = found.digest, f"{found.method}, {found.summary}, {found.seconds:.2f} s"
    numerics = numerics_of(config)
    # The number of workers is in every key, put there by LMCache; those of a model with one latent
    # vector a token hold the same KV, of which one copy is kept.
    workers = 1 if config.model_config.use_mla else config.parallel_config.world_size
    return EngineIdentity(
        namespace(content, numerics, keys),
        content,
        summarize({**keys, **numerics, "workers": workers}),
        f"content {content[:16]}: {summary}",
    )
