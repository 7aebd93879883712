"""Tries the copy path without a model and without an engine, for ``doctor --engine``."""

from __future__ import annotations

import torch

from kserve_lmcache.compat.lmcache import copy_path
from kserve_lmcache.connector.copy.pages import Page, Pages
from kserve_lmcache.connector.inprocess.block_connector import BlockConnector
from kserve_lmcache.connector.inprocess.start_proof import prove

_LAYERS, _BLOCKS, _TOKENS, _HEADS, _SIZE = 4, 67, 16, 8, 128
_CHUNK = 16 * _TOKENS
# Of a layer, in the order of the axes in memory.
_LAYOUTS = {
    "packed": (_BLOCKS, _HEADS, _TOKENS, 2 * _SIZE),
    "split": (2, _BLOCKS, _TOKENS, _HEADS, _SIZE),
}


def trial() -> str:
    """Store and load random bytes in the layouts of vLLM's attention backends.

    Returns:
        What came back, in words.

    Raises:
        ProofError: something else came back.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    page = Page(_TOKENS, 2 * _HEADS * _TOKENS * _SIZE * 2, _HEADS)
    pages = Pages(_BLOCKS, {f"layer {number}": page for number in range(_LAYERS)})
    copies = BlockConnector(pages, _CHUNK)
    said = []
    with copy_path.trial(copies, copies.bytes_per_token, _CHUNK) as adapter:
        for name, shape in _LAYOUTS.items():
            layers = {
                layer: torch.zeros(shape, dtype=torch.bfloat16, device=device)
                for layer in pages.layers
            }
            copies.register(layers)
            said.append(f"{name} layout: {prove(adapter, layers, pages, {})}")
    return f"on {device}, {'; '.join(said)}"
