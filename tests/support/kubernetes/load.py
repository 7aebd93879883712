"""Requests from inside of the cluster, through the Service, while a test does something to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.kubernetes.api import wait
from tests.support.kubernetes.namespace import Namespace

POD = "load"
START_SECONDS = 300.0
# Runs in our image with Python's library alone. Each connection is a new one, as kube-proxy chooses
# a pod for each. The last line before the end is the sum.
SCRIPT = """
import json, pathlib, sys, threading, time, urllib.request
url, model, workers, words = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
stop, lock = pathlib.Path("/tmp/stop"), threading.Lock()
count, failures = {"sent": 0}, []

def send(number):
    turn = 0
    while not stop.exists():
        turn += 1
        text = f"{number} {turn} " + "word " * words
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        reason = ""
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                json.load(answer)["choices"][0]
        except Exception as error:
            reason = f"{time.strftime('%H:%M:%S')} {error!r}"
        with lock:
            count["sent"] += 1
            if reason:
                failures.append(reason)

threads = [threading.Thread(target=send, args=(number,)) for number in range(workers)]
[thread.start() for thread in threads]
while any(thread.is_alive() for thread in threads):
    time.sleep(1)
    with lock:
        print(json.dumps({**count, "failed": len(failures), "failures": failures[:20]}), flush=True)
print("END", flush=True)
"""


@dataclass
class Load:
    """Requests that run, and their sum.

    Attributes:
        sent: how many were answered or failed.
        failures: why some failed, the first twenty.
    """

    namespace: Namespace
    sent: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()

    @classmethod
    @contextmanager
    def on(
        cls, namespace: Namespace, service: str, model: str, workers: int = 4, words: int = 20
    ) -> Iterator[Load]:
        """Send requests until the end of the block; the sum is there after it."""
        url = f"http://{service}-predictor.{namespace.name}.svc/openai/v1/chat/completions"
        load = cls(namespace)
        arguments = ["-c", SCRIPT, url, model, str(workers), str(words)]
        namespace.api.create("Pod", namespace.name, pod_of(namespace.image, arguments))
        try:
            load.wait_for_more(seconds=START_SECONDS)
            yield load
            load._end()
        finally:
            namespace.api.delete("Pod", namespace.name, POD)
            wait(lambda: namespace.api.get("Pod", namespace.name, POD) is None, 120)

    def wait_for_more(self, number: int = 1, seconds: float = 300.0) -> None:
        """Wait until so many more requests have been answered or have failed."""
        goal = self.sent + number

        def sent() -> bool:
            self._read()
            return self.sent >= goal

        wait(sent, seconds, lambda: f"{self.sent} requests of {goal}; {self.failures}", pause=1)

    def _end(self) -> None:
        self.namespace.in_container(POD, "touch", "/tmp/stop", container=POD)  # noqa: S108
        log: list[str] = []

        def ended() -> bool:
            log[:] = self._log()
            return bool(log) and log[-1] == "END"

        wait(ended, 180, lambda: str(log[-1:]), pause=1)
        self._read()

    def _log(self) -> list[str]:
        pod = self.namespace.api.get("Pod", self.namespace.name, POD) or {}
        if pod.get("status", {}).get("phase") == "Pending":
            return []
        return self.namespace.api.log(self.namespace.name, POD, POD).splitlines()

    def _read(self) -> None:
        sums = [line for line in self._log() if line.startswith("{")]
        if sums:
            found = json.loads(sums[-1])
            self.sent, self.failed = found["sent"], found["failed"]
            self.failures = tuple(found["failures"])


def pod_of(image: str, arguments: list[str], labels: dict[str, str] | None = None) -> Any:
    """A pod of our image that runs Python, under the restricted pod security standard."""
    container = {
        "name": POD,
        "image": image,
        "command": ["python3"],
        "args": arguments,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        # A caller that the policies let in.
        "metadata": {"name": POD, "labels": labels or {"kserve-lmcache/api-client": "true"}},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
