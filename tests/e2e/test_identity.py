"""A hit means the same weights, adapter, tenant, numerics and tokens: every pair, one Redis.

Each identity writes a prompt of its own, and reads those of all that wrote before. The exhaustive
tests start each server once more, and read the others' as well. Redis is the only cache.
KServe mounts every model at ``/mnt/models``: so do these servers, each in a mount namespace of its
own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config.settings import IN_PROCESS
from tests.support import models
from tests.support.answers import Answer, answer_of
from tests.support.options import option
from tests.support.server import (
    Server,
    cached_tokens,
    engine_environment,
    long_prompt,
    running,
)
from tests.support.stores import Store

MOUNT = Path("/mnt/models")
# In bfloat16 a tie between two tokens may turn with the shape in which they are computed.
EXACT = "--dtype=float32"
REDIS_ALONE = "--no-enable-prefix-caching"
TENANT = "X-Tenant-Id"
ADAPTERS = (("first", 1), ("second", 2))
ALIKE = {"model", "same, elsewhere"}
MODE = option("--mode")


@dataclass(frozen=True)
class Identity:
    """Who asks: a server's model or adapter, for a tenant, with a salt."""

    name: str
    model: str = ""
    tenant: str = ""
    salt: str = ""


@dataclass(frozen=True)
class Setup:
    """A server: where its model is, and who asks it."""

    directory: Path
    identities: Sequence[Identity]
    arguments: Sequence[str] = (EXACT,)
    mounted: bool = True
    served: str = "smollm2"


@dataclass
class Table:
    """What was cached of each identity's prompt when each other one asked."""

    identities: list[str]
    written: set[bytes] = field(default_factory=set)
    cached: dict[tuple[str, str], int] = field(default_factory=dict)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)

    def read(self, server: Server, setup: Setup) -> None:
        """Ask for all prompts that were written and not asked for by these identities."""
        written = [name for name in self.identities if (name, "cold") in self.answers]
        for identity in setup.identities:
            for writer in written:
                if (identity.name, writer) not in self.cached:
                    answer = ask(server, identity, prompt_of(writer))
                    self.cached[identity.name, writer] = cached_tokens(answer)
                    self.answers[identity.name, writer] = answer_of(answer)

    def __str__(self) -> str:
        width = max(map(len, self.identities))
        lines = [f"{'reads ↓ · written by →':<{width}}  " + "  ".join(self.identities)]
        for reader in self.identities:
            cells = [
                f"{self.cached.get((reader, writer), '-')!s:>{len(writer)}}"
                for writer in self.identities
            ]
            lines.append(f"{reader:<{width}}  " + "  ".join(cells))
        return "\n".join(lines)


def prompt_of(identity: str) -> str:
    """About 300 tokens: a chunk and a little more."""
    return long_prompt(chr(ord("a") + len(identity) % 26) + identity[-1], words=120)


def ask(server: Server, identity: Identity, prompt: str) -> Any:
    return server.client().chat.completions.create(
        model=identity.model or server.name,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=6,
        logprobs=True,
        extra_headers={TENANT: identity.tenant} if identity.tenant else None,
        extra_body={"cache_salt": identity.salt} if identity.salt else None,
    )


@contextmanager
def serving(setup: Setup, log: Path, environ: Mapping[str, str]) -> Iterator[Server]:
    prefix: Sequence[str] = ()
    model = (f"--model_id={setup.directory}",)
    if setup.mounted:
        user = () if os.geteuid() == 0 else ("--map-root-user",)
        script = f'mount --bind "{setup.directory}" {MOUNT} && exec "$@"'
        prefix = ("unshare", "--mount", *user, "sh", "-c", script, "sh")
        model = ()
    arguments = ("--tenant-header", TENANT, REDIS_ALONE, *setup.arguments)
    options: dict[str, Any] = {"environ": environ, "model": model, "name": setup.served}
    with running(log, *arguments, prefix=prefix, **options) as server:
        yield server


def forget_all_but(store: Store, keys: set[bytes]) -> None:
    """What a reader has computed must not be found by the next one."""
    if computed := store.chunks() - keys:
        store.client().delete(*computed)


