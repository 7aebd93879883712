"""The tokens of a prompt as LMCache's keys have them (LMCache 0.5.1 to 0.5.6).

vLLM has the same placeholder token for every picture. LMCache puts numbers in their places that it
derives from the hash of the picture, so that a key names the picture: 31 bits by token.
``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.request import Request


def tokens_in_keys(request: Request) -> Sequence[int]:
    """All tokens of a request that are known, with those of its pictures replaced."""
    tokens: Sequence[int] = request.all_token_ids
    if not getattr(request, "mm_features", None):
        return tokens
    import torch
    from lmcache.integration.vllm.utils import apply_mm_hashes_to_token_ids, extract_mm_features

    replaced = torch.tensor(list(tokens))
    numbers: list[int] = apply_mm_hashes_to_token_ids(
        replaced, *extract_mm_features(request)
    ).tolist()
    return numbers
