"""The size of a block in each layer, as vLLM's configuration of the KV cache has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


@dataclass(frozen=True)
class Page:
    """One block of one layer.

    Attributes:
        tokens: of the block.
        bytes: of the block, without the padding behind it.
        heads: KV heads of this worker in the layer.
    """

    tokens: int
    bytes: int
    heads: int


@dataclass(frozen=True)
class Pages:
    """The blocks of a KV cache.

    Attributes:
        blocks: their number.
        layers: a page for each layer that has KV of its own, by the layer's name. The order is
            vLLM's, which is the same in every engine of a model.
    """

    blocks: int
    layers: Mapping[str, Page]

    @property
    def tokens(self) -> int:
        """Tokens of one block."""
        return next(iter(self.layers.values())).tokens

    @property
    def bytes(self) -> int:
        """Bytes of one block in all layers."""
        return sum(page.bytes for page in self.layers.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in all layers.

        Raises:
            NotImplementedError: the bytes of a block are no multiple of its tokens.
        """
        if self.bytes % self.tokens:
            raise NotImplementedError(
                f"a block of {self.tokens} tokens has {self.bytes} bytes, which is no whole number "
                "for each token"
            )
        return self.bytes // self.tokens


def specs_of(kv_cache_config: KVCacheConfig) -> Iterator[tuple[str, KVCacheSpec]]:
    """The name and the specification of each layer.

    One specification may stand for layers of different sizes (``UniformTypeKVCacheSpecs``).
    """
    for group in kv_cache_config.kv_cache_groups:
        members = getattr(group.kv_cache_spec, "kv_cache_specs", {})
        for name in group.layer_names:
            yield name, members.get(name, group.kv_cache_spec)


def pages_of(kv_cache_config: KVCacheConfig) -> Pages:
    """The blocks that vLLM's configuration describes.

    Raises:
        NotImplementedError: blocks have different numbers of tokens, or there is no layer.
    """
    layers = {name: _page(spec) for name, spec in specs_of(kv_cache_config)}
    sizes = {page.tokens for page in layers.values()}
    if len(sizes) != 1:
        raise NotImplementedError(
            f"the layers of the KV cache have blocks of {sorted(sizes) or 'no'} tokens"
        )
    return Pages(kv_cache_config.num_blocks, layers)


def _page(spec: Any) -> Page:
    # `page_size_bytes` includes the padding; not every version has a name for the size without.
    size = getattr(spec, "real_page_size_bytes", None) or spec.page_size_bytes
    return Page(spec.block_size, size, getattr(spec, "num_kv_heads", 1))
