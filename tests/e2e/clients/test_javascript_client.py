"""OpenAI's JavaScript client, by the machine's Node.js."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.e2e.clients.conftest import KEY, Clients

SOURCE = Path(__file__).parent / "javascript"


def test_openais_javascript_client(clients: Clients, tmp_path: Path) -> None:
    assert shutil.which("npm"), "Node.js and npm are needed for the test of the JavaScript client"
    directory = tmp_path / "client"
    shutil.copytree(SOURCE, directory, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=directory, check=True)
    command = ["node", "client.mjs", clients.server.openai_url, KEY, clients.name]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert result.stdout == "good\n", result.stderr
