"""With offloading an engine answers, token for token, what it answers without.

Everything in float32 and with temperature 0. A reference without any cache answers first; then
two engines, whose settings are unlike in all that may change what is loaded and how, answer the
same prompts from LMCache: every case proves that they did. With `--mode=multiprocess` each of them
has a cache server.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from kserve_lmcache.config.settings import IN_PROCESS
from tests.support import engines, models
from tests.support.engines import LOADED, Answer, Job, Round
from tests.support.options import option

BLOCK, CHUNK = 32, 64  # so that a few chunks are soon computed
LAYERS = 3
KV_BYTES = 2 * LAYERS * 3 * 64 * 4  # of one token: K and V, layers, heads, head size, float32
LONGEST = 12 * BLOCK
BLOCKS = 16  # of vLLM's own cache, one of which it keeps for itself
FLAGS = (f"--max-model-len={LONGEST}", f"--block-size={BLOCK}")
FILLERS = (12, 4)  # blocks of prompts that leave nothing else there
TIER_CHUNKS = 4.9

# A cached prefix changes the shape of the rest's computation, so the order of its sums. A float32
# has 24 significant bits; the logits are below 2**6; a layer's sums are 3,700 additions long (576,
# 64, the context of 375, 576, 576 and 1,536), whose roundings add up like steps of a random walk.
TOLERANCE = 2**6 * 2**-24 * math.sqrt(LAYERS * 3_700)

# Of the prompts: at the edge of one and two chunks and one token off, and with a partial chunk.
EDGES = (63, 64, 65, 127, 128, 129, 175)
GENERATED = 8
KNOWN = (2, 4)  # chunks of a long prompt
LOST = (0, 1, 3)  # the first chunk of a load that is not there any more
TOGETHER = [f"together {number}" for number in range(4)]
LENGTHS = {
    **{f"edge {length}": length for length in EDGES},
    "bits": 2 * CHUNK + 1,
    "decoded": 2 * CHUNK - GENERATED // 2,
    **{f"{chunks} chunks known": 350 for chunks in KNOWN},
    **{f"lost from {chunk}": 4 * CHUNK + 25 for chunk in LOST},
    "beyond": 375,
    "scored": 150,
    # Each takes three blocks at first and a fourth while it generates: more than there are.
    **dict.fromkeys(TOGETHER, 3 * BLOCK - GENERATED // 2),
}


def prompt(name: str) -> list[int]:
    """Random tokens, from which nothing is easy to guess."""
    return random.Random(name).choices(range(1000, 40_000), k=LENGTHS[name])


@dataclass(frozen=True)
class Setup:
    """Settings of an engine with offloading."""

    name: str
    prefix_caching: bool
    step: int  # tokens that are computed at a time
    save_decode: bool
    tier_gib: float

    def job(self, model: str) -> Job:
        caching = "" if self.prefix_caching else "no-"
        flags = (
            *FLAGS,
            f"--kv-cache-memory-bytes={BLOCKS * BLOCK * KV_BYTES}",
            f"--max-num-batched-tokens={self.step}",
            f"--{caching}enable-prefix-caching",
        )
        variables = {
            "LMCACHE_CHUNK_SIZE": str(CHUNK),
            "LMCACHE_MAX_LOCAL_CPU_SIZE": str(self.tier_gib),
            "LMCACHE_SAVE_DECODE_CACHE": str(self.save_decode),
        }
        return Job(model, flags, variables, list(script(self).values()))


SETUPS = (
    Setup("chunked prefill", prefix_caching=True, step=128, save_decode=True, tier_gib=1.0),
    Setup(
        "small tier",
        prefix_caching=False,
        step=512,
        save_decode=False,
        tier_gib=TIER_CHUNKS * CHUNK * KV_BYTES / 2**30,
    ),
)


@dataclass
class Script:
    """What an engine is asked, round by round, by the names of the rounds."""

    setup: Setup
    rounds: dict[str, Round] = field(default_factory=dict)

    def ask(self, name: str, round: Round) -> None:
        self.rounds[name] = round

    def load(self, name: str, round: Round) -> None:
        """:meth:`ask` with nothing in vLLM's own cache."""
        self.forget()
        self.ask(name, round)

    def forget(self) -> None:
        """Fill vLLM's own cache with something else."""
        for blocks in FILLERS if self.setup.prefix_caching else ():
            name = f"filler {len(self.rounds)}"
            tokens = random.Random(name).choices(range(1000, 40_000), k=blocks * BLOCK - 1)
            self.ask(name, Round([tokens], generate=1))


