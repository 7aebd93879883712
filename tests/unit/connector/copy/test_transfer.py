"""Both ways give the same bytes: directly, and through staging buffers and streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_lmcache.connector.copy.paged_cache import PagedCache
from kserve_lmcache.connector.copy.transfer import (
    Chunk,
    HostTransfer,
    StagedTransfer,
    Transfer,
    fence,
    transfer_of,
)
from tests.support.layouts import DEVICE, LAYOUTS, Cache, Sizes, cache, sizes

MOST = 4  # blocks of a chunk


def host_memory(paged: PagedCache, blocks: int) -> torch.Tensor:
    memory = torch.zeros(1, 1, 1, paged.block_bytes * blocks, dtype=torch.uint8)
    return memory.pin_memory() if DEVICE == "cuda" else memory


def ways(paged: PagedCache, staging: int) -> list[Transfer]:
    """On a CPU the streams of the second do nothing, and all else is as on a GPU."""
    staged = StagedTransfer(paged, MOST, staging)
    return [staged] if DEVICE != "cpu" else [HostTransfer(paged), staged]


def compute_for_a_while() -> None:
    """On a CPU all is computed in order."""
    if DEVICE == "cuda":
        torch.cuda._sleep(2_000_000)


def load(way: Transfer, chunks: list[Chunk], after: Any) -> None:
    if after is not None:
        after.synchronize()
    way.load(chunks)


def paged_of(whole: Cache) -> PagedCache:
    return PagedCache.of(whole.tensors, whole.pages)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), layout=st.sampled_from([*LAYOUTS]))
def test_chunks_come_back(data: st.DataObject, layout: str) -> None:
    wanted = data.draw(sizes())
    source, target = cache(layout, wanted, seed=1), cache(layout, wanted, seed=2)
    order = data.draw(st.permutations(range(wanted.blocks)))
    lengths = data.draw(st.lists(st.integers(1, MOST), min_size=1, max_size=3))
    blocks, begin = [], 0
    for length in lengths:
        blocks.append(order[begin : begin + length])
        begin += length
    blocks = [each for each in blocks if each]
    skips = [data.draw(st.integers(0, len(each) - 1)) for each in blocks]
    expected = target.clone()
    for each, skip in zip(blocks, skips, strict=True):
        for number in each[skip:]:
            for name in source.tensors:
                expected.block(name, number).copy_(source.block(name, number))
    staging = data.draw(st.sampled_from([0, 2_000, 2**20]))
    for way in range(len(ways(paged_of(source), staging))):
        stored = [Chunk(host_memory(paged_of(source), len(each)), each) for each in blocks]
        ways(paged_of(source), staging)[way].store(stored)
        loaded = target.clone()
        ways(paged_of(loaded), staging)[way].load(
            [
                Chunk(chunk.memory, chunk.blocks[skip:], skip)
                for chunk, skip in zip(stored, skips, strict=True)
            ]
        )
        assert loaded.storage == expected.storage


def test_a_staging_buffer_is_bounded() -> None:
    paged = paged_of(cache("MLA", Sizes(4, 7, 16, 1, 8, torch.float32)))
    layer = MOST * paged.layer_bytes[0]
    for staging, half in ((0, layer), (2 * layer, layer), (6 * layer, 3 * layer)):
        way = StagedTransfer(paged, MOST, staging)
        sizes_ = {staging.size for staging in (way._in, way._out)}
        assert sizes_ == {-(-half // 512) * 512}
        chunk = Chunk(host_memory(paged, MOST), [0, 1, 2, 3])
        pieces = [layers for _, layers, _ in way._pieces([chunk, chunk], way._in)]
        assert [*map(len, pieces)] == {layer: [1] * 8, 3 * layer: [3, 1] * 2}[half]


def test_the_device_decides_the_way() -> None:
    way = transfer_of(paged_of(cache("MLA", Sizes(1, 7, 16, 1, 8, torch.float32))), MOST)
    assert isinstance(way, HostTransfer if DEVICE == "cpu" else StagedTransfer)


def test_a_store_waits_for_what_is_computed_before_and_not_after() -> None:
    whole = cache("MLA", Sizes(8, 101, 16, 1, 64, torch.float32))
    way = StagedTransfer(paged_of(whole), MOST)
    for number in range(20):
        compute_for_a_while()
        for tensor in whole.tensors.values():
            tensor[5:9] = float(number)
        memory = host_memory(paged_of(whole), 4)
        way.store([Chunk(memory, [5, 6, 7, 8])])
        for tensor in whole.tensors.values():
            tensor[5:9] = -1.0
        assert bool((memory.flatten().view(torch.float32) == number).all())


def overwriting(whole: Cache, number: int) -> torch.Tensor:
    """The host's memory of blocks 5 to 8, full of ``number``; what is computed sets them to -1."""
    memory = host_memory(paged_of(whole), 4)
    memory.flatten().view(torch.float32).fill_(number)
    compute_for_a_while()
    for tensor in whole.tensors.values():
        tensor[5:9] = -1.0
    return memory


def test_a_load_waits_for_what_is_computed_before_and_is_seen_after() -> None:
    whole = cache("MLA", Sizes(8, 101, 16, 1, 64, torch.float32))
    way = StagedTransfer(paged_of(whole), MOST)
    for number in range(20):
        memory = overwriting(whole, number)
        way.load([Chunk(memory, [5, 6, 7, 8])])
        assert all(bool((tensor[5:9] == number).all()) for tensor in whole.tensors.values())


def test_a_load_in_another_thread_waits_for_what_was_computed_when_it_was_asked_for() -> None:
    whole = cache("MLA", Sizes(8, 101, 16, 1, 64, torch.float32))
    way = transfer_of(paged_of(whole), MOST)
    with ThreadPoolExecutor(1) as pool:
        for number in range(20):
            memory = overwriting(whole, number)
            after = fence(DEVICE)
            pool.submit(load, way, [Chunk(memory, [5, 6, 7, 8])], after).result()
            assert all(bool((tensor[5:9] == number).all()) for tensor in whole.tensors.values())
