"""Where pip finds packages on this machine, as arguments of a build.

A build cannot see this machine's folders, so that they are served to it on the loopback address.
The build has this machine's network.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CONFIGURED = {"find-links": "PIP_FIND_LINKS", "extra-index-url": "PIP_EXTRA_INDEX_URL"}
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"  # of the base image


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """The test's output is not the place."""


@contextmanager
def build_arguments() -> Iterator[list[str]]:
    """``--build-arg`` options for the Dockerfile, while their folders are served."""
    arguments = ["--build-arg", f"PIP_CERT={_CERTIFICATES}"]
    servers: list[ThreadingHTTPServer] = []
    try:
        for key, variable in _CONFIGURED.items():
            urls = []
            for place in _values(key):
                path = Path(place.removeprefix("file://"))
                if not path.is_dir():
                    urls.append(place)
                    continue
                # An index refers to files beside its own folder.
                top = path.parent if key == "extra-index-url" else path
                handler = functools.partial(_Quiet, directory=str(top))
                server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
                servers.append(server)
                threading.Thread(target=server.serve_forever, daemon=True).start()
                below = f"{path.name}/" if top != path else ""
                urls.append(f"http://127.0.0.1:{server.server_port}/{below}")
            if urls:
                arguments += ["--build-arg", f"{variable}={' '.join(urls)}"]
        yield arguments
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _values(key: str) -> list[str]:
    """What pip is configured with, by variables and by files."""
    found = os.environ.get(_CONFIGURED[key], "")
    if not found:
        command = [sys.executable, "-m", "pip", "config", "get", f"global.{key}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found = result.stdout if result.returncode == 0 else ""
    return found.split()
