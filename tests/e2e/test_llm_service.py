"""A server that KServe's preset of LLMInferenceService starts: its script by bash, word for word.

``vllm`` and ``entrypoint.sh`` stand on PATH as in the image. The last test runs the image itself.
"""

# ruff: noqa: S108 (the folders of the pod)

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from tests.support.containers import Engine, Images
from tests.support.containers.run import started
from tests.support.llm_preset import Preset
from tests.support.ports import free_port
from tests.support.processes import Process, last_line
from tests.support.server import MODEL, ROOT, SMALL, START_SECONDS, engine_environment, long_prompt
from tests.support.tls import Authority, mount
from tests.support.waiting import until

CPU_BYTES = 2**28
NAMES = ("smollm2", "publishers/models/models/smollm2")
READY_SECONDS = 240  # of a container


@dataclass
class Service:
    """A server that the preset has started.

    Attributes:
        preset: the service.
        process: becomes the server.
        client: trusts the service's authority alone.
        statuses: what the probes got until the server was ready.
    """

    preset: Preset
    process: Process
    client: httpx.Client
    statuses: list[int] = field(default_factory=list)

    def is_ready(self) -> bool:
        """Ask as KServe's probes ask."""
        try:
            self.statuses.append(self.client.get("/health", timeout=1).status_code)
        except httpx.TransportError:
            return False
        return self.statuses[-1] == 200

    def complete(self, prompt: str, model: str = NAMES[0], **fields: Any) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
        answer = self.client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def offload(self) -> dict[str, Any]:
        return dict(self.client.get("/offload").json())


def environ_of(directory: Path, **variables: str) -> dict[str, str]:
    """The pod's environment. PATH has the commands as the image has them."""
    commands = directory / "bin"
    commands.mkdir(exist_ok=True)
    for name, script in (("vllm", "vllm.sh"), ("entrypoint.sh", "entrypoint.sh")):
        if not (commands / name).exists():
            (commands / name).symlink_to(ROOT / script)
    home = directory / "home"
    home.mkdir(exist_ok=True)
    return engine_environment(
        PATH=f"{commands}{os.pathsep}{os.environ['PATH']}",
        HOME=str(home),
        HF_HUB_CACHE=str(directory / "models"),
        VLLM_LOGGING_LEVEL="INFO",
        VLLM_ADDITIONAL_ARGS=" ".join(SMALL),
        **variables,
    )


