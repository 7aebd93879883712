"""The image at work: the documentation's lines word for word, and the ways people run containers.

The words ``--detach --name NAME`` are put after ``docker run``. Nothing is downloaded: the model is
in a layer on top of the image. The tests run in their order: one uses what the last has compiled.
"""

# ruff: noqa: S108 (the folders of the containers)

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster.images import ROOT
from tests.support.containers import Container, Engine, Images
from tests.support.containers.images import on_kserve
from tests.support.containers.run import started, words_of
from tests.support.server import MODEL as MODEL_FILES
from tests.support.server import SMALL, Server, cached_tokens, long_prompt

pytestmark = pytest.mark.container

# In bfloat16 and compiled: 187 s on two idle cores without AVX-512. Another test runs beside it.
READY_SECONDS = 480
STOP_SECONDS = 10  # after which docker stop kills
VOLUME = "kserve-lmcache"
RUN = re.compile(r"^docker run (?:.*\\\n)*.*$", re.MULTILINE)
PAGES = (ROOT / "README.md", ROOT / "docs/getting-started/docker.md")
MODEL = ("--model_id=HuggingFaceTB/SmolLM2-135M-Instruct", "--model_name=smollm2")
TMP = ("--read-only", "--tmpfs", "/tmp:exec")
SHM = ("--shm-size", "1g")
# The most memory that was used: cgroup v1, v2.
PEAKS = (
    "/sys/fs/cgroup/memory/memory.max_usage_in_bytes",
    "/sys/fs/cgroup/memory.peak",
)
ASK = (
    "import urllib.request as u; print(u.urlopen('http://localhost:8080/offload').read().decode())"
)
LONGEST_LOG = 60  # lines until ready


def line() -> str:
    """The line for a machine without a GPU, which both pages have."""
    (found,) = {
        line for page in PAGES for line in RUN.findall(page.read_text()) if "--gpus" not in line
    }
    return found


class Endpoint(Server):
    """A server in a container, at the address where its port is."""

    def __init__(self, container: Container, host: str) -> None:
        super().__init__(8080, "smollm2", None, host)  # type: ignore[arg-type]
        self.container = container

    def ready(self) -> float:
        return self.container.wait_until(self.is_ready, READY_SECONDS)


def port_is_free(number: int) -> bool:
    with contextlib.closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return listener.connect_ex(("127.0.0.1", number)) != 0


@pytest.fixture(scope="module")
def _volume(engine: Engine) -> Iterator[None]:
    """The volume that the documentation names, which must not be somebody's own."""
    assert engine.docker("volume", "inspect", VOLUME, check=False).returncode, f"remove {VOLUME}"
    yield
    engine.docker("volume", "rm", VOLUME, check=False)


@pytest.mark.usefixtures("_volume")
def test_the_line_of_the_documentation_serves(engine: Engine, container_images: Images) -> None:
    assert all(line() in page.read_text() for page in PAGES)
    words = words_of(line())
    assert container_images.documented in words
    assert port_is_free(8080), "another program has the port of the documentation's line"
    with started(engine, *words) as container:
        server = Endpoint(container, "127.0.0.1")
        print(f"ready after {server.ready():.0f} s")
        log = container.logs()
        assert "\x1b" not in log  # a log is no terminal
        assert len(log.splitlines()) < LONGEST_LOG, log
        prompt = long_prompt("line")
        assert cached_tokens(server.chat(prompt)) == 0
        assert cached_tokens(server.chat(prompt)) >= 1024
        container.wait_until(lambda: container.state["Health"]["Status"] == "healthy", 40)
        assert container.owners() == {"1000"}
        peak = container.execute("sh", "-c", f"cat {' '.join(PEAKS)} 2>/dev/null || true")
        print(f"memory: {int((peak or '0').split()[0]) / 2**30:.1f} GiB at most")
        container.wait_until(lambda: "Compiled code is kept" in container.logs(), 30)
        code, seconds = container.stop()
        print(f"stopped in {seconds:.1f} s")
        assert (code, container.state["OOMKilled"]) == (0, False)
        assert seconds < STOP_SECONDS


