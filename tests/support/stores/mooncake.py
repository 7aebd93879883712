"""A Mooncake store: its master, and a client that lends it memory; over TCP."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.stores.others import listens

HOST = "127.0.0.1"
SEGMENT_BYTES = 256 << 20
START_SECONDS = 30.0

# What Mooncake's files want of libibverbs (Debian's libibverbs1). Where there is no such library
# there is no RDMA device either, and then only the list of devices is ever asked for.
_STUB = """
#include <errno.h>
#include <stddef.h>
#define ABSENT(name) int ibv_##name(void) { return ENOSYS; }
void *ibv_get_device_list(int *count) { if (count) *count = 0; errno = ENOSYS; return NULL; }
int _ibv_query_gid_ex(void) { return ENOSYS; }
ABSENT(ack_async_event) ABSENT(ack_cq_events) ABSENT(alloc_pd) ABSENT(close_device)
ABSENT(create_comp_channel) ABSENT(create_cq) ABSENT(create_qp) ABSENT(dealloc_pd)
ABSENT(dereg_mr) ABSENT(destroy_comp_channel) ABSENT(destroy_cq) ABSENT(destroy_qp)
ABSENT(event_type_str) ABSENT(fork_init) ABSENT(free_device_list) ABSENT(get_async_event)
ABSENT(get_cq_event) ABSENT(get_device_name) ABSENT(modify_qp) ABSENT(open_device)
ABSENT(query_device) ABSENT(query_gid) ABSENT(query_port) ABSENT(query_qp) ABSENT(reg_mr)
ABSENT(reg_mr_iova2) ABSENT(wc_status_str)
"""


@dataclass
class MooncakeStore:
    """A running store.

    Attributes:
        environment: what a client's process needs beside its own.
    """

    port: int
    metadata_port: int
    process: Process
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"mooncakestore://{HOST}:{self.port}/"

    @property
    def setup(self) -> dict[str, str]:
        """What ``MooncakeDistributedStore.setup`` takes from a client that lends no memory."""
        return {
            "local_hostname": HOST,
            "metadata_server": f"http://{HOST}:{self.metadata_port}/metadata",
            "global_segment_size": "0",
            "local_buffer_size": str(64 << 20),
            "protocol": "tcp",
            "master_server_addr": f"{HOST}:{self.port}",
        }

    @property
    def extra_config(self) -> dict[str, Any]:
        """What LMCache needs beside the URL.

        The prefix hands them on as they are; LMCache's own ``master_server_address`` is a name that
        Mooncake's ``setup`` does not know.
        """
        handed_on = {f"mooncake_{name}": value for name, value in self.setup.items()}
        return {**handed_on, "save_chunk_meta": False, "transfer_timeout": 5}

    def answers(self) -> bool:
        """Whether its master listens."""
        return listens((HOST, self.port))


@contextmanager
def mooncake_store(directory: Path) -> Iterator[MooncakeStore]:
    """A master with its metadata server, and a client process that lends it memory."""
    spec = importlib.util.find_spec("mooncake")
    assert spec is not None, "mooncake is not installed (requirements/test.txt)"
    assert spec.origin is not None
    environment = _libraries(directory)
    port, metadata_port, metrics_port = free_port(), free_port(), free_port()
    command = [
        str(Path(spec.origin).with_name("mooncake_master")),
        f"--rpc_address={HOST}",
        f"--rpc_port={port}",
        "--enable_http_metadata_server=true",
        f"--http_metadata_server_host={HOST}",
        f"--http_metadata_server_port={metadata_port}",
        f"--metrics_host={HOST}",
        f"--metrics_port={metrics_port}",
    ]
    environ = {**os.environ, **environment}
    master = Process(command, directory / "mooncake_master.log", environ)
    store = MooncakeStore(port, metadata_port, master, environment)

    def serves() -> bool:
        try:
            health = httpx.get(f"http://{HOST}:{metrics_port}/health", timeout=2)
            return health.status_code == 200
        except httpx.TransportError:
            return False

    lender = None
    try:
        master.wait_until(serves, START_SECONDS)
        lender = Process(_lend(store), directory / "mooncake_client.log", environ)
        lender.wait_until(lambda: "lends" in lender.output(), START_SECONDS)
        yield store
    finally:
        if lender:
            lender.stop(5)
        store.process.stop(5)


def client(store: MooncakeStore) -> Any:
    """A client in this process, for ``with closing(…)``."""
    if library := store.environment.get("LD_LIBRARY_PATH"):
        # What is loaded already needs not be found.
        ctypes.CDLL(str(Path(library) / "libibverbs.so.1"), mode=ctypes.RTLD_GLOBAL)
    from mooncake.store import MooncakeDistributedStore

    found = MooncakeDistributedStore()
    assert found.setup(store.setup) == 0
    return found


def _lend(store: MooncakeStore) -> list[str]:
    script = (
        "import json, signal, sys\n"
        "from mooncake.store import MooncakeDistributedStore\n"
        "store = MooncakeDistributedStore()\n"
        "assert store.setup(json.loads(sys.argv[1])) == 0\n"
        "print('lends', flush=True)\n"
        "signal.sigwait([signal.SIGTERM])\n"
    )
    setup = {**store.setup, "global_segment_size": str(SEGMENT_BYTES)}
    return [sys.executable, "-c", script, json.dumps(setup)]


def _libraries(directory: Path) -> dict[str, str]:
    if ctypes.util.find_library("ibverbs"):
        return {}
    compiler = shutil.which("cc")
    assert compiler, "libibverbs is missing (Debian: libibverbs1), and cc to make a stub of it"
    source = directory / "libibverbs.c"
    source.write_text(_STUB)
    library = directory / "libibverbs.so.1"
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run([*command, str(source)], check=True)
    return {"LD_LIBRARY_PATH": str(directory)}
