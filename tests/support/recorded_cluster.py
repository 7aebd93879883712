"""A stand-in for a cluster that plays recorded answers: an API server, and a kubectl.

It knows nothing of Kubernetes. Each request gets the next of the answers that were recorded for it,
and the last of them for ever.
"""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.support.kubernetes import Api

# A status, and a document or a text.
Answer = tuple[int, Any]
GONE: Answer = (404, {"kind": "Status", "reason": "NotFound"})
_KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "kubectl.jsonl").open("a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
for words, code, text in json.loads((folder / "kubectl.json").read_text()):
    if set(words) <= set(sys.argv[1:]):
        print(text, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
sys.exit(f"nothing was recorded for {{sys.argv[1:]}}")
"""


@dataclass
class RecordedCluster:
    """What it answers, and what it was asked.

    Attributes:
        answers: by method and path, without the query.
        asked: methods and paths in their order, with the bodies.
    """

    folder: Path
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    @contextmanager
    def up(cls, folder: Path) -> Iterator[tuple[RecordedCluster, Api]]:
        """The stand-in, and an ``Api`` that asks it."""
        cluster = cls(folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), cluster._handler())
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            kubeconfig, kubectl = folder / "kubeconfig", folder / "kubectl"
            kubeconfig.write_text(_kubeconfig(server.server_address[1]))
            kubectl.write_text(_KUBECTL.format(python=sys.executable, folder=str(folder)))
            kubectl.chmod(0o755)
            cluster.kubectl_answers()
            yield cluster, Api(str(kubeconfig), kubectl)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def plays(self, method: str, path: str, *answers: Answer) -> None:
        """Record the answers to a request."""
        self.answers[method, path] = list(answers)

    def kubectl_answers(self, *answers: tuple[str, int, str]) -> None:
        """Record what kubectl prints for words that a command has, and its exit code."""
        recorded = [(shlex.split(words), code, text) for words, code, text in answers]
        (self.folder / "kubectl.json").write_text(json.dumps(recorded))

    def commands(self) -> list[list[str]]:
        """The words of every kubectl that ran."""
        log = self.folder / "kubectl.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def requests(self, method: str) -> list[str]:
        """The paths that were asked for by a method."""
        return [path for each, path, _ in self.asked if each == method]

    def _next(self, method: str, path: str, body: Any) -> Answer:
        with self._lock:
            self.asked.append((method, path, body))
            left = self.answers.get((method, path))
            if left is None:
                return 500, f"nothing was recorded for {method} {path}"
            return left.pop(0) if len(left) > 1 else left[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                status, content = cluster._next(self.command, self.path.partition("?")[0], body)
                text = content if isinstance(content, str) else json.dumps(content)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PATCH = do_DELETE = _answer

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


def _kubeconfig(port: int) -> str:
    server = {"server": f"http://127.0.0.1:{port}"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "recorded", "cluster": server}],
            "users": [{"name": "nobody", "user": {"token": "none"}}],
            "contexts": [{"name": "it", "context": {"cluster": "recorded", "user": "nobody"}}],
            "current-context": "it",
        }
    )
