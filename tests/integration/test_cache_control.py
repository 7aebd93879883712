"""The server asks a worker about its cache while the engine runs, and no step waits for it."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from kserve_lmcache.config.engine_file import QUOTAS, STEERED
from kserve_lmcache.connector.control import socket_path
from kserve_lmcache.engine import cache_control
from kserve_lmcache.engine.cache_control import CacheControl
from kserve_lmcache.engine.errors import RefusedError
from kserve_lmcache.identity.namespace import TENANT
from kserve_lmcache.identity.tag import EVERYTHING, Selection, Tag, digest
from tests.support.simulated_engine import (
    CHUNK,
    LMCACHE,
    SimulatedEngine,
    continuation,
    simulated,
)

CHUNKS = 6
TOKENS = [number * 7 % 250 for number in range(CHUNKS * CHUNK + 9)]
GIB = 2**30


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """The server's: short, as the path of a socket must be."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def engine(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedEngine]:
    file = directory / "lmcache.yaml"
    file.write_text(
        yaml.safe_dump({name.lower(): yaml.safe_load(text) for name, text in LMCACHE.items()})
    )
    extra = {STEERED: True, QUOTAS: {"local_cpu": GIB}}
    lmcache = {"CONFIG_FILE": str(file)}
    with simulated(tmp_path_factory.mktemp("model"), lmcache=lmcache, extra_config=extra) as engine:
        yield engine


@pytest.fixture
def control(directory: Path) -> CacheControl:
    return CacheControl(directory, 1)


def ask(control: CacheControl, name: str, **arguments: Any) -> Any:
    (answer,) = asyncio.run(control.ask(name, **arguments))
    return answer


def add(engine: SimulatedEngine, name: str, prompt: list[int], tenant: str = "") -> None:
    """A request as the server sends it to the engine."""
    request = engine.request(name, prompt, cache_salt=f"salt of {tenant}" if tenant else None)
    assert request.sampling_params is not None
    request.sampling_params.extra_args = {TENANT: tenant} if tenant else None
    engine.said[name] = []
    engine.scheduler.add_request(request)


def run(engine: SimulatedEngine, name: str, prompt: list[int], tenant: str = "") -> int:
    """The tokens that a request took from the cache; vLLM's own knows nothing."""
    engine.scheduler.reset_prefix_cache()
    engine.hits = 0
    add(engine, name, prompt, tenant)
    while engine.is_busy():
        engine.step()
    assert engine.said[name] == continuation(prompt, 4)
    assert not engine.worker.wrong
    return engine.hits


def tag(tenant: str) -> Tag:
    return Tag(digest(f"salt of {tenant}"), digest(tenant), "") if tenant else Tag()


def test_the_socket_is_the_servers_alone(engine: SimulatedEngine, directory: Path) -> None:
    mode = socket_path(directory, 0).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_what_a_request_stored_is_found_by_its_tenant_and_deleted(
    engine: SimulatedEngine, control: CacheControl
) -> None:
    for tenant in ("", "a", "b"):
        assert run(engine, f"first {tenant}", TOKENS, tenant) == 0
        assert run(engine, f"again {tenant}", TOKENS, tenant) == CHUNKS * CHUNK
    found, failures = cache_control.usages([ask(control, "usage", selection=EVERYTHING)])
    assert failures == {}
    chunks = {each: usage["local_cpu"].chunks for each, usage in found.items()}
    assert chunks == {tag(tenant): CHUNKS for tenant in ("", "a", "b")}
    answer = ask(control, "delete", selection=Selection(tenant=digest("a")))
    assert answer == {"local_cpu": {"chunks": CHUNKS}}
    for tenant, hits in (("a", 0), ("", CHUNKS * CHUNK), ("b", CHUNKS * CHUNK)):
        assert run(engine, f"after {tenant}", TOKENS, tenant) == hits
    ask(control, "delete", selection=EVERYTHING)


@pytest.mark.parametrize("tenant", ["", "a"])
def test_the_keys_of_a_prompt_are_those_of_its_requests(
    engine: SimulatedEngine, control: CacheControl, tenant: str
) -> None:
    tokens = [len(tenant), *TOKENS]
    run(engine, f"prompt {tenant}", tokens, tenant)
    arguments = {"tokens": tokens, "tag": str(tag(tenant))}
    assert ask(control, "prefetch", **arguments) == {"local_cpu": {"chunks": CHUNKS, "of": CHUNKS}}
    pinned = ask(control, "pin", seconds=60, **arguments)["local_cpu"]
    assert pinned["chunks"] == pinned["of"] == CHUNKS
    assert run(engine, f"pinned {tenant}", tokens, tenant) == CHUNKS * CHUNK
    other = {"tokens": tokens, "tag": str(tag("b"))}
    assert ask(control, "delete_prompt", **other) == {"local_cpu": {"chunks": 0}}
    assert ask(control, "delete_prompt", **arguments) == {"local_cpu": {"chunks": CHUNKS}}
    assert run(engine, f"gone {tenant}", tokens, tenant) == 0


def test_a_deletion_between_the_steps_of_a_request_spoils_nothing(
    engine: SimulatedEngine, control: CacheControl
) -> None:
    """Its load is on its way, or its chunks are stored after every step."""
    prompt = [9, *TOKENS]
    run(engine, "stored", prompt, "a")
    for number in range(8):
        engine.scheduler.reset_prefix_cache()
        add(engine, f"deleted {number}", prompt, "a")
        for _ in range(number):
            engine.step()
        ask(control, "delete", selection=Selection(tenant=digest("a")))
        while engine.is_busy():
            engine.step()
        assert engine.said[f"deleted {number}"] == continuation(prompt, 4)
        assert not engine.worker.wrong


@pytest.mark.parametrize(
    "message",
    [
        b"\n",
        b"{\n",
        b"[]\n",
        b'{"name": "__init__", "arguments": {}}\n',
        b'{"name": "_pins", "arguments": {}}\n',
        b'{"name": "usage"}\n',
        b'{"name": "usage", "arguments": {"x": 1}}\n',
    ],
)
def test_a_message_that_is_none_is_an_error(
    engine: SimulatedEngine, directory: Path, message: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(socket_path(directory, 0)))
        client.sendall(message)
        assert b'"error"' in client.makefile("rb").readline()


def test_workers_that_are_not_there(directory: Path, engine: SimulatedEngine) -> None:
    with pytest.raises(RefusedError, match="worker 1 cannot be asked"):
        asyncio.run(CacheControl(directory, 2).ask("usage", selection=EVERYTHING))
    left = socket_path(directory, 1)
    with socket.socket(socket.AF_UNIX) as nobodys:
        nobodys.bind(str(left))
    try:
        with pytest.raises(RefusedError, match="did not answer"):
            asyncio.run(CacheControl(directory, 2).ask("usage", selection=EVERYTHING))
    finally:
        left.unlink()
