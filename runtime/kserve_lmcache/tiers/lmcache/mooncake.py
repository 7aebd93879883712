"""LMCache's connector to Mooncake, made where it can do no harm.

Mooncake's client holds Python's global lock while it is set up and while it is closed: with a
master that is gone all threads of the process stand still for a minute and a half, with one that
hangs for as long as it does, and no guard on a thread is of use. So it is tried in a process of
its own first, made once, shared by all lanes, and never closed; it finds back to a master that was
away by itself. Its other calls let Python go on and end after 30 s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kserve_lmcache.tiers.guard.store import StoreError

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig

_SECONDS = 20.0  # for the trial, of which the interpreter's start takes most
# Not closed at its end, which could take long as well.
_TRIAL = """
import json, os, sys
from mooncake.store import MooncakeDistributedStore
by_name, in_order = json.load(sys.stdin)
store = MooncakeDistributedStore()
try:
    code = store.setup(by_name)
except TypeError:  # an older one
    code = store.setup(*in_order)
if code != 0:
    print(f"Mooncake's setup answers {code}", file=sys.stderr, flush=True)
os._exit(code != 0)
"""


class SharedConnector:
    """The connector of this process to one Mooncake store.

    Args:
        make: makes it.
        config: of LMCache, which says where the store is.
    """

    def __init__(self, make: Callable[[], Any], config: LMCacheEngineConfig) -> None:
        self._make = make
        self._config = config
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connector: Any = None
        self._reason = "it is not set up yet"

    def get(self) -> Any:
        """The connector.

        Raises:
            StoreError: there is none yet; it is worked on, and that may take long.
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
            _try(self._config)
            connector = self._make()
            # LMCache does not look whether the setup worked; a read would end the process then.
            if (code := connector.store.is_exist("anything")) < 0:
                raise StoreError(f"a lookup answers {code}")
            self._connector = connector
        except StoreError as error:
            self._reason = str(error)
        except Exception as error:
            self._reason = f"{type(error).__name__}: {error}"


def _try(config: LMCacheEngineConfig) -> None:
    from lmcache.v1.storage_backend.connector import mooncakestore_connector as lmcaches

    path = os.getenv("MOONCAKE_CONFIG_PATH")
    of = lmcaches.MooncakeStoreConfig
    options = of.from_file(path) if path else of.load_from_lmcache_config(config)
    by_name = {**options.setup_config, "global_segment_size": "0"}  # it lends no memory
    in_order = [by_name.get(name, "") for name in lmcaches._LEGACY_SETUP_KEYS]
    in_order = [
        int(value or 0) if name in lmcaches._LEGACY_INT_KEYS else value
        for name, value in zip(lmcaches._LEGACY_SETUP_KEYS, in_order, strict=True)
    ]
    try:
        # By its input: its arguments could be seen by everybody on this machine.
        trial = subprocess.run(  # noqa: S603 (our own interpreter)
            [sys.executable, "-c", _TRIAL],
            input=json.dumps([by_name, in_order]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise StoreError(f"Mooncake's setup takes more than {_SECONDS:g} s") from None
    if trial.returncode != 0:
        lines = trial.stderr.strip().splitlines() or [f"exit code {trial.returncode}"]
        raise StoreError(lines[-1])
