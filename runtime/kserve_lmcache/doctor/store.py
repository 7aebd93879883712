"""The remote store: which checks its URL's scheme asks for."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from kserve_lmcache.config.resources import why_unwritable
from kserve_lmcache.config.stores import parse_addresses
from kserve_lmcache.doctor import lm_server, network, redis_store
from kserve_lmcache.doctor.check import (
    Check,
    Finding,
    Subject,
    failure,
    foreign,
    ok,
    size,
    skipped,
    warning,
)
from kserve_lmcache.doctor.stage import Stage, in_order
from kserve_lmcache.tiers.lmcache import rdma

NAME = "remote store"
PACKAGE = "remote package"
DEVICE = "remote device"
DIRECTORY = "remote directory"

# By scheme: the module that LMCache's connector imports, and what installs it.
_PACKAGES = {
    "mooncakestore": ("mooncake", "mooncake-transfer-engine"),
    "infinistore": ("infinistore", "infinistore"),
    "s3": ("awscrt", "awscrt"),
    "azure": ("azure.storage.blob", "azure-storage-blob aiohttp azure-identity"),
    "bigtable": ("google.cloud.bigtable", "google-cloud-bigtable"),
    "hf3fs": ("hf3fs_fuse", "hf3fs_fuse, from the source of 3FS"),
    "eic": ("eic", "eic, from its vendor"),
    "sagemaker-hyperpod": ("aiohttp", "aiohttp"),
    "fs": ("aiofiles", "aiofiles"),
}
_WITH_A_SERVER = ("lm", "resp", "mooncakestore", "infinistore")
# What this runtime was tried with, by moving data.
_TRIED = ("lm", "fs", "resp", "s3", "mooncakestore")


def store(subject: Subject) -> Iterator[Finding]:
    """Whether the remote store can be reached and does what it has to."""
    remote = subject.remote
    if remote is None:
        yield skipped(NAME, "none is asked for: nothing is shared between replicas")
        return
    try:
        scheme = remote.scheme
        netloc, path = urlsplit(remote.url).netloc, unquote(urlsplit(remote.url).path)
    except ValueError as error:
        yield failure(
            redis_store.ADDRESS,
            f"remote_url is no URL: {foreign(error, remote)}",
            f"Correct remote_url ({remote.source}).",
        )
        return
    if remote.speaks_redis:
        yield from redis_store.examine(remote, subject)
        return
    stages = []
    if scheme in _PACKAGES:
        stages.append(Stage(PACKAGE, lambda: package(*_PACKAGES[scheme])))
    if scheme == "infinistore":
        wanted = parse_qs(urlsplit(remote.url).query).get("device", ["mlx5_0"])[0]
        stages.append(Stage(DEVICE, lambda: device(wanted, subject.root)))
    if scheme == "fs":
        stages.append(Stage(DIRECTORY, lambda: directories(netloc, path)))
    if scheme in _WITH_A_SERVER:
        try:
            addresses = parse_addresses(netloc)
        except ValueError as error:
            yield failure(
                redis_store.ADDRESS,
                f"remote_url {error}",
                f"Write {scheme}://HOST:PORT in remote_url ({remote.source}).",
            )
            return
        road = network.Road(remote, addresses, subject.patience)
        stages += road.stages()
        if scheme == "lm":
            stages.append(
                Stage(
                    lm_server.NAME,
                    lambda: lm_server.lookup(remote, road.reached[0], subject.patience),
                    (network.CONNECTION,),
                )
            )
    yield from in_order(stages, subject)
    if scheme not in ("lm", "fs"):
        untried = "" if scheme in _TRIED else "; no data was ever moved to one by this runtime"
        yield skipped(NAME, f"{scheme}:// was not looked at any further{untried}")


def package(module: str, distribution: str) -> Finding:
    """Without it nothing is shared; with ``remote_connector=lmcache``, nothing is kept at all."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        return failure(
            PACKAGE, f"the Python package {module} is not installed", f"Install {distribution}."
        )
    return ok(PACKAGE, f"{module} is installed")


def device(name: str, root: Path) -> Finding:
    """What InfiniStore's client moves data by; it has no other way."""
    found = rdma.devices(root)
    if name in found:
        return ok(DEVICE, f"{name} is there")
    if found:
        return failure(
            DEVICE,
            f"there is no RDMA device {name}, but {', '.join(found)}",
            f"Name one of them in remote_url: …?device={found[0]}.",
        )
    return failure(
        DEVICE,
        f"there is no RDMA device (/{rdma.DIRECTORY}), without which InfiniStore moves nothing",
        "Run on a node that has one and ask for it in the pod's resources, or use another store.",
    )


def directories(netloc: str, paths: str) -> Finding:
    """Where ``fs://`` keeps a file for every chunk: one directory, or several between commas."""
    if not netloc or not paths:
        return failure(
            DIRECTORY,
            "remote_url names no directory as LMCache reads it, after a host and a port",
            f"Write fs://localhost:0{paths or '/DIRECTORY'}.",
        )
    seen = []
    for text in paths.split(","):
        path = Path(text.strip())
        if not path.is_dir():
            what = "is no directory" if path.exists() else "does not exist"
            return failure(DIRECTORY, f"{path} {what}", "Mount the volume there, or create it.")
        if reason := why_unwritable(path):
            return failure(
                DIRECTORY,
                f"{path} cannot be written: {reason}",
                "Let this user write there (fsGroup), and mount it without readOnly.",
            )
        seen.append((path, shutil.disk_usage(path).free))
    evidence = ", ".join(f"{path}, {size(free)} free" for path, free in seen)
    if min(free for _, free in seen) < 2**30:
        return warning(DIRECTORY, evidence, "Make room there: LMCache deletes nothing.")
    return ok(DIRECTORY, evidence)


CHECK = Check(NAME, store)
