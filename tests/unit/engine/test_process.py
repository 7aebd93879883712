"""What guards the logs and the end of the engine's processes, whatever a user has set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.engine import process
from tests.support.server import engine_environment

PASSWORD = "hunter2-and-more"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("", "kserve_lmcache"),
        ("lora_filesystem_resolver", "lora_filesystem_resolver,kserve_lmcache"),
        ("a,kserve_lmcache", "a,kserve_lmcache"),
    ],
)
def test_vllm_loads_the_plugin_whatever_list_is_set(
    given: str | None, expected: str | None, tmp_path: Path
) -> None:
    environ = {} if given is None else {"VLLM_PLUGINS": given}
    process.mark_server(environ, tmp_path)
    assert environ.get("VLLM_PLUGINS") == expected


# A server's process that starts one of an engine, as vLLM does: the child loads vLLM's plugins.
PROBE = """
import logging, multiprocessing, os, sys, time
from pathlib import Path
from kserve_lmcache.engine import process
def engine():
    from vllm.plugins import load_general_plugins
    load_general_plugins()
    logging.getLogger("lmcache.some").warning("the password is PASSWORD")
    print("child", os.getpid(), flush=True)
    time.sleep(60)
if __name__ == "__main__":
    process.mark_server(os.environ, Path(sys.argv[1]))
    child = multiprocessing.get_context(sys.argv[2]).Process(target=engine)
    if sys.argv[2] == "fork":
        from vllm.plugins import load_general_plugins
        load_general_plugins()
    child.start()
    child.join()
""".replace("PASSWORD", PASSWORD)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_process_of_the_engine_is_guarded_without_the_plugin_in_the_list(
    method: str, tmp_path: Path
) -> None:
    path = tmp_path / "lmcache.yaml"
    remote = Remote("redis://h", "the test", password=PASSWORD)
    engine_file.write({"remote_url": remote.url}, remote, path, TierLimits())
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    server = subprocess.Popen(
        [sys.executable, str(probe), str(path), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=engine_environment(VLLM_PLUGINS="lora_filesystem_resolver"),
    )
    assert server.stdout is not None
    lines: list[str] = []
    for line in server.stdout:
        lines.append(line)
        if line.startswith("child "):
            break
    child = int(lines[-1].split()[1])
    assert PASSWORD not in "".join(lines)
    assert "the password is ***" in "".join(lines)
    server.send_signal(signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        if Path(f"/proc/{child}").exists():
            os.kill(child, signal.SIGKILL)
            pytest.fail("the engine's process outlived the server")
