"""The doctor beside a server of a large model: its memory while it stores and reads a chunk."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.beside import command, stand_in
from tests.support.limits import limited
from tests.support.server import MODEL, engine_environment
from tests.support.stores import redis_server

MIB = 2**20


def test_memory_with_a_store(tmp_path: Path) -> None:
    with redis_server(tmp_path, password="hunter2") as store:
        variables = {"LMCACHE_REMOTE_URL": store.url, "LMCACHE_REMOTE_PASSWORD": "hunter2"}
        environ = engine_environment(**variables)
        with stand_in(tmp_path, environ, f"--model_id={MODEL}") as server:
            with limited(128 * MIB) as prefix:
                done = command(environ, "doctor", "--json", prefix=prefix)
            found = {each["name"]: each for each in json.loads(done.output)["findings"]}
            assert f"pid {server.pid} " in found["configuration"]["evidence"]
            assert found["remote round trip"]["status"] == "ok", found
            assert found["remote round trip"]["evidence"].startswith("8.0 MiB written at ")
            assert found["replicas"]["status"] == "ok", found
            assert done.peak < 100 * MIB, f"{done.peak / MIB:.0f} MiB"
            print(f"doctor: {done.seconds:.1f} s, {done.peak / MIB:.0f} MiB")