@contextmanager
def running(
    directory: Path, preset: Preset, authority: Authority | None = None, *arguments: str
) -> Iterator[Service]:
    process = Process(preset.command(*arguments), directory / "log", environ_of(directory))
    scheme = "https" if preset.tls else "http"
    trusted = ssl.create_default_context(cafile=str(authority.file)) if authority else True
    client = httpx.Client(
        base_url=f"{scheme}://127.0.0.1:{preset.port}", timeout=120, verify=trusted
    )
    service = Service(preset, process, client)
    try:
        process.wait_until(service.is_ready, START_SECONDS)
        yield service
    finally:
        client.close()
        process.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def mounted(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the service's certificate, as the kubelet mounts it."""
    folder = tmp_path_factory.mktemp("kserve-tls")
    mount(folder, authority.issue("127.0.0.1"))
    return folder


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What KServe mounts for ``kvCacheOffloading.secondary``."""
    return tmp_path_factory.mktemp("kv-cache-0")


@pytest.fixture(scope="module")
def service(
    authority: Authority,
    mounted: Path,
    volume: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """With TLS and with ``kvCacheOffloading``."""
    preset = Preset(
        model_dir=str(MODEL),
        port=free_port(),
        tls=(str(mounted / "tls.crt"), str(mounted / "tls.key")),
        offloading={"cpu": CPU_BYTES, "evictionPolicy": "lru", "secondary": [str(volume)]},
    )
    with running(tmp_path_factory.mktemp("service"), preset, authority) as service:
        yield service


def test_the_preset_knows_the_version(tmp_path: Path) -> None:
    began = time.monotonic()
    shown = subprocess.run(
        ["bash", "-c", "vllm --version 2>/dev/null | tail -1 | awk '{print $NF}'"],
        capture_output=True,
        text=True,
        env=environ_of(tmp_path),
        check=True,
    ).stdout.strip()
    assert shown[:1].isdigit(), shown
    assert shown.count(".") >= 2
    assert time.monotonic() - began < 5


def test_the_probes_see_a_start_and_a_server(service: Service) -> None:
    assert service.statuses[-1] == 200
    assert set(service.statuses[:-1]) == {503}
    log = service.process.output()
    assert "selected ACCESS_LOG_ARGS='--disable-access-log-for-endpoints" in log


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models"])
def test_the_routes_are_at_the_root_and_below_the_prefix(service: Service, path: str) -> None:
    for prefix in ("", "/openai"):
        assert service.client.get(prefix + path).status_code == 200, prefix
    assert service.client.get("/v2/health/ready").status_code == 200
    assert "vllm:num_requests_waiting" in service.client.get("/metrics").text


@pytest.mark.parametrize("name", NAMES)
def test_both_names_are_served(service: Service, name: str) -> None:
    assert service.complete("Hello", model=name)["model"] == NAMES[0]  # as vLLM's own server says
    body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    for prefix in ("", "/openai"):
        answer = service.client.post(f"{prefix}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
    assert name in {each["id"] for each in service.client.get("/v1/models").json()["data"]}


def test_the_tiers_are_those_of_the_field(service: Service, volume: Path) -> None:
    shown = service.offload()
    assert shown["tiers"], shown["reason"]
    values = {each["key"]: (each["value"], each["source"]) for each in shown["configuration"]}
    for key, value, source in (
        ("max_local_cpu_size", CPU_BYTES / 2**30, "kvCacheOffloading.cpu ("),
        ("cache_policy", "LRU", "kvCacheOffloading.evictionPolicy ("),
        ("local_disk", str(volume), "kvCacheOffloading.secondary ("),
        ("max_local_disk_size", CPU_BYTES / 2**30, "default: as much as kvCacheOffloading.cpu"),
        ("drain_timeout", 40.0, "--drain-timeout"),
        ("drain_delay", 0.0, "--drain-delay"),
    ):
        found = values[key]
        assert found[0] == value, key
        assert found[1].startswith(source), found
    tiers = {each["name"]: each for each in shown["tiers"]}
    assert all(each["up"] for each in tiers.values())
    (disk,) = (each for name, each in tiers.items() if name not in ("local_cpu", "remote"))
    assert disk["capacity_bytes"] == CPU_BYTES


def test_a_prompt_goes_to_the_disk_and_comes_from_a_cache(service: Service, volume: Path) -> None:
    messages = [{"role": "user", "content": long_prompt("field")}]
    body = {"model": NAMES[0], "messages": messages, "max_tokens": 2}
    for _ in range(2):
        answer = service.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
    details = answer.json()["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= 1024
    until(lambda: any(path.is_file() for path in volume.rglob("*")), seconds=30, pause=0.2)


def test_the_doctors_neighbour_shows_the_field(service: Service, tmp_path: Path) -> None:
    """``kubectl exec … kserve-lmcache config`` beside the server, without flags."""
    environ = environ_of(tmp_path)
    (own,) = (
        line.split("=", 1)[1]
        for line in Path(f"/proc/{service.process.pid}/environ").read_text().split("\0")
        if line.startswith("PROMETHEUS_MULTIPROC_DIR=")
    )
    shown = subprocess.run(
        [environ["PYTHON"], "-m", "kserve_lmcache", "config"],
        capture_output=True,
        text=True,
        env={**environ, "PROMETHEUS_MULTIPROC_DIR": own},
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "kvCacheOffloading.cpu" in shown.stdout


def test_probes_are_not_in_the_access_log(service: Service) -> None:
    service.client.get("/health")
    service.client.get("/metrics")
    service.complete("Hello")
    log = service.process.output()
    for path in ("/health", "/metrics", "/ping"):
        assert f"GET {path} " not in log


def serial(port: int) -> int:
    shown = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(shown.encode()).serial_number


def test_a_renewed_certificate_is_shown_without_a_restart(
    service: Service, authority: Authority, mounted: Path
) -> None:
    before = serial(service.preset.port)
    mount(mounted, authority.issue("127.0.0.1"))
    until(lambda: serial(service.preset.port) != before, seconds=30, pause=0.2)
    service.client.close()
    trusted = ssl.create_default_context(cafile=str(authority.file))
    service.client = httpx.Client(
        base_url=f"https://127.0.0.1:{service.preset.port}", timeout=120, verify=trusted
    )
    assert service.complete("Hello")["choices"]


class Answer:
    """An answer that is streamed while something else happens."""

    def __init__(self, service: Service, tokens: int) -> None:
        self.lines: list[str] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(service, tokens), daemon=True)
        self._thread.start()

    def _read(self, service: Service, tokens: int) -> None:
        body = {
            "model": NAMES[0],
            "prompt": "Once upon a time",
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            with service.client.stream("POST", "/v1/completions", json=body) as answer:
                self.lines += [line for line in answer.iter_lines() if line]
        except httpx.HTTPError as error:
            self.error = error

    def end(self, seconds: float) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive()


def active(service: Service) -> float:
    """The requests that the engine runs."""
    lines = service.client.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running")
    )


@pytest.mark.slow
def test_sigterm_lets_an_answer_end_and_the_defaults_hold_without_the_field(
    tmp_path: Path,
) -> None:
    preset = Preset(model_dir=str(MODEL), port=free_port())
    with running(tmp_path, preset) as service:
        values = {each["key"]: each["source"] for each in service.offload()["configuration"]}
        assert values["max_local_cpu_size"].startswith("default")
        assert "local_disk" not in values
        answer = Answer(service, tokens=100)
        until(lambda: active(service) > 0, seconds=30, pause=0.05)
        service.process.signal(signal.SIGTERM)
        exit_code = service.process.wait(40 + 20)
        answer.end(20)
    assert answer.error is None
    assert answer.lines[-1] == "data: [DONE]"
    assert json.loads(answer.lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    assert exit_code == 0


@pytest.mark.parametrize(
    ("offloading", "arguments", "reason"),
    [
        ({"cpu": CPU_BYTES, "evictionPolicy": "arc"}, (), "cache_policy is 'ARC'"),
        (
            {"cpu": CPU_BYTES, "secondary": ["/mnt/kv-cache-0", "/mnt/kv-cache-1"]},
            (),
            "has 2 tiers, but this server has one disk",
        ),
        (None, ("--headless",), "--headless has no effect"),
    ],
)
def test_what_is_not_honoured_ends_the_server_by_name(
    tmp_path: Path, offloading: Mapping[str, Any] | None, arguments: tuple[str, ...], reason: str
) -> None:
    preset = Preset(model_dir=str(MODEL), port=free_port(), offloading=offloading)
    process = Process(preset.command(*arguments), tmp_path / "log", environ_of(tmp_path))
    try:
        assert process.wait(START_SECONDS) == 2, process.tail()
    finally:
        process.stop()
    assert reason in last_line(process)


@pytest.mark.container
def test_the_image_is_a_drop_in(engine: Engine, container_images: Images, tmp_path: Path) -> None:
    """The preset's script in the image, with the folders and the environment of the pod."""
    home = tmp_path / "home"  # an emptyDir, to which any user may write
    home.mkdir()
    home.chmod(0o777)
    preset = Preset(offloading={"cpu": CPU_BYTES, "evictionPolicy": "lru"})
    command = preset.command()
    words = (
        *("--entrypoint", command[0], "--memory", "5g", "--shm-size", "1g"),
        *("--tmpfs", "/tmp:exec", "--tmpfs", "/models", "--volume", f"{home}:/home"),
        *("--volume", f"{MODEL.resolve()}:/mnt/models:ro"),
        *("--env", "HOME=/home", "--env", "HF_HUB_CACHE=/models"),
        *("--env", "VLLM_LOGGING_LEVEL=INFO"),
        *("--env", f"VLLM_ADDITIONAL_ARGS={' '.join(SMALL)}"),
        container_images.built,
        *command[1:],
    )
    with started(engine, *words) as container:
        url = f"http://{container.address}:{preset.port}"

        def is_ready() -> bool:
            try:
                return httpx.get(f"{url}/health", timeout=1).status_code == 200
            except httpx.TransportError:
                return False

        container.wait_until(is_ready, READY_SECONDS)
        version = container.execute("vllm", "--version").split()[-1]
        assert version[:1].isdigit()
        assert container.execute("sh", "-c", "command -v vllm").strip() == (
            "/opt/kserve-lmcache/bin/vllm"
        )
        assert container.execute("test", "-x", "/opt/venv/bin/vllm") == ""
        for name in NAMES:
            body = {"model": name, "prompt": "Hello", "max_tokens": 2}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
        shown = httpx.get(f"{url}/offload", timeout=30).json()["configuration"]
        sources = {each["key"]: each["source"] for each in shown}
        assert sources["max_local_cpu_size"].startswith("kvCacheOffloading.cpu")
        code, _ = container.stop()
        assert (code, container.state["OOMKilled"]) == (0, False)