@pytest.fixture(scope="module")
def setups(tmp_path_factory: pytest.TempPathFactory) -> list[Setup]:
    root = tmp_path_factory.mktemp("models")
    # Nothing here needs more layers, and 144 answers take less time with few.
    small = models.first_layers(root / "small", 6)
    first, second = (models.adapter(root / name, seed, source=small) for name, seed in ADAPTERS)
    copy = models.copy(root / "copy", small)
    weights = models.changed(root / "weights", ("k_proj", "v_proj"), 3, small)
    revision = models.changed(root / "revision", ("layers.3.mlp",), 4, small)
    loras = ("--enable-lora", "--lora-modules", f"first={first}", f"second={second}")
    setups = [
        Setup(
            small,
            (
                Identity("model"),
                Identity("adapter 1", model="first"),
                Identity("adapter 2", model="second"),
                Identity("tenant 1", tenant="1"),
                Identity("tenant 2", tenant="2"),
                Identity("salt", salt="s"),
                Identity("tenant 1, salt", tenant="1", salt="s"),
            ),
            (EXACT, *loras),
        ),
        Setup(copy, (Identity("same, elsewhere"),), mounted=False, served="other"),
        Setup(weights, (Identity("other weights"),)),
        Setup(revision, (Identity("other revision"),)),
        Setup(small, (Identity("other dtype"),), ("--dtype=bfloat16",)),
        Setup(
            small,
            (Identity("other RoPE"),),
            (
                EXACT,
                '--hf-overrides={"rope_parameters": {"rope_type": "linear", "factor": 2.0, '
                '"rope_theta": 100000}}',
            ),
        ),
    ]
    # What the others differ in is in the namespace, which both modes take from the same place.
    return setups if MODE == IN_PROCESS else setups[:2]


@pytest.fixture(scope="module")
def environ(redis_store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    # A cache server has a local tier, which is gone with the server.
    alone = {"LMCACHE_LOCAL_CPU": "false"} if MODE == IN_PROCESS else {}
    return engine_environment(
        **alone,
        LMCACHE_REMOTE_URL=redis_store.url,
        LMCACHE_MAX_LOCAL_CPU_SIZE="0.5",
        # However busy the machine is: a hit is asked about here, and not how fast it comes.
        LMCACHE_REMOTE_LOOKUP_TIMEOUT="5",
        XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")),
    )


@pytest.fixture(scope="module")
def table(
    setups: list[Setup], redis_store: Store, logs: Path, environ: dict[str, str]
) -> Iterator[Table]:
    """Each identity has written, and read what was written before."""
    is_new = not MOUNT.exists()
    MOUNT.mkdir(parents=True, exist_ok=True)
    table = Table([identity.name for setup in setups for identity in setup.identities])
    table.written = redis_store.chunks()
    for number, setup in enumerate(setups):
        with serving(setup, logs / f"{number}.log", environ) as server:
            for identity in setup.identities:
                answer = ask(server, identity, prompt_of(identity.name))
                assert cached_tokens(answer) == 0
                table.answers[identity.name, "cold"] = answer_of(answer)
            stored = len(table.written) + len(setup.identities)  # a chunk a prompt
            server.process.wait_until(lambda n=stored: len(redis_store.chunks()) >= n, 30)
            table.written = redis_store.chunks()
            table.read(server, setup)
        forget_all_but(redis_store, table.written)
    yield table
    if is_new:
        MOUNT.rmdir()


@pytest.fixture(scope="module")
def full_table(
    table: Table, setups: list[Setup], redis_store: Store, logs: Path, environ: dict[str, str]
) -> Table:
    """Each identity has read what every other one wrote."""
    for number, setup in enumerate(setups[:-1]):
        with serving(setup, logs / f"again-{number}.log", environ) as server:
            table.read(server, setup)
        forget_all_but(redis_store, table.written)
    return table


def check_hits(table: Table) -> None:
    print(f"\n{table}")
    for (reader, writer), cached in table.cached.items():
        if reader == writer or {reader, writer} == ALIKE:
            assert cached >= 256, (reader, writer)
        else:
            assert cached == 0, (reader, writer)


def check_answers(table: Table, pairs: Iterable[tuple[str, str]]) -> None:
    for reader, writer in pairs:
        right = table.answers[writer, "cold"]
        assert table.answers[reader, writer].is_like(right), (reader, writer)


def test_hits_where_all_is_alike_and_nowhere_else(table: Table) -> None:
    count = len(table.identities)
    # Of each pair at least one has read the other's, and of those at one server both.
    assert len(table.cached) >= (count**2 + count) // 2
    check_hits(table)


def test_every_hit_answers_as_nothing_cached_does(table: Table) -> None:
    check_answers(table, [(name, name) for name in table.identities])
    check_answers(table, [("same, elsewhere", "model")])


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_both_of_every_pair_have_read(full_table: Table) -> None:
    assert len(full_table.cached) == len(full_table.identities) ** 2
    check_hits(full_table)
    check_answers(full_table, [("model", "same, elsewhere")])