def script(setup: Setup) -> dict[str, Round]:
    """Every case, one after another."""
    it = Script(setup)
    for length in EDGES:
        it.ask(f"edge {length}", whole(f"edge {length}"))
        it.load(f"edge {length}, loaded", whole(f"edge {length}"))
    for name in ("bits", "bits, again"):
        it.ask(name, whole("bits"))
    it.load("bits, loaded", whole("bits"))
    it.ask("decoded", whole("decoded"))
    it.load("continued", Round([[]], GENERATED, after=list(it.rounds).index("decoded")))
    for chunks in KNOWN:
        name = f"{chunks} chunks known"
        it.ask(f"{name}, begun", Round([prompt(name)[: chunks * CHUNK]], 1))
        it.load(name, whole(name))
    for chunk in LOST:
        name = f"lost from {chunk}"
        it.ask(f"{name}, computed", whole(name))
        it.load(name, Round([prompt(name)], GENERATED, lose_from=chunk))
        it.load(f"{name}, again", whole(name))
    for name in TOGETHER:
        it.ask(f"{name}, computed", Round([prompt(name)], 1))
    it.load("together", Round([prompt(name) for name in TOGETHER], GENERATED))
    for times in ("once", "twice"):
        it.ask(f"beyond, begun {times}", Round([prompt("beyond")[: 2 * CHUNK]], 1))
        it.load(f"beyond {times}", whole("beyond"))
    it.ask("scored, computed", whole("scored"))
    it.load("scored", Round([prompt("scored")], GENERATED, score=True))
    it.load("scored, loaded", whole("scored"))
    return it.rounds


def whole(name: str) -> Round:
    return Round([prompt(name)], GENERATED)


@dataclass(frozen=True)
class Played:
    """What became of a round."""

    answers: list[Answer]
    counters: Mapping[str, int]

    @property
    def answer(self) -> Answer:
        (answer,) = self.answers
        return answer

    @property
    def loaded(self) -> int:
        """Tokens that LMCache found."""
        return self.counters["vllm:external_prefix_cache_hits"]


@dataclass(frozen=True)
class Case:
    """An engine with offloading, and what it answered."""

    setup: Setup
    played: Mapping[str, Played]

    def __getitem__(self, name: str) -> Played:
        return self.played[name]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[engines.Outcome]:
    """Of the reference, and of every setup."""
    directory = tmp_path_factory.mktemp("numerics")
    model = str(models.first_layers(directory / "model", LAYERS))
    names = list(LENGTHS)
    reference = [
        *(Round([prompt(name)], GENERATED, score=name == "scored") for name in names),
        Round([[]], GENERATED, after=names.index("decoded")),
    ]
    flags = (*FLAGS, "--offload=off", "--no-enable-prefix-caching")
    outcomes = engines.run(
        [Job(model, flags, {}, reference), *(setup.job(model) for setup in SETUPS)], directory
    )
    for outcome in outcomes:
        assert not outcome.error, outcome.error
    return outcomes


@pytest.fixture(scope="module")
def expected(outcomes: list[engines.Outcome]) -> dict[str, Answer]:
    """Without any cache, by the prompt's name."""
    answers = [answer for (answer,) in outcomes[0].rounds]
    assert {answer.cached for answer in answers} == {0}
    return dict(zip([*LENGTHS, "continued"], answers, strict=True))


@pytest.fixture(scope="module", params=range(len(SETUPS)), ids=[setup.name for setup in SETUPS])
def case(request: pytest.FixtureRequest, outcomes: list[engines.Outcome]) -> Case:
    setup, outcome = SETUPS[request.param], outcomes[1 + request.param]
    played = map(Played, outcome.rounds, outcome.counters)
    return Case(setup, dict(zip(script(setup), played, strict=True)))


def agree(one: Answer, other: Answer) -> None:
    assert one.tokens == other.tokens
    assert one.logprobs == pytest.approx(other.logprobs, rel=0, abs=TOLERANCE)
    assert one.prompt_logprobs == pytest.approx(other.prompt_logprobs, rel=0, abs=TOLERANCE)


