"""Checks of the stores that are not Redis: packages, devices, directories, LMCache's server."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
import struct
from pathlib import Path

from kserve_lmcache.config import store_url
from kserve_lmcache.config.resources import why_unwritable
from kserve_lmcache.doctor.check import Finding, failure, ok, reason_of, size, warning
from kserve_lmcache.doctor.connection import CheckedStore, show
from kserve_lmcache.tiers.lmcache import rdma

# By scheme: the module that LMCache's connector imports, and the package that brings it.
PACKAGES = {
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

# The protocol of LMCache's server. lmcache.v1.protocol imports torch; a test compares the two.
# ClientMetaMessage: command, length, format, dtype, location, shape (4), key.
_REQUEST = struct.Struct("9i150s")
# ServerMetaMessage: code, length, format, dtype, shape (4), location.
ANSWER = struct.Struct("9i")
_EXIST = 3
_FORMAT_KV_2LTD, _FLOAT16 = 1, 2
_FOUND, _NOT_FOUND = 200, 400


def package(store: CheckedStore) -> Finding:
    """Looks for the package that LMCache's connector imports and does not bring."""
    module, distribution = PACKAGES[store.remote.scheme]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        return failure(f"the Python package {module} is not installed", f"Install {distribution}.")
    return ok(f"{module} is installed")


def device(store: CheckedStore) -> Finding:
    """Looks for the RDMA device, without which InfiniStore's client moves nothing."""
    name = store_url.parse(store.remote.url).options.get("device", "mlx5_0")
    found = rdma.devices(store.context.root)
    if name in found:
        return ok(f"{name} is there")
    if found:
        fix = f"Name one of them in remote_url: …?device={found[0]}."
        return failure(f"there is no RDMA device {name}, but {', '.join(found)}", fix)
    return failure(
        f"there is no RDMA device (/{rdma.DIRECTORY}), without which InfiniStore moves nothing",
        "Run on a node that has one and ask for it in the pod's resources, or use another store.",
    )


def directories(store: CheckedStore) -> Finding:
    """Looks at the directory of ``fs://``, or at several between commas."""
    room = {}
    for text in store_url.parse(store.remote.url).path.split(","):
        path = Path(text.strip())
        if not path.is_dir():
            what = "is no directory" if path.exists() else "does not exist"
            return failure(f"{path} {what}", "Mount the volume there, or create it.")
        if reason := why_unwritable(path):
            fix = "Let this user write there (fsGroup), and mount it without readOnly."
            return failure(f"{path} cannot be written: {reason}", fix)
        room[path] = shutil.disk_usage(path).free
    evidence = ", ".join(f"{path}, {size(free)} free" for path, free in room.items())
    if min(room.values()) < 2**30:
        return warning(evidence, "Make room there: LMCache deletes nothing.")
    return ok(evidence)


def lookup_request() -> bytes:
    """Returns the request of LMCache's server for a key that nobody can have stored."""
    key = f"doctor@1@0@{secrets.randbits(63):x}@half".encode()
    numbers = (_EXIST, 0, _FORMAT_KV_2LTD, _FLOAT16, 0, 0, 0, 0, 0)
    return _REQUEST.pack(*numbers, key.ljust(150))


def lookup(store: CheckedStore) -> Finding:
    """Looks up a key in LMCache's server, as the engine does for every prompt."""
    address = store.reached[0]
    try:
        with socket.create_connection(address, store.timeout) as connection:
            connection.sendall(lookup_request())
            with connection.makefile("rb") as stream:
                answer = stream.read(ANSWER.size)
    except TimeoutError:
        problem = f" accepts connections and does not answer within {store.timeout:g} s"
    except OSError as error:
        problem = f": {reason_of(error)}"
    else:
        if len(answer) == ANSWER.size and ANSWER.unpack(answer)[0] in (_FOUND, _NOT_FOUND):
            return ok("LMCache's server answers lookups; it keeps everything, without a limit")
        problem = (
            " does not answer as LMCache's server does" if answer else " closes the connection"
        )
    return failure(
        f"{show(address)}{problem}",
        "Find out why the server hangs, or whether another service listens there "
        f"({store.remote.source}); start LMCache's by lmcache_server HOST PORT.",
    )
