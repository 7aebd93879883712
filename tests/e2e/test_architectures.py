"""A prefix that LMCache loads gives what computing it gives, whatever the model's architecture."""

from __future__ import annotations

import math

import pytest

from tests.support import engines
from tests.support.architectures import ARCHITECTURES, Architecture, random_prompt
from tests.support.engines import Job, Round

# Beside the small model of the other tests: head sizes of their own, and no RoPE.
USUAL = ("Qwen3ForCausalLM", "GPT2LMHeadModel")
BLOCK, CHUNK, LENGTH = 32, 64, 150
LOADED = LENGTH // CHUNK * CHUNK
# As in test_numerics: three layers of some thousand additions, logits below 2**5.
TOLERANCE = 2**5 * 2**-24 * math.sqrt(3 * 2_000)
FLAGS = ("--max-model-len=512", "--kv-cache-memory-bytes=20M", "--no-enable-prefix-caching")

PROMPT = random_prompt("prompt", LENGTH)
OTHER = random_prompt("other", LOADED) + PROMPT[LOADED:]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, engines.Outcome]:
    """By architecture: the prompt, the prompt again, and another that ends alike.

    One process runs the engines of all architectures whose tests are selected.
    """
    chosen: list[Architecture] = [
        item.callspec.params["architecture"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    directory = tmp_path_factory.mktemp("architectures")
    variables = {"LMCACHE_MAX_LOCAL_CPU_SIZE": "0.1", "LMCACHE_CHUNK_SIZE": str(CHUNK)}
    jobs = [
        Job(
            str(each.build(directory / each.name)),
            (*FLAGS, f"--block-size={BLOCK}"),
            variables,
            [Round([prompt]) for prompt in (PROMPT, PROMPT, OTHER)],
        )
        for each in chosen
    ]
    found = engines.run(jobs, directory)
    return {each.name: outcome for each, outcome in zip(chosen, found, strict=True)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(each, id=each.name, marks=() if each.name in USUAL else pytest.mark.exhaustive)
        for each in ARCHITECTURES
    ],
)
def test_a_loaded_prefix_gives_the_same(
    outcomes: dict[str, engines.Outcome], architecture: Architecture
) -> None:
    outcome = outcomes[architecture.name]
    assert not outcome.error, outcome.error
    assert outcome.architecture == architecture.name
    [computed], [loaded], [other] = outcome.rounds
    assert (computed.cached, loaded.cached, other.cached) == (0, LOADED, 0)
    assert loaded.tokens == computed.tokens
    assert loaded.logprobs == pytest.approx(computed.logprobs, rel=0, abs=TOLERANCE)
    # The prefix matters: had anything else been loaded, it would have been seen.
    pairs = zip(other.logprobs, computed.logprobs, strict=True)
    assert max(abs(one - another) for one, another in pairs) > 100 * TOLERANCE
