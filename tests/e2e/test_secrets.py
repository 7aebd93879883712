"""A live server whose users set what must not turn the guards off: no password is in any output."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from urllib.parse import quote

import httpx

from tests.support.processes import wait_for_end
from tests.support.server import engine_environment, running
from tests.support.stores import redis_process

PASSWORD = "hun'ter/2#?@x"


def test_no_output_has_the_password_whatever_plugins_are_listed(logs: Path, tmp_path: Path) -> None:
    with redis_process(tmp_path, password=PASSWORD) as store:
        url = f"redis://:{quote(PASSWORD, safe='')}@{store.host}:{store.port}"
        environ = engine_environment(
            VLLM_PLUGINS="lora_filesystem_resolver",
            LMCACHE_REMOTE_URL=url,
            KSERVE_LMCACHE_LOG_FORMAT="json",
            KSERVE_LMCACHE_LOG_LEVEL="debug",
        )
        with running(logs / "secrets.log", environ=environ) as server:
            body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
            answer = httpx.post(f"{server.openai_url}/chat/completions", json=body, timeout=120)
            assert answer.status_code == 200, "a body without a model is for the only one"
            pages = [httpx.get(f"{server.url}{path}").text for path in ("/offload", "/metrics")]
            log = server.process.output()
            family = server.process.family()
            server.process.signal(signal.SIGKILL)
            assert wait_for_end(family, seconds=10) == []
    for text in (log, *pages):
        assert "hun'ter" not in text
        assert quote("hun'ter", safe="") not in text
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert len({record["process"] for record in records}) > 2, "the engine's processes write JSON"
    assert len(records) > 0.9 * len(log.splitlines())
