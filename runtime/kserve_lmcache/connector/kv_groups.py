"""What vLLM itself says of the KV cache, whatever the model's configuration said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig


def check_groups(kv_cache_config: KVCacheConfig) -> None:
    """See that all layers keep every token, in the same blocks.

    Raises:
        NotImplementedError: some layers keep a window of the tokens, a state of their own, or
            something that has another size in each layer; LMCache knows one list of blocks.
    """
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if [type(spec) for spec in specs] not in ([FullAttentionSpec], [MLAAttentionSpec]):
        kinds = ", ".join(type(spec).__name__ for spec in specs) or "no attention"
        raise NotImplementedError(f"the KV cache is not full attention alone: {kinds}")
