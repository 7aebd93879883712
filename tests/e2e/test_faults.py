"""One server whose LMCache raises, call by call and then at random: nobody notices.

What every call of the connector does when LMCache raises is tested in
``tests/integration/test_connector_faults.py`` as well, and in seconds.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.fault_injector.sitecustomize import CALLS
from tests.support.metrics import samples
from tests.support.options import option
from tests.support.server import (
    Server,
    engine_environment,
    long_prompt,
    running,
    with_fault_injector,
)

ROUNDS = option("--fault-rounds")
NAMES = [name for _, calls in CALLS.values() for name in calls]
# A cached prefix changes the shape in which the rest is computed, and with it the rounding: too
# little in float32 to turn a tie between two tokens.
EXACT = "--dtype=float32"
# Of vLLM's own cache, room for one of the prompts: the others come from LMCache (46 KB a token).
SMALL_CACHE = ("--max-model-len=1024", "--kv-cache-memory-bytes=60M")
CHUNK = 256
SEEDS = ("first", "second", "third")


class Faults:
    """The switch of the injector."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, chances: dict[str, float]) -> None:
        # Read at any time by the engine's processes: never half-written.
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{name} {chance}\n" for name, chance in chances.items()))
        new.replace(self.path)


def answers(server: Server, prompts: list[str], at_a_time: int = 2) -> list[str]:
    with ThreadPoolExecutor(at_a_time) as pool:
        chats = list(pool.map(lambda prompt: server.chat(prompt, max_tokens=8), prompts))
    return [chat.choices[0].message.content or "" for chat in chats]


def loaded(server: Server) -> float:
    return samples(server.url)["vllm:external_prefix_cache_hits_total"]


@pytest.mark.slow
@pytest.mark.timeout(1200 + 60 * ROUNDS)
def test_no_request_fails_and_no_answer_changes(logs: Path, tmp_path: Path) -> None:
    faults = Faults(tmp_path / "switch")
    faults.set({})
    environ = engine_environment(
        PYTHONPATH=with_fault_injector(os.environ),
        FAULT_INJECTOR_SWITCH=str(faults.path),
        LMCACHE_MAX_LOCAL_CPU_SIZE="1.0",
    )
    prompts = [long_prompt(seed, words=330) for seed in SEEDS]
    with running(logs / "server.log", EXACT, *SMALL_CACHE, environ=environ) as server:
        expected = answers(server, prompts)
        assert len(set(expected)) > 1
        assert answers(server, prompts) == expected
        assert loaded(server) > 2 * CHUNK * len(prompts)

        chance = random.Random(0)
        at_random = [{name: 0.3 * chance.random() for name in NAMES} for _ in range(ROUNDS)]
        for number, chances in enumerate([*({name: 1.0} for name in NAMES), *at_random]):
            faults.set(chances)
            # A new one, which would be stored now, and known ones, which are loaded.
            some = [long_prompt(f"new{number}", words=270), *prompts]
            assert answers(server, some)[1:] == expected, chances
        faults.set({})

        before = loaded(server)
        assert answers(server, prompts) == answers(server, prompts) == expected
        assert loaded(server) > before + 2 * CHUNK * len(prompts)
        log = server.process.output()
    for name in NAMES:
        assert f"fault injector: {name}" in log
    for call in set(NAMES) - {"retrieve", "store"}:
        assert log.count(f"LMCache failed in {call}; requests go on without it:") == 1, call
    # Another of ours calls it.
    assert log.count("LMCache failed in _load; requests go on without it:") == 1


def test_the_injector_knows_the_calls() -> None:
    assert len(NAMES) == len(set(NAMES)) > 10
