"""What the bytes of a block depend on, as far as only vLLM's worker knows it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from kserve_lmcache.compat.vllm import attention_backends

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def form_of(vllm_config: VllmConfig, form: str) -> str:
    """What keys have beside the namespace, because vLLM's worker decides it.

    Args:
        vllm_config: the engine's.
        form: of the KV cache (:attr:`.PagedCache.form`).
    """
    parts = [vllm_config.device_config.device_type, *attention_backends(vllm_config), form]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
