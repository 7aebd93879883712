"""The documentation's line for a laptop, without Docker.

The test keeps the line's command, user, environment and memory limit.

The image's files are this machine's, and the network is the container's own, whose port is asked at
its address; /dev/shm is this machine's. No line for a GPU is started.
"""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from tests.support.cluster import Cluster, images
from tests.support.cluster.deployment import SMALL, download, hub_cache, wait_until_ready
from tests.support.cluster.docker import DockerRun, parse
from tests.support.server import MODEL, ROOT, Server, cached_tokens, long_prompt

PAGE = (ROOT / "docs" / "getting-started" / "docker.md").read_text()
RUN = re.compile(r"^docker run (?:.*\\\n)*.*$", re.MULTILINE)
LINES = RUN.findall(PAGE)


def _of_cpu() -> DockerRun:
    return next(parse(line) for line in LINES if "--gpus" not in line)


def test_every_line_is_understood_and_names_an_image_that_is_built() -> None:
    for line in LINES:
        assert f"-t {parse(line).image}" in PAGE
    readme = RUN.findall((ROOT / "README.md").read_text())
    assert readme
    assert set(readme) <= set(LINES)


@pytest.mark.cluster
def test_the_line_answers_from_its_cache(tmp_path: Path) -> None:
    run = _of_cpu()
    assert run.memory is not None
    hub_cache(tmp_path, "HuggingFaceTB/SmolLM2-135M-Instruct", MODEL)
    with Cluster.up(tmp_path, [], {}) as cluster:
        pod = cluster.pod("laptop", run.spec)
        pod.container("server")["args"] += SMALL
        download(cluster, pod, "server", "tmpfs-0")
        running = cluster.start(pod, "server", images.ours(), run.memory.upper() + "i")
        endpoint = Server(8080, "smollm2", running.process, pod.address)
        wait_until_ready(endpoint)
        first = psutil.Process(running.process.inner.pid)
        for process in (first, *first.children(recursive=True)):
            assert process.uids().real == images.user()
        prompt = long_prompt("laptop")
        assert cached_tokens(endpoint.chat(prompt)) == 0
        assert cached_tokens(endpoint.chat(prompt)) >= 1024
