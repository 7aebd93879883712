"""The logic of ``make test-cluster`` without a cluster: waiting, assertions, cleaning up.

A stand-in plays recorded answers; what a real cluster does, the suite itself finds out.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import cached_tokens, chat, service, small_store
from tests.cluster.test_policies import _ends_well
from tests.packaging.manifests import load as documents_of
from tests.packaging.manifests import render
from tests.packaging.pods import all_containers
from tests.support.kubernetes import Api, ApiError, Load, Namespace
from tests.support.kubernetes import api as api_module
from tests.support.kubernetes import namespace as namespace_module
from tests.support.kubernetes.api import PATHS, condition, wait
from tests.support.kubernetes.load import POD, SCRIPT, pod_of
from tests.support.recorded_cluster import GONE, Answer, RecordedCluster
from tests.support.waiting import until

NAME, IMAGE = "models", "registry.example:5000/ours:1.2-cpu"
PODS, SERVICES = (PATHS[kind].format(NAME) for kind in ("Pod", "InferenceService"))
DONE: Answer = (200, {"kind": "Status", "status": "Success"})


@pytest.fixture
def recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RecordedCluster, Api]]:
    monkeypatch.setattr(api_module.time, "sleep", lambda seconds: None)
    with RecordedCluster.up(tmp_path) as made:
        yield made


@pytest.fixture
def cluster(recorded: tuple[RecordedCluster, Api]) -> RecordedCluster:
    return recorded[0]


@pytest.fixture
def namespace(recorded: tuple[RecordedCluster, Api]) -> Namespace:
    return Namespace(recorded[1], NAME, IMAGE)


def _pod(name: str, ready: bool = True, going: bool = False, restarts: int = 0) -> Any:
    state = {"type": "Ready", "status": str(ready)}
    metadata: dict[str, Any] = {"name": name}
    if going:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = {"conditions": [state], "containerStatuses": [{"restartCount": restarts}]}
    return {"kind": "Pod", "metadata": metadata, "status": status}


def _list(*items: Any) -> Answer:
    return 200, {"kind": "List", "items": list(items)}


def _service(ready: str) -> Answer:
    conditions = [{"type": "Ready", "status": ready}]
    return 200, {"metadata": {"name": "llm"}, "status": {"conditions": conditions}}


def test_an_object_that_is_absent_is_none(cluster: RecordedCluster, namespace: Namespace) -> None:
    cluster.plays("GET", f"{PODS}/a", GONE)
    assert namespace.api.get("Pod", NAME, "a") is None
    with pytest.raises(ApiError, match="nothing was recorded") as refused:
        namespace.api.get("Pod", NAME, "b")
    assert refused.value.status == 500
    cluster.plays("DELETE", f"{PODS}/a", GONE)
    namespace.api.delete("Pod", NAME, "a")


def test_a_command_that_fails_says_so(cluster: RecordedCluster, namespace: Namespace) -> None:
    cluster.kubectl_answers(("get pods", 0, "none"), ("apply", 1, "error: no matches for kind"))
    assert namespace.api.kubectl("get", "pods") == "none\n"
    with pytest.raises(ApiError, match=r"kubectl apply -f x: error: no matches for kind"):
        namespace.api.kubectl("apply", "-f", "x")
    assert cluster.commands()[0][0] == f"--kubeconfig={cluster.folder}/kubeconfig"


def test_ready_is_what_kserve_and_all_replicas_say(
    cluster: RecordedCluster, namespace: Namespace
) -> None:
    cluster.plays("GET", f"{SERVICES}/llm", _service("Unknown"), _service("True"))
    cluster.plays(
        "GET",
        PODS,
        _list(_pod("a"), _pod("b")),  # KServe does not say so yet
        _list(_pod("a")),
        _list(_pod("a"), _pod("b", ready=False)),
        _list(_pod("a"), _pod("b"), _pod("old", going=True)),
    )
    assert namespace.wait_until_ready("llm", replicas=2) == ["a", "b"]
    assert len(cluster.requests("GET")) == 8
    assert condition(None, "Ready") == ""


def test_a_wait_that_ends_in_vain_shows_what_a_person_would_look_at(
    cluster: RecordedCluster, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace_module, "READY_SECONDS", 0.2)
    cluster.plays("GET", f"{SERVICES}/llm", _service("False"))
    cluster.plays("GET", PODS, _list())
    cluster.kubectl_answers(("describe pods", 0, "Message: 1 problem in the configuration"))
    with pytest.raises(AssertionError, match="Message: 1 problem in the configuration"):
        namespace.wait_until_ready("llm")
    assert "--selector=serving.kserve.io/inferenceservice=llm" in cluster.commands()[-1]


def test_a_rollout_is_over_when_no_old_pod_is_left(
    cluster: RecordedCluster, namespace: Namespace
) -> None:
    states = (
        _list(_pod("a"), _pod("b")),
        _list(_pod("a"), _pod("b"), _pod("c")),
        _list(_pod("b"), _pod("c")),
        _list(_pod("c"), _pod("d"), _pod("b", going=True)),
        _list(_pod("c"), _pod("d", ready=False)),
        _list(_pod("c"), _pod("d")),
    )
    # Asked twice each time: which are ready, and which are there.
    cluster.plays("GET", PODS, *(state for each in states for state in (each, each)))
    assert namespace.wait_for_new_pods("llm", ["a", "b"]) == ["c", "d"]


def test_restarts_are_counted(cluster: RecordedCluster, namespace: Namespace) -> None:
    cluster.plays("GET", PODS, _list(_pod("a", restarts=2), _pod("b", restarts=1)))
    assert namespace.restarts("llm") == 3


NAMESPACES = PATHS["Namespace"]


def _expect_a_namespace(cluster: RecordedCluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """Record the answers for a namespace whose name is known; returns it."""
    monkeypatch.setattr(namespace_module.uuid, "uuid4", lambda: type("U", (), {"hex": "0" * 32}))
    name = f"{namespace_module.PREFIX}00000000"
    services = PATHS["InferenceService"].format(name)
    left = _list({"metadata": {"name": "llm"}})
    cluster.plays("POST", NAMESPACES, (201, {}))
    cluster.plays("GET", services, left, left, left, _list())  # its finalizer takes a while
    cluster.plays("DELETE", f"{services}/llm", DONE)
    cluster.plays("DELETE", f"{NAMESPACES}/{name}", DONE)
    terminating = (200, {"status": {"phase": "Terminating"}})
    cluster.plays("GET", f"{NAMESPACES}/{name}", terminating, terminating, GONE)
    return name


@pytest.mark.parametrize("fails", [False, True])
def test_a_namespace_is_gone_at_the_end_whatever_happens(
    cluster: RecordedCluster,
    recorded: tuple[RecordedCluster, Api],
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    name = _expect_a_namespace(cluster, monkeypatch)
    try:
        with Namespace.made(recorded[1], IMAGE, {"enforce": "restricted"}) as made:
            assert made.name == name
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    created = next(body for method, _, body in cluster.asked if method == "POST")
    assert created["metadata"]["labels"] == {"enforce": "restricted"}
    # The service first: only KServe's controller can take its finalizer away.
    services = PATHS["InferenceService"].format(name)
    assert cluster.requests("DELETE") == [f"{services}/llm", f"{NAMESPACES}/{name}"]
    assert cluster.requests("GET")[-1] == f"{NAMESPACES}/{name}"


def test_what_is_left_is_a_failure(
    cluster: RecordedCluster,
    recorded: tuple[RecordedCluster, Api],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = _expect_a_namespace(cluster, monkeypatch)
    monkeypatch.setattr(namespace_module, "GONE_SECONDS", 0.2)
    stuck = (200, {"status": {"conditions": [{"message": "inferenceservices remain"}]}})
    cluster.plays("GET", f"{NAMESPACES}/{name}", stuck)
    with (
        pytest.raises(AssertionError, match="inferenceservices remain"),
        Namespace.made(recorded[1], IMAGE),
    ):
        pass


def test_what_is_applied_is_of_the_namespace_and_has_its_image(
    cluster: RecordedCluster, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cluster.conftest.option", lambda name: "hf://a/b")
    folder = tmp_path / "applied"
    folder.mkdir()
    made = namespace._kustomization(
        folder, [service(replicas=2)], ["redis", "preflight-cpu"], [small_store()]
    )
    (folder / "kustomization.yaml").write_text(json.dumps(made))
    applied = documents_of(render(folder))
    kinds = {document["kind"] for document in applied}
    assert "ServingRuntime" in kinds
    assert not {kind for kind in kinds if kind.startswith("Cluster")} | ({"Namespace"} & kinds)
    images = {each.spec["image"] for each in all_containers(applied) if "image" in each.spec}
    assert images == {IMAGE, "redis:7.4-alpine"}
    (of_kserve,) = (each for each in applied if each["kind"] == "InferenceService")
    predictor = of_kserve["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["model"]["storageUri"]) == (2, "hf://a/b")
    cluster.kubectl_answers(("apply --kustomize", 0, "applied"))
    namespace.apply()
    assert cluster.commands()[-1][1:4] == ["apply", "--namespace", NAME]


def test_an_image_by_digest(namespace: Namespace, tmp_path: Path) -> None:
    by_digest = Namespace(namespace.api, NAME, "registry.example/ours@sha256:" + "0" * 64)
    images = by_digest._kustomization(tmp_path, [], [], [])["images"]
    assert {each["newName"] for each in images} == {"registry.example/ours"}
    assert {each["digest"] for each in images} == {"sha256:" + "0" * 64}


def _line(sent: int, *failures: str) -> str:
    return json.dumps({"sent": sent, "failed": len(failures), "failures": failures})


def _expect_load(cluster: RecordedCluster, *logs: str) -> None:
    path = f"{PODS}/{POD}"
    running = (200, {"status": {"phase": "Running"}})
    cluster.plays("POST", PODS, (201, {}))
    cluster.plays("DELETE", path, DONE)
    cluster.plays("GET", f"{path}/log", *((200, log) for log in logs))
    pending = (200, {"status": {"phase": "Pending"}})
    cluster.plays("GET", path, pending, *[running] * (len(logs) + 1), GONE)
    cluster.kubectl_answers(("exec touch /tmp/stop", 0, ""))


def test_the_sum_of_the_load_is_the_last_line(
    cluster: RecordedCluster, namespace: Namespace
) -> None:
    first, later = _line(2), f"{_line(2)}\n{_line(7, '12:00:00 refused')}"
    _expect_load(cluster, "", first, later, f"{later}\n{_line(9, '12:00:00 refused')}\nEND")
    with Load.on(namespace, "llm", "llm") as load:
        assert (load.sent, load.failed) == (2, 0)
        load.wait_for_more(5)
    assert (load.sent, load.failed, load.failures) == (9, 1, ("12:00:00 refused",))
    pod = next(body for method, path, body in cluster.asked if (method, path) == ("POST", PODS))
    (container,) = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert f"http://llm-predictor.{NAME}.svc/openai/v1/chat/completions" in container["args"]
    assert cluster.requests("DELETE") == [f"{PODS}/{POD}"]


def test_the_load_is_gone_after_a_failure(cluster: RecordedCluster, namespace: Namespace) -> None:
    _expect_load(cluster, _line(2))
    with pytest.raises(ZeroDivisionError), Load.on(namespace, "llm", "llm"):
        raise ZeroDivisionError
    assert cluster.requests("DELETE") == [f"{PODS}/{POD}"]
    assert cluster.commands() == []


class _Flaky(BaseHTTPRequestHandler):
    """Answers, and cuts every third connection."""

    numbers = itertools.count(1)
    count = 0

    def do_POST(self) -> None:
        number = next(self.numbers)
        _Flaky.count = max(_Flaky.count, number)
        self.rfile.read(int(self.headers["Content-Length"]))
        if number % 3 == 0:
            self.close_connection = True
            self.connection.close()
            return
        text = json.dumps({"choices": [{}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the connection that was cut
            return


def test_the_load_counts_every_request_and_every_failure(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Flaky)
    server.handle_error = lambda request, address: None
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    script = SCRIPT.replace("/tmp/stop", str(stop))  # noqa: S108
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    command = [sys.executable, "-c", script, url, "llm", "2", "5"]
    sender = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: _Flaky.count > 30, seconds=30)
        stop.touch()
        output, _ = sender.communicate(timeout=30)
    finally:
        sender.kill()
        server.shutdown()
        server.server_close()
    *_, total, end = output.splitlines()
    found = json.loads(total)
    assert end == "END"
    assert found["sent"] > 30
    assert (found["sent"], found["failed"]) == (_Flaky.count, _Flaky.count // 3)
    assert len(found["failures"]) == min(20, found["failed"])
    assert re.match(r"\d\d:\d\d:\d\d ", found["failures"][0])


@pytest.mark.parametrize(("phase", "well"), [("Succeeded", True), ("Failed", False)])
def test_a_pod_that_tries_a_connection(
    cluster: RecordedCluster, namespace: Namespace, phase: str, well: bool
) -> None:
    path = f"{PODS}/{POD}"
    cluster.plays("POST", PODS, (201, {}))
    states = [(200, {"status": {"phase": each}}) for each in ("Pending", "Running", phase)]
    cluster.plays("GET", path, *states, GONE)
    cluster.plays("DELETE", path, DONE)
    assert _ends_well(namespace, pod_of(IMAGE, ["-c", "pass"])) is well
    assert cluster.requests("DELETE") == [path]


def test_one_replica_is_asked_through_the_api_server(
    cluster: RecordedCluster, namespace: Namespace
) -> None:
    usage = {"prompt_tokens": 1830, "prompt_tokens_details": {"cached_tokens": 1792}}
    path = f"{PODS}/http:a:8080/proxy/openai/v1/chat/completions"
    cluster.plays("POST", path, (200, {"usage": usage}))
    assert cached_tokens(chat(namespace, "a", "Hello")) == 1792
    assert cached_tokens({"usage": {"prompt_tokens_details": None}}) == 0


def test_waiting_gives_the_answer_or_says_how_things_stand() -> None:
    answers = iter(("", [], "yes"))
    assert wait(lambda: next(answers), 5, pause=0) == "yes"
    with pytest.raises(AssertionError, match=r"in 0\.1 s: still so"):
        wait(lambda: False, 0.1, lambda: "still so", pause=0)
