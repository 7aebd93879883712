"""The proof at every start that what is stored comes back, on the real KV cache.

Random bytes are written into free blocks, stored into a chunk of the cache, and loaded into other
blocks. All bytes must come back, and the blocks beside must be as before. No request runs yet, so
all blocks are free. Block 0 is vLLM's null block, and is not used.

The proof reads and writes blocks by torch's own indexing of vLLM's tensors, not by the copy path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kserve_lmcache.connector.copy.layout import LayerBlocks, described

_SEED = 0
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Copies between the chunk and blocks, of which it gets the numbers.
Copy = Callable[[Sequence[int]], None]


class ProofError(RuntimeError):
    """What was stored did not come back."""


class Proof:
    """Proves a copy path.

    Args:
        layers: of the KV cache.
        blocks: number of blocks of the KV cache.
        most: the most blocks to store; those of a chunk.

    Attributes:
        count: number of blocks that are stored; 0 where the KV cache has too few.
    """

    def __init__(self, layers: Sequence[LayerBlocks], blocks: int, most: int) -> None:
        self.count = max(0, min(most, (blocks - 1) // 2))
        self._layers = [_Layer(layer) for layer in layers]
        generator = torch.Generator().manual_seed(_SEED)
        order = (torch.randperm(max(0, blocks - 1), generator=generator) + 1).tolist()
        self._source, self._target = order[: self.count], order[self.count : 2 * self.count]
        used = {*self._source, *self._target}
        beside = {0, blocks - 1, *(n - 1 for n in self._target), *(n + 1 for n in self._target)}
        self._beside = sorted(number for number in beside - used if number < blocks)
        self._generator = generator

    def run(self, store: Copy, load: Copy) -> None:
        """Store, load and compare. Leaves the blocks that were used zeroed.

        Args:
            store: copies ``count`` blocks into the chunk.
            load: copies the chunk to blocks.

        Raises:
            ProofError: a byte is wrong. The message names the layer, its layout and the byte.
        """
        written = [layer.random(self.count, self._generator) for layer in self._layers]
        beside = [layer.read(self._beside) for layer in self._layers]
        try:
            for layer, values in zip(self._layers, written, strict=True):
                layer.write(self._source, values)
            store(self._source)
            for layer, values in zip(self._layers, written, strict=True):
                layer.compare(self._source, values, "a store changed what it stored")
                layer.zero(self._source)
            load(self._target)
            for layer, values in zip(self._layers, written, strict=True):
                layer.compare(self._target, values, "what was stored did not come back")
            for layer, values in zip(self._layers, beside, strict=True):
                layer.compare(self._beside, values, "a block beside what was loaded has changed")
                empty = torch.zeros_like(layer.read(self._source))
                layer.compare(self._source, empty, "a load wrote into the blocks of the store")
        finally:
            for layer, values in zip(self._layers, beside, strict=True):
                layer.zero(self._source + self._target)
                layer.write(self._beside, values)


class _Layer:
    """A layer's blocks, by torch's indexing; numbers of any type are integers of their size."""

    def __init__(self, layer: LayerBlocks) -> None:
        self.tensor = layer.tensor
        self._name = layer.name
        self._axis, self._parts = layer.axis, layer.parts
        self._integers = layer.tensor.view(_INTEGERS[layer.tensor.element_size()])

    def random(self, blocks: int, generator: torch.Generator) -> torch.Tensor:
        """Random values of so many blocks."""
        shape = list(self.tensor.shape)
        shape[self._axis] = blocks * self._parts
        size = torch.Size(shape).numel() * self._integers.element_size()
        values = torch.empty(-(-size // 8), dtype=torch.int64)
        # Without bounds random_() sets no sign.
        values.random_(-(2**63), None, generator=generator)
        return values.view(torch.uint8)[:size].view(self._integers.dtype).view(shape)

    def read(self, blocks: Sequence[int]) -> torch.Tensor:
        """A copy of some blocks."""
        return self._integers.index_select(self._axis, self._places(blocks))

    def write(self, blocks: Sequence[int], values: torch.Tensor) -> None:
        """Write some blocks."""
        values = values.to(self._integers.device)
        self._integers.index_copy_(self._axis, self._places(blocks), values)

    def zero(self, blocks: Sequence[int]) -> None:
        """Write zeros into some blocks."""
        for number in blocks:
            self._integers.narrow(self._axis, number * self._parts, self._parts).zero_()

    def compare(self, blocks: Sequence[int], expected: torch.Tensor, problem: str) -> None:
        """Compare some blocks.

        Raises:
            ProofError: they differ.
        """
        found = self.read(blocks)
        if torch.equal(_wide(found), _wide(expected.to(found.device))):
            return
        seen, wanted = (self._by_block(values.cpu(), len(blocks)) for values in (found, expected))
        place, byte = torch.nonzero(seen != wanted)[0].tolist()
        wrong = int((seen != wanted).sum())
        raise ProofError(
            f"{problem}: {described(self._name, self.tensor)}: byte {byte} of block "
            f"{blocks[place]} is {int(seen[place, byte])} and was {int(wanted[place, byte])}; "
            f"{wrong} of {seen.numel()} bytes are wrong"
        )

    def _places(self, blocks: Sequence[int]) -> torch.Tensor:
        begins = torch.tensor(blocks, dtype=torch.int64) * self._parts
        places = (begins[:, None] + torch.arange(self._parts)).flatten()
        return places.to(self.tensor.device)

    def _by_block(self, values: torch.Tensor, blocks: int) -> torch.Tensor:
        """The bytes of each block, in the order of the axes of the tensor."""
        first = values.movedim(self._axis, 0).contiguous()
        return first.view(-1).view(torch.uint8).view(blocks, -1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """The same bytes in the widest integers, which are compared soonest."""
    flat = values.contiguous().view(-1).view(torch.uint8)
    return flat.view(torch.int64) if flat.numel() % 8 == 0 else flat
