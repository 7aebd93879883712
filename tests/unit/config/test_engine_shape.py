from __future__ import annotations

import pytest

from kserve_lmcache.config.engine_shape import EngineShape, bytes_per_token


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((30, 3, 64, 2), 23_040),  # SmolLM2-135M, measured
        ((32, 8, 128, 2), 128 * 1024),  # Llama-3.1-8B
        ((32, 8, 128, 1), 64 * 1024),  # the same with an FP8 cache
    ],
)
def test_keys_and_values_of_every_layer_and_head(
    shape: tuple[int, int, int, int], expected: int
) -> None:
    assert bytes_per_token(*shape) == expected


def test_a_latent_vector_stands_for_both() -> None:
    assert bytes_per_token(61, 1, 512 + 64, 2, latent=True) == 61 * 576 * 2


def test_what_a_tier_holds_is_said_for_one_worker() -> None:
    alone = EngineShape("cpu", 1, 128, 1000, 4096, 8)
    assert alone.capacity_note(5_000_999).startswith(
        "The KV of one token is 1000 bytes: the local tier holds 5000 tokens"
    )
    three = EngineShape("cuda", 3, 16, 1000, 4096, 8)
    assert "1000 bytes in each of 3 workers" in three.capacity_note(1e6)
