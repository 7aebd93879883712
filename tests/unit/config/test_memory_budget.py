"""What a server needs of the memory: the sum, the refusal, and what is left for the defaults."""

from __future__ import annotations

import pytest

from kserve_lmcache.config import local_tier, memory_budget
from kserve_lmcache.config.memory_budget import GIB, PROCESSES, SPARE, Needs
from kserve_lmcache.config.resources import ADDRESS_SPACE, Limit

LIMIT = "the container's limit (memory.max)"


def gib(needs: Needs, tier: float = 0.0) -> dict[str, float]:
    return {name: round(size / GIB, 3) for name, size in needs.parts(tier).items()}


def test_every_part_is_added_up() -> None:
    needs = Needs("cpu", workers=2, engines=2, weights=3 * GIB, kv_cache=GIB)
    assert gib(needs, GIB / 2) == {
        "API process": 0.75,
        "EngineCore": 1.2,
        "worker": 3.2,
        "weights": 6.0,
        "vLLM's KV cache": 4.0,
        "local tier": 2.0,
        "/dev/shm": 0.2,  # noqa: S108
    }


def test_an_accelerator_holds_weights_and_cache_itself() -> None:
    needs = Needs("cuda", workers=2, offloaded=8 * GIB)
    assert set(gib(needs)) == {*PROCESSES["cuda"], "offloaded by vLLM"}
    assert gib(Needs("xpu")) == gib(Needs("cuda"))


def test_the_refusal_is_one_sentence_with_every_part_and_the_fix() -> None:
    needs = Needs("cpu", weights=3 * GIB, kv_cache=GIB)
    found = memory_budget.problem(Limit(6 * GIB, LIMIT), needs, GIB / 2)
    assert str(found) == (
        "the container's limit (memory.max): the server needs 6.7 GiB (API process 0.75, "
        "EngineCore 0.60, worker 0.80, weights 3.00, vLLM's KV cache 1.00, local tier 0.50, "
        "/dev/shm 0.05), which is more than 6.0 GiB. Raise the memory limit to 8.4 GiB, or lower "
        "max_local_cpu_size or --kv-cache-memory-bytes."
    )
    assert memory_budget.problem(Limit(6.8 * GIB, LIMIT), needs, GIB / 2) is None
    enough = Limit(8.4 * GIB, LIMIT)
    assert not memory_budget.leaves_too_little(enough, needs, GIB / 2)
    assert memory_budget.leaves_too_little(Limit(8.3 * GIB, LIMIT), needs, GIB / 2)


def test_the_fix_names_what_there_is_to_lower() -> None:
    small = Limit(GIB, LIMIT)
    assert str(memory_budget.problem(small, Needs("cpu"))).endswith("limit to 2.8 GiB.")
    offloaded = memory_budget.problem(small, Needs("cuda", offloaded=GIB))
    assert str(offloaded).endswith("or lower what vLLM offloads.")


def test_a_limit_of_each_process_is_not_compared_with_their_sum() -> None:
    limit = Limit(GIB, ADDRESS_SPACE)
    assert memory_budget.problem(limit, Needs("cpu", weights=9 * GIB)) is None
    assert not memory_budget.leaves_too_little(limit, Needs("cpu"))


@pytest.mark.parametrize("limit_gib", [3.5, 4, 5, 8, 16, 64])
@pytest.mark.parametrize("weights_gib", [0.25, 1, 2.5, 16])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_defaults_leave_a_fifth_or_are_as_small_as_they_may(
    limit_gib: float, weights_gib: float, workers: int
) -> None:
    memory = Limit(limit_gib * GIB, LIMIT)
    without = Needs("cpu", workers, weights=int(weights_gib * GIB))
    needs = Needs(
        "cpu", workers, 1, without.weights, memory_budget.default_kv_cache(memory, without)
    )
    tier = local_tier.default_size(memory, needs).value * GIB
    smallest = needs.kv_cache == GIB // 16 and tier < 0.13 * GIB
    assert memory_budget.leaves_too_little(memory, needs, tier) == smallest
    assert needs.kv_cache * workers <= limit_gib * GIB / 4


def test_a_large_container_has_the_shares_of_before() -> None:
    memory = Limit(64 * GIB, LIMIT)
    without = Needs("cpu", weights=2 * GIB)
    assert memory_budget.default_kv_cache(memory, without) == 4 * GIB
    assert local_tier.default_size(memory, without).value == pytest.approx(9.6, abs=0.0011)
    assert local_tier.default_size(memory, Needs("cuda")).value == pytest.approx(25.6, abs=0.0011)


def test_a_tier_that_must_be_small_says_why() -> None:
    value = local_tier.default_size(
        Limit(5 * GIB, LIMIT), Needs("cpu", weights=GIB, kv_cache=GIB // 2)
    )
    assert value.source == f"default: what the server leaves of 5.0 GiB, less {SPARE:.0%}, {LIMIT}"
