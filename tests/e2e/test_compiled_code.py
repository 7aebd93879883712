"""A server that compiles: the next one loads its code, and damaged code costs time alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.server import Server, engine_environment, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPT = "Name the planets of the solar system."
KEPT = "Compiled code is kept"
# The server's own helper turns compilation off; the last flag counts.
COMPILING = ("--no-enforce-eager", "--offload=off")


def answer(server: Server) -> str:
    return str(server.chat(PROMPT).choices[0].message.content)


def test_the_next_server_loads_what_the_last_one_compiled(cut_model: Path, tmp_path: Path) -> None:
    kept, temporary = tmp_path / "kept", tmp_path / "tmp"
    temporary.mkdir()
    environ = engine_environment(
        KSERVE_LMCACHE_COMPILE_CACHE_DIR=str(kept), TMPDIR=str(temporary), HOME=str(temporary)
    )
    # The caches of the process that runs the tests are not those of a user.
    environ = {name: value for name, value in environ.items() if "CACHE_DIR" not in name} | {
        "KSERVE_LMCACHE_COMPILE_CACHE_DIR": str(kept)
    }
    options = {"environ": environ, "model": (f"--model_id={cut_model}",)}
    texts, logs = [], []
    for name in ("cold", "warm", "damaged"):
        if name == "damaged":
            (archive,) = kept.rglob("compiled")
            archive.write_bytes(archive.read_bytes()[:-4096])
        with running(tmp_path / f"{name}.log", *COMPILING, **options) as server:
            texts.append(answer(server))
            if name != "warm":
                server.process.wait_until(lambda s=server: KEPT in s.process.output(), 60)
            logs.append(server.process.output())
    cold, warm, damaged = logs
    assert len(set(texts)) == 1
    assert "There is no compiled code of an earlier start" in cold
    assert re.search(r"\d+ files of compiled code come from", warm)
    assert KEPT not in warm  # nothing was compiled again
    assert "Compiled code of an earlier start is not used" in damaged
    assert not list(temporary.glob("kserve-lmcache-compiled-*/0"))
