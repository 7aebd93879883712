"""``config`` and ``doctor`` in a container of 128 MiB beside a server under load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.background import repeating
from tests.support.beside import command
from tests.support.limits import limited
from tests.support.server import engine_environment, running
from tests.support.stores import redis_server
from tests.support.waiting import until

MIB = 2**20
COMMANDS = (["config"], ["config", "--json"], ["doctor"], ["doctor", "--json"])


def test_the_server_does_not_notice_them(logs: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path) as store:
        environ = engine_environment(LMCACHE_REMOTE_URL=store.url)
        with running(logs / "beside.log", environ=environ) as server:
            answered: list[Any] = []

            def chat() -> None:
                answer = server.chat(f"Tell me about the number {len(answered)}.")
                answered.append(answer.choices[0])

            rows = ["| Command | Time, s | Memory, MiB |", "|---|---|---|"]
            with repeating(chat):
                for arguments in COMMANDS:
                    with limited(128 * MIB) as prefix:
                        done = command(environ, *arguments, prefix=prefix)
                    # The tier of the server is larger than the container of the doctor.
                    assert done.code == (arguments[0] == "doctor"), done.output + done.errors
                    assert f"pid {server.process.pid} " in done.output
                    assert done.peak < 100 * MIB, arguments
                    row = (f"`{' '.join(arguments)}`", f"{done.seconds:.1f}")
                    rows.append(f"| {' | '.join(row)} | {done.peak / MIB:.0f} |")
                until(lambda: len(answered) > len(COMMANDS), 60)
            print("\n".join(rows))
            assert server.is_ready()
