"""LMCache's connector to Mooncake, made where it cannot block the process.

Mooncake's client holds Python's global lock while it is set up and while it is closed. With an
unreachable master, all threads of the process stop for a minute and a half, and with a master
that hangs, for as long as it hangs. No deadline in a thread can prevent that. The client is
therefore tried in a process of its own first, then made once, shared by all kinds of calls, and
never closed. It reconnects to its master by itself. Its other calls release the lock and end
after 30 s.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kserve_lmcache.compat.lmcache import connectors as private
from kserve_lmcache.config.store_url import parse_addresses
from kserve_lmcache.tiers.guard.store import StoreError

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig

# Options of LMCache's connector: the master's address, and that of this machine.
MASTER = "mooncake_master_server_addr"
_PREFIX = "mooncake_"
_HOST = "mooncake_local_hostname"
_MASTER_PORT = 50051

_TRIAL_SECONDS = 20.0  # of which the interpreter's start takes most
# Ends without closing the client, which could take long as well.
_TRIAL = """
import json, os, sys
from mooncake.store import MooncakeDistributedStore
by_name, in_order = json.load(sys.stdin)
store = MooncakeDistributedStore()
try:
    code = store.setup(by_name)
except TypeError:  # an older Mooncake
    code = store.setup(*in_order)
if code != 0:
    print(f"Mooncake's setup answers {code}", file=sys.stderr, flush=True)
os._exit(code != 0)
"""


class SharedConnector:
    """The connector of this process to one Mooncake store.

    Args:
        make: makes the connector.
        config: LMCache's configuration, which names the store.
    """

    def __init__(self, make: Callable[[], Any], config: LMCacheEngineConfig) -> None:
        self._make = make
        self._config = config
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connector: Any = None
        self._reason = "the client is not set up yet"

    def get(self) -> Any:
        """Returns the connector. Where there is none, a thread begins to make it.

        Raises:
            StoreError: there is no connector yet. Making it may take long.
        """
        with self._lock:
            if self._connector is not None:
                return self._connector
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._set_up, name="remote-mooncake-setup", daemon=True
                )
                self._thread.start()
        raise StoreError(self._reason)

    def _set_up(self) -> None:
        try:
            name_host(self._config)
            _try_setup(self._config)
            connector = self._make()
            # LMCache ignores a failed setup, after which a read would crash the process.
            if (code := connector.store.is_exist("anything")) < 0:
                raise StoreError(f"a lookup answers {code}")
            self._connector = connector
        except StoreError as error:
            self._reason = str(error)
        except Exception as error:
            self._reason = f"{type(error).__name__}: {error}"


def name_host(config: LMCacheEngineConfig) -> None:
    """Add at which address other machines reach this one, unless the configuration says it.

    It is the address from which this machine reaches the store's master. No ConfigMap can say it
    for each pod. Nothing is sent.

    Args:
        config: changed in place.

    Raises:
        OSError: the master's name has no address, or there is no way to it.
    """
    extra = config.extra_config
    if {_HOST, _HOST.removeprefix(_PREFIX)} & set(extra):
        return
    ((host, port),) = parse_addresses(extra[MASTER], _MASTER_PORT)
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as datagrams:
        datagrams.connect(address)
        extra[_HOST] = datagrams.getsockname()[0]


def _try_setup(config: LMCacheEngineConfig) -> None:
    try:
        # The arguments go through a pipe: other users can see a command line.
        trial = subprocess.run(  # noqa: S603 (our own interpreter)
            [sys.executable, "-c", _TRIAL],
            input=json.dumps(private.mooncake_setup(config)),
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise StoreError(f"Mooncake's setup takes more than {_TRIAL_SECONDS:g} s") from None
    if trial.returncode != 0:
        lines = trial.stderr.strip().splitlines() or [f"exit code {trial.returncode}"]
        raise StoreError(lines[-1])
