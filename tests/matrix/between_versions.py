"""What one replica stores another one of the same set of versions loads, and no other set does.

Every set computes one prompt into a Redis of its own. Then every set asks for the prompt beside
the Redis of every set. Prints how far the KV of two sets lies apart, which is why they do not share
(``docs/design/cache-keys.md``). ``python -m tests.matrix`` makes the environments of the sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from kserve_lmcache.tiers.guard.codec import decode_value
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.e2e.test_architectures import BLOCK, CHUNK, FLAGS, LOADED, PROMPT, TOLERANCE
from tests.matrix.sets import LOCKS, python_of
from tests.support import engines
from tests.support.answers import answer_of
from tests.support.architectures import ARCHITECTURES, Architecture, random_prompt
from tests.support.engines import Answer, Job, Round
from tests.support.models import first_layers
from tests.support.server import cached_tokens, engine_environment, long_prompt, running
from tests.support.stores import Store, redis_server

pytestmark = pytest.mark.timeout(3600)

PAIRS = list(itertools.product(LOCKS, repeat=2))
# Grouped heads, a sliding window, experts.
USUAL = ("LlamaForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM")

each_architecture = pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(each, id=each.name, marks=() if each.name in USUAL else pytest.mark.exhaustive)
        for each in ARCHITECTURES
    ],
)


@dataclass
class Found:
    """Of one architecture.

    Attributes:
        namespaces: of each set's engine.
        cold: answer of each set beside its own empty store.
        stored: the numbers that each set stored, by the key without the namespace.
        read: answer of a set (first) beside the store of a set (second).
    """

    namespaces: dict[str, str] = field(default_factory=dict)
    cold: dict[str, Answer] = field(default_factory=dict)
    stored: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    read: dict[tuple[str, str], Answer] = field(default_factory=dict)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Store]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(redis_server(tmp_path_factory.mktemp("redis")))
            for name in LOCKS
        }


@pytest.fixture(scope="module")
def found(
    request: pytest.FixtureRequest,
    stores: dict[str, Store],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Found]:
    """By architecture. Two processes of each set run the engines of all that are selected."""
    chosen: dict[str, Architecture] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "architecture" in item.fixturenames:
            each = item.callspec.params["architecture"]
            chosen[each.name] = each
    root = tmp_path_factory.mktemp("models")
    models = {name: each.build(root / name) for name, each in chosen.items()}
    found = {name: Found() for name in chosen}

    for writer, store in stores.items():
        jobs = [job(model, store) for model in models.values()]
        outcomes = engines.run(jobs, tmp_path_factory.mktemp("engines"), python_of(writer))
        for each, outcome in zip(found.values(), outcomes, strict=True):
            each.cold[writer] = answer_to(outcome)
            each.namespaces[writer] = outcome.namespace
            each.stored[writer] = stored(store, outcome.namespace)
    written = {name: store.chunks() for name, store in stores.items()}

    for reader in LOCKS:
        places = [(name, writer) for name in models for writer in LOCKS]
        jobs = [job(models[name], stores[writer]) for name, writer in places]
        outcomes = engines.run(jobs, tmp_path_factory.mktemp("engines"), python_of(reader))
        for (name, writer), outcome in zip(places, outcomes, strict=True):
            found[name].read[reader, writer] = answer_to(outcome)
        for writer, store in stores.items():  # not for the next reader what this one computed
            if computed := store.chunks() - written[writer]:
                store.client().delete(*computed)
    return found


def job(model: Path, store: Store) -> Job:
    """The prompt, to an engine that has no other cache than the store."""
    variables = {
        "LMCACHE_REMOTE_URL": store.url,
        "LMCACHE_LOCAL_CPU": "false",
        "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.1",
        "LMCACHE_CHUNK_SIZE": str(CHUNK),
        # However busy the machine is: a hit is asked about here, and not how fast it comes.
        "LMCACHE_REMOTE_LOOKUP_TIMEOUT": "5",
    }
    # An engine's first requests may come before its remote tier is connected.
    first = [Round([random_prompt("first", CHUNK // 2)], generate=100) for _ in range(2)]
    rounds = [*first, Round([PROMPT])]
    return Job(str(model), (*FLAGS, f"--block-size={BLOCK}"), variables, rounds)


def answer_to(outcome: engines.Outcome) -> Answer:
    assert not outcome.error, outcome.error
    *_, [answer] = outcome.rounds
    return answer


def stored(store: Store, namespace: str) -> dict[str, torch.Tensor]:
    """The values of a namespace's chunks, by the part of the key behind the namespace."""
    values = {}
    for chunk in store.chunks():
        key = chunk.decode().removeprefix(KEY_PREFIX)
        if key.startswith(namespace):
            _, payload = decode_value(key, store.client().get(chunk))
            values[key.removeprefix(namespace)] = torch.frombuffer(
                bytearray(payload), dtype=torch.float32
            )
    return values


