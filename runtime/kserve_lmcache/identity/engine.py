"""The identity of an engine: which servers may load its cached KV. The engine need not run yet."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kserve_lmcache.compat.vllm import download_model
from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity import fingerprint_cache
from kserve_lmcache.identity.fingerprint import fingerprint
from kserve_lmcache.identity.namespace import namespace, numerics_of, summarize

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# The load formats that read the model's own files.
_FORMATS = (
    "auto",
    "hf",
    "safetensors",
    "pt",
    "npcache",
    "gguf",
    "mistral",
    "fastsafetensors",
    "runai_streamer",
)


@dataclass(frozen=True)
class EngineIdentity:
    """The identity of an engine. Engines with one namespace share their cached KV.

    Attributes:
        namespace: the part of every key that names the model.
        content: the digest of the model's files.
        inputs: everything else that decides whether two engines share, by name. No secret is in it.
        summary: a line for the log about the model's content.
    """

    namespace: str
    content: str
    inputs: Mapping[str, str | int | float | None]
    summary: str


def identify(
    config: VllmConfig, method: str, hashing: Mapping[str, Any], environ: Mapping[str, str]
) -> EngineIdentity:
    """Identify an engine.

    Args:
        config: the engine's configuration. The call sets its revision to the downloaded commit.
        method: ``sampled``, ``full`` or ``private``.
        hashing: the result of :func:`.namespace.hashing_of`.
        environ: the environment. It names the directory of the fingerprint cache.

    Raises:
        IdentityError: the fingerprint of the model cannot be computed.
    """
    if method == "private":
        content, summary = uuid.uuid4().hex, "private, nothing is shared with other servers"
    else:
        found = fingerprint(
            model_path(config),
            full=method == "full",
            cache_directory=fingerprint_cache.directory(environ),
        )
        content, summary = found.digest, f"{found.method}, {found.summary}, {found.seconds:.2f} s"
    numerics = numerics_of(config)
    # LMCache puts the number of workers into every key. Where its kernels copy, it stores one copy
    # for all workers of a model with one latent vector a token (MLA).
    stores_once = config.model_config.use_mla and hashing["copy"] == "lmcache"
    workers = 1 if stores_once else config.parallel_config.world_size
    return EngineIdentity(
        namespace(content, numerics, hashing),
        content,
        summarize({**hashing, **numerics, "workers": workers}),
        f"content {content[:16]}: {summary}",
    )


def check_load_format(config: VllmConfig) -> None:
    """Refuse a format of weights that says nothing about the model's files.

    Raises:
        IdentityError: the model is not loaded from its files.
    """
    if (wanted := str(config.load_config.load_format)) not in _FORMATS:
        raise IdentityError(
            Path(config.model_config.model),
            f"is loaded by --load-format={wanted}, which does not read its files",
            "Load the model from files, or set --model-fingerprint=private to share nothing.",
        )


def model_path(config: VllmConfig) -> Path:
    """The directory or the single file of the model. Downloads a model of the hub if necessary.

    The download is vLLM's own, so the engine finds the files. The configuration's revision becomes
    the downloaded commit: a branch of the hub may move before the engine starts.

    Raises:
        IdentityError: the model is not loaded from files, or cannot be downloaded.
    """
    check_load_format(config)
    path = Path(config.model_config.model)
    if path.exists():
        return path
    try:
        directory = download_model(config)
    except Exception as error:
        raise IdentityError(
            path,
            f"could not be downloaded: {error}",
            "Check the name, HF_TOKEN and the network, or mount the model.",
        ) from error
    config.model_config.revision = directory.name
    return directory
