"""By which of vLLM's hashes a chunk is announced."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BlockHash = int | bytes


@dataclass(frozen=True)
class Chunk:
    """A chunk as vLLM's blocks.

    Attributes:
        block_hashes: of its blocks, as vLLM's events have them.
        parent: the hash of the block before; ``None`` at the start of a prompt.
        tokens: of all blocks.
        extra_keys: what vLLM hashes beside the tokens, of each block; ``None`` for nothing.
        lora_id: the number of the adapter.
        lora_name: the name of the adapter.
    """

    block_hashes: tuple[BlockHash, ...]
    parent: BlockHash | None
    tokens: array[int]
    extra_keys: tuple[tuple[Any, ...] | None, ...] | None = None
    lora_id: int | None = None
    lora_name: str | None = None

    @property
    def name(self) -> BlockHash:
        """The hash of the last block. It stands for all tokens up to there."""
        return self.block_hashes[-1]


@dataclass(frozen=True)
class Prompt:
    """A request, as far as its chunks need it.

    Attributes:
        tag: what follows the hash in the names of its chunks; empty without a tag.
        tokens: of the prompt.
        block_hashes: of its whole blocks.
        extra_keys: of these blocks; ``None`` where no block has any.
        lora_id: the number of the adapter.
        lora_name: the name of the adapter.
    """

    tag: str
    tokens: Sequence[int]
    block_hashes: Sequence[BlockHash]
    extra_keys: Sequence[tuple[Any, ...] | None] | None = None
    lora_id: int | None = None
    lora_name: str | None = None

    def chunks(
        self,
        hashes: Sequence[str],
        chunk_tokens: int,
        size: int,
        knows: Callable[[str, BlockHash], bool] = lambda name, last: False,
    ) -> Iterator[tuple[str, Chunk]]:
        """The names of the chunks, and the chunks.

        Args:
            hashes: LMCache's, in order. Those of chunks that are not complete are left out.
            chunk_tokens: the tokens of a chunk, a multiple of ``size``.
            size: the tokens of a block.
            knows: whether a name with this hash of its last block is left out.
        """
        blocks = chunk_tokens // size
        for number, text in enumerate(hashes):
            begin, end = number * blocks, (number + 1) * blocks
            if end > len(self.block_hashes) or end * size > len(self.tokens):
                return
            name = f"{text}@{self.tag}" if self.tag else text
            if knows(name, self.block_hashes[end - 1]):
                continue
            extra_keys = tuple(self.extra_keys[begin:end]) if self.extra_keys else None
            yield (
                name,
                Chunk(
                    tuple(self.block_hashes[begin:end]),
                    self.block_hashes[begin - 1] if begin else None,
                    array("I", self.tokens[begin * size : end * size]),
                    extra_keys,
                    self.lora_id,
                    self.lora_name,
                ),
            )