def is_near(one: Answer, other: Answer) -> bool:
    near = pytest.approx(other.logprobs, rel=0, abs=TOLERANCE)
    return one.tokens == other.tokens and one.logprobs == near


@each_architecture
@pytest.mark.parametrize(("reader", "writer"), PAIRS)
def test_a_set_loads_what_it_stored_and_no_other_set(
    found: dict[str, Found], architecture: Architecture, reader: str, writer: str
) -> None:
    of = found[architecture.name]
    assert (of.namespaces[reader] == of.namespaces[writer]) == (reader == writer)
    assert of.cold[reader].cached == 0
    assert of.read[reader, writer].cached == (LOADED if reader == writer else 0)
    assert is_near(of.read[reader, writer], of.cold[reader])


@each_architecture
def test_the_stored_kv_of_two_sets(found: dict[str, Found], architecture: Architecture) -> None:
    """The keys are alike but for the namespace: it alone keeps the sets apart."""
    stored = found[architecture.name].stored
    for one, other in itertools.combinations(LOCKS, 2):
        assert len(stored[one]) == LOADED // CHUNK
        assert set(stored[one]) == set(stored[other])
        pairs = [(stored[one][key], stored[other][key]) for key in stored[one]]
        apart = max((first - second).abs().max().item() for first, second in pairs)
        largest = max(first.abs().max().item() for first, _ in pairs)
        print(f"{architecture.name}, {one} and {other}: {apart:.1e} of {largest:.1f}")


def test_replicas_of_two_sets_beside_one_store(tmp_path: Path) -> None:
    """During an upgrade, with servers: old and new share nothing, and answer right."""
    first, second = list(LOCKS)[-2:]
    model = (f"--model_id={first_layers(tmp_path / 'model', 3)}",)
    prompts = {first: long_prompt("former", words=960), second: long_prompt("newer", words=960)}
    with ExitStack() as stack:
        store = stack.enter_context(redis_server(tmp_path))
        servers = {}
        for name in (first, second):
            environ = engine_environment(PYTHON=str(python_of(name)), LMCACHE_REMOTE_URL=store.url)
            options = {"environ": environ, "model": model}
            log = tmp_path / f"{name}.log"
            servers[name] = stack.enter_context(running(log, "--dtype=float32", **options))
        for writer, reader in ((first, second), (second, first)):
            before = len(store.chunks())
            stored = servers[writer].chat(prompts[writer], logprobs=True)
            servers[writer].process.wait_until(
                lambda count=before + 4: len(store.chunks()) >= count, seconds=20
            )
            other = servers[reader].chat(prompts[writer], logprobs=True)
            again = servers[writer].chat(prompts[writer], logprobs=True)
            assert (cached_tokens(stored), cached_tokens(other)) == (0, 0)
            assert cached_tokens(again) >= 1024
            assert answer_of(again).is_like(answer_of(stored))
        log = servers[second].process.output()
        assert f"release of vLLM {first}" in log, log
