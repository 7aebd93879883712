"""What one set of versions stores another loads where both compute the same bits, and never else.

Every set computes one prompt into a Redis of its own. Then every set asks for the prompt beside
the Redis of every other set. ``python -m tests.matrix`` makes the environments of the sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kserve_lmcache.tiers.guard.codec import decode_value
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.e2e.test_architectures import BLOCK, CHUNK, FLAGS, LOADED, PROMPT, TOLERANCE
from tests.matrix.sets import LOCKS, python_of
from tests.support import engines
from tests.support.answers import answer_of
from tests.support.architectures import ARCHITECTURES, Architecture
from tests.support.engines import Answer, Job, Round
from tests.support.models import first_layers
from tests.support.server import cached_tokens, engine_environment, long_prompt, running
from tests.support.stores import Store, redis_server

pytestmark = pytest.mark.timeout(3600)

# The sets that share, by docs/design/cache-keys.md.
SHARING = {frozenset({"0.28", "0.32"})}
PAIRS = list(itertools.permutations(LOCKS, 2))
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
        stored: what each set stored: the chunks' bytes, by the key without the namespace.
        read: answer of a set (first) beside the store of another (second).
    """

    namespaces: dict[str, str] = field(default_factory=dict)
    cold: dict[str, Answer] = field(default_factory=dict)
    stored: dict[str, dict[str, bytes]] = field(default_factory=dict)
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
        places = [(name, writer) for name in models for writer in LOCKS if writer != reader]
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
    return Job(str(model), (*FLAGS, f"--block-size={BLOCK}"), variables, [Round([PROMPT])])


def answer_to(outcome: engines.Outcome) -> Answer:
    assert not outcome.error, outcome.error
    [[answer]] = outcome.rounds
    return answer


def stored(store: Store, namespace: str) -> dict[str, bytes]:
    """The payloads of a namespace's chunks, by the part of the key behind the namespace."""
    payloads = {}
    for chunk in store.chunks():
        key = chunk.decode().removeprefix(KEY_PREFIX)
        if key.startswith(namespace):
            _, payload = decode_value(key, store.client().get(chunk))
            payloads[key.removeprefix(namespace)] = bytes(payload)
    return payloads


def is_near(one: Answer, other: Answer) -> bool:
    near = pytest.approx(other.logprobs, rel=0, abs=TOLERANCE)
    return one.tokens == other.tokens and one.logprobs == near


@each_architecture
@pytest.mark.parametrize(("reader", "writer"), PAIRS)
def test_a_set_loads_what_its_own_kind_stored(
    found: dict[str, Found], architecture: Architecture, reader: str, writer: str
) -> None:
    of = found[architecture.name]
    shares = frozenset({reader, writer}) in SHARING
    assert of.cold[reader].cached == 0
    assert of.read[reader, writer].cached == (LOADED if shares else 0)
    assert is_near(of.read[reader, writer], of.cold[reader])


@each_architecture
@pytest.mark.parametrize(("one", "other"), itertools.combinations(LOCKS, 2))
def test_sets_that_share_store_the_same_bits_under_the_same_keys(
    found: dict[str, Found], architecture: Architecture, one: str, other: str
) -> None:
    of = found[architecture.name]
    shares = frozenset({one, other}) in SHARING
    assert len(of.stored[one]) == LOADED // CHUNK
    assert (of.namespaces[one] == of.namespaces[other]) == shares
    if shares:
        assert of.stored[one] == of.stored[other]


@pytest.mark.parametrize(("first", "second"), [sorted(pair) for pair in SHARING])
def test_two_replicas_of_two_sets_beside_one_store(tmp_path: Path, first: str, second: str) -> None:
    """During an upgrade: the old server has stored, the new one loads, and back."""
    model = (f"--model_id={first_layers(tmp_path / 'model', 3)}",)
    prompts = {name: long_prompt(f"of {name}", words=960) for name in (first, second)}
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
            computed = servers[writer].chat(prompts[writer], logprobs=True)
            servers[writer].process.wait_until(
                lambda count=before + 4: len(store.chunks()) >= count, seconds=20
            )
            loaded = servers[reader].chat(prompts[writer], logprobs=True)
            assert cached_tokens(computed) == 0
            assert cached_tokens(loaded) >= 1024
            assert answer_of(loaded).is_like(answer_of(computed))