def whole_chunks(length: int) -> int:
    """What can be loaded of a prompt: whole chunks, and never its last token."""
    return min(length // CHUNK * CHUNK, length - 1)


@pytest.mark.parametrize("length", EDGES)
def test_at_the_edge_of_a_chunk(case: Case, expected: dict[str, Answer], length: int) -> None:
    cold, warm = case[f"edge {length}"], case[f"edge {length}, loaded"]
    assert (cold.answer.cached, cold.loaded) == (0, 0)
    agree(cold.answer, expected[f"edge {length}"])
    assert (warm.answer.cached, warm.loaded) == (whole_chunks(length),) * 2
    agree(warm.answer, expected[f"edge {length}"])


def test_equal_shapes_give_equal_bits(case: Case) -> None:
    """From vLLM's own cache, where it has one, and from LMCache; else twice from LMCache."""
    computed, first, second = case["bits"], case["bits, again"], case["bits, loaded"]
    assert (computed.answer.cached, computed.loaded) == (0, 0)
    assert first.answer.cached == 2 * CHUNK
    assert first.loaded == (0 if case.setup.prefix_caching else 2 * CHUNK)
    assert second.answer.cached == second.loaded == 2 * CHUNK
    assert first.answer == second.answer


def test_what_was_generated_is_kept_when_it_is_asked_for(
    case: Case, expected: dict[str, Answer]
) -> None:
    decoded, continued = case["decoded"], case["continued"]
    agree(decoded.answer, expected["decoded"])
    kept = 2 * CHUNK if case.setup.save_decode else CHUNK
    assert continued.answer.cached == continued.loaded == kept
    agree(continued.answer, expected["continued"])


@pytest.mark.parametrize("chunks", KNOWN)
def test_a_prompt_that_is_computed_in_steps(
    case: Case, expected: dict[str, Answer], chunks: int
) -> None:
    """What is not loaded of it may be more than is computed at a time."""
    name = f"{chunks} chunks known"
    assert case[name].loaded == chunks * CHUNK
    steps = LENGTHS[name] - chunks * CHUNK > case.setup.step
    assert steps == (chunks == 2 and case.setup.step == 128)
    agree(case[name].answer, expected[name])


@pytest.mark.parametrize("chunk", LOST)
def test_a_load_that_fails_half_way(case: Case, expected: dict[str, Answer], chunk: int) -> None:
    name = f"lost from {chunk}"
    assert case[name].loaded == 4 * CHUNK
    assert case[name].counters[LOADED] == chunk * CHUNK
    agree(case[name].answer, expected[name])
    assert case[f"{name}, again"].loaded == case[f"{name}, again"].counters[LOADED] == 4 * CHUNK
    agree(case[f"{name}, again"].answer, expected[name])


def test_requests_that_are_preempted(case: Case, expected: dict[str, Answer]) -> None:
    """More than vLLM's own cache holds at a time: one has to wait, and begins again by a load."""
    together = case["together"]
    # Delayed loads do not come together, and those of a cache server only sometimes.
    if option("--mode") == IN_PROCESS and not option("--load-delay"):
        assert together.counters["vllm:num_preemptions"] > 0
    assert together.loaded == len(TOGETHER) * CHUNK
    for name, answer in zip(TOGETHER, together.answers, strict=True):
        agree(answer, expected[name])


def test_a_prompt_that_is_longer_than_the_tier(case: Case, expected: dict[str, Answer]) -> None:
    """It is in one of the two engines. There, in the engine's process, its end drives its beginning
    out. A cache server drives out the end of what was stored at a time, and keeps the beginning.
    """
    assert LENGTHS["beyond"] // CHUNK > TIER_CHUNKS
    kept = 2 if option("--mode") == IN_PROCESS else 4
    known = {"once": 2, "twice": 5 if case.setup.tier_gib == 1 else kept}
    for times, chunks in known.items():
        assert case[f"beyond {times}"].loaded == chunks * CHUNK
        agree(case[f"beyond {times}"].answer, expected["beyond"])


def test_prompt_logprobs_are_of_every_token(case: Case, expected: dict[str, Answer]) -> None:
    """A position that was loaded has none: such a request loads nothing."""
    scored, loaded = case["scored"], case["scored, loaded"]
    assert (scored.answer.cached, scored.loaded) == (0, 0)
    assert len(scored.answer.prompt_logprobs) == LENGTHS["scored"] - 1
    agree(scored.answer, expected["scored"])
    assert loaded.answer.cached == loaded.loaded == 2 * CHUNK
    assert loaded.answer.logprobs == pytest.approx(
        expected["scored"].logprobs, rel=0, abs=TOLERANCE
    )