@pytest.mark.slow
@pytest.mark.usefixtures("_volume")
def test_without_a_network_and_with_compiled_code_of_another_container(
    engine: Engine, container_images: Images
) -> None:
    """After the test above: the volume holds the code of the same server."""
    words = words_of(line())
    published = words.index("-p")
    words = [*words[:published], *words[published + 2 :]]
    with started(engine, "--network", "none", *words) as container:
        seconds = container.wait_until(
            lambda: container.state["Health"]["Status"] == "healthy", READY_SECONDS
        )
        print(f"healthy after {seconds:.0f} s with compiled code")
        assert re.search(r"\d+ files of compiled code come from", container.logs())
        assert json.loads(container.execute("python3", "-c", ASK))["state"]
        container.engine.docker("kill", "--signal", "TERM", container.name)
        assert container.wait(2 * STOP_SECONDS) == 0


@pytest.mark.slow
def test_two_containers_share_through_a_redis(engine: Engine, container_images: Images) -> None:
    """One as any user (OpenShift), one with a CPU and a half."""
    network = f"{VOLUME}-tests"
    engine.docker("network", "create", network)
    common = ("--network", network, *TMP, *SHM, "--memory", "5g")
    command = (container_images.documented, *MODEL, *SMALL)
    url = ("-e", "LMCACHE_REMOTE_URL=redis://store:6379")
    try:
        with (
            started(
                engine, "--network", network, "--network-alias", "store", container_images.redis
            ),
            started(engine, *common, "--user", "1000660000:0", *url, *command) as one,
            started(engine, *common, "--cpus", "1.5", *url, *command) as other,
        ):
            first, second = Endpoint(one, one.address), Endpoint(other, other.address)
            first.ready()
            second.ready()
            assert "quota" in other.logs()  # it computes on the cores that it may use
            prompt = long_prompt("shared")
            assert cached_tokens(first.chat(prompt)) == 0
            one.wait_until(lambda: cached_tokens(second.chat(prompt)) >= 1024, 20)
            assert one.owners() == {"1000660000"}
    finally:
        engine.docker("network", "rm", network, check=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--memory", "1g", *TMP), "the server needs 2.2 GiB"),
        (TMP, "/dev/shm is full: 64 MiB are free"),  # Docker's default
        ((*SHM, "--read-only", "--tmpfs", "/tmp"), "/tmp does not allow the execution of files"),
        (("--read-only",), "/tmp cannot be written: Read-only file system"),
        (("--read-only", "--tmpfs", "/tmp:exec,size=1m"), "/tmp is full"),
    ],
    ids=["memory", "shared memory", "noexec", "read-only", "full"],
)
def test_a_container_that_cannot_serve_says_why(
    options: tuple[str, ...], expected: str, engine: Engine, container_images: Images
) -> None:
    words = ("--network", "none", *options, container_images.documented, *MODEL)
    with started(engine, *words) as container:
        assert container.wait(90) in (1, 2), container.logs()
        assert expected in container.logs().splitlines()[-1], container.logs()
        assert container.state["OOMKilled"] is False


def test_the_doctor_runs_in_the_image(engine: Engine, container_images: Images) -> None:
    words = (
        "--entrypoint",
        "kserve-lmcache",
        *TMP,
        *SHM,
        container_images.documented,
        "doctor",
        "--json",
    )
    with started(engine, *words) as container:
        container.wait(90)
        findings = {each["name"]: each for each in json.loads(container.logs())["findings"]}
        assert findings["directories"]["status"] == "ok"
        assert findings["versions"]["status"] == "ok"


def test_the_package_serves_on_an_image_that_is_made_as_kserves(
    engine: Engine, container_images: Images, tmp_path: Path
) -> None:
    """As KServe's controller starts it: the model is in /mnt/models."""
    model = ("-v", f"{MODEL_FILES}:/mnt/models:ro")
    with on_kserve(engine, tmp_path, container_images) as image:
        words = (*TMP, *SHM, "--memory", "5g", *model, image, "--model_name=smollm2", *SMALL)
        with started(engine, *words) as container:
            server = Endpoint(container, container.address)
            print(f"on KServe's stand-in: ready after {server.ready():.0f} s")
            prompt = long_prompt("kserve")
            assert cached_tokens(server.chat(prompt)) == 0
            assert cached_tokens(server.chat(prompt)) >= 1024
            assert container.owners() == {"1000"}
            found = container.execute("sh", "-c", "command -v vllm; command -v kserve-lmcache")
            assert found.split() == [
                "/opt/kserve-lmcache/bin/vllm",
                "/kserve-workspace/prod_venv/bin/kserve-lmcache",
            ]
