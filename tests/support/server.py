"""The real server process, started as the image starts it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from kserve_lmcache.config.settings import IN_PROCESS
from tests.support.deprecations import DEPRECATIONS_ARE_ERRORS, deprecations
from tests.support.options import option
from tests.support.ports import free_port
from tests.support.processes import Process, is_healthy

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
START_SECONDS = 180.0
MOST_LINES = 40  # of the log until the server is ready, every process included

# The sizes keep two servers on a small machine; compiling would take longer than the tests.
SMALL = (
    "--max-model-len=4096",
    "--kv-cache-memory-bytes=400M",
    "--enforce-eager",
    "--dtype=float32",  # a CPU without AVX-512 takes five times as long in bfloat16
)
# No balancer has to take these servers out, so a test need not wait for one.
AT_ONCE = "--drain-delay=0"
_METRICS = tempfile.TemporaryDirectory(prefix="kserve-lmcache-test-")


def engine_environment(**variables: str) -> dict[str, str]:
    """This process's environment without any setting of the product, plus ``variables``.

    A use of what vLLM is about to remove is an error in the processes of this environment. The
    commands of this environment see its servers, and no others.
    """
    ours = ("LMCACHE_", "VLLM_", "KSERVE_", "PYTHONHASHSEED", "PROMETHEUS_MULTIPROC_DIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    strict = {"PYTHONWARNINGS": DEPRECATIONS_ARE_ERRORS}
    if delay := option("--load-delay"):
        strict["FAULT_INJECTOR_LOAD_DELAY"] = str(delay)
        kept["PYTHONPATH"] = with_fault_injector(kept)
    if (mode := option("--mode")) != IN_PROCESS:
        kept["LMCACHE_MODE"] = mode
    metrics = {"PROMETHEUS_MULTIPROC_DIR": tempfile.mkdtemp(dir=_METRICS.name)}
    return {**kept, **strict, **metrics, "PYTHON": sys.executable, **variables}


def with_fault_injector(environ: Mapping[str, str]) -> str:
    """A ``PYTHONPATH`` that has :mod:`tests.support.fault_injector` as well."""
    injector = str(ROOT / "tests" / "support" / "fault_injector")
    return os.pathsep.join(filter(None, [injector, environ.get("PYTHONPATH")]))


@dataclass
class Server:
    """A running server."""

    port: int
    name: str
    process: Process
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/openai/v1"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.openai_url, api_key="none", timeout=120, max_retries=0)

    def chat(self, prompt: str, **parameters: Any) -> openai.types.chat.ChatCompletion:
        """One deterministic answer to a user's message."""
        defaults: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "seed": 0}
        return self.client().chat.completions.create(
            model=self.name,
            messages=[{"role": "user", "content": prompt}],
            **{**defaults, **parameters},
        )

    def is_ready(self) -> bool:
        return is_healthy(f"{self.url}/v2/health/ready")


def start(
    log: Path,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    name: str = "smollm2",
    model: Sequence[str] = (f"--model_id={MODEL}",),
    prefix: Sequence[str] = (),
    sizes: Sequence[str] = SMALL,
) -> Server:
    """Start a server through ``entrypoint.sh``; it is not ready yet.

    Args:
        log: where its output goes.
        arguments: more flags.
        environ: its whole environment.
        name: of the model.
        model: the flags of the model.
        prefix: what stands before the command, for example for a memory limit.
        sizes: the flags that keep it small; none for its own defaults.
    """
    port = free_port()
    command = [
        *prefix,
        str(ROOT / "entrypoint.sh"),
        *model,
        f"--model_name={name}",
        *sizes,
        AT_ONCE,
    ]
    process = Process(
        [*command, f"--http_port={port}", *arguments], log, environ or engine_environment()
    )
    return Server(port, name, process)


@contextmanager
def running(log: Path, *arguments: str, **options: Any) -> Iterator[Server]:
    """A server that is ready."""
    server = start(log, *arguments, **options)
    try:
        server.process.wait_until(server.is_ready, START_SECONDS)
        yield server
        assert not (found := deprecations(server.process.output())), found
    finally:
        server.process.stop()


def cached_tokens(answer: openai.types.chat.ChatCompletion) -> int:
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def long_prompt(seed: str, words: int = 900) -> str:
    """A prompt of more than 1,000 tokens that shares no prefix with that of another seed."""
    return " ".join(f"{seed}{number % 37} item {number}." for number in range(words // 3))
