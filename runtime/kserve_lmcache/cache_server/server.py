"""A cache server in this process: storage, tiers below, calls, metrics."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from kserve_lmcache import __version__
from kserve_lmcache.cache_server import rpc, tier_adapter
from kserve_lmcache.cache_server.announcement import Announcement, announce, withdraw
from kserve_lmcache.cache_server.messages import Proofs, Welcome
from kserve_lmcache.cache_server.process import Settings
from kserve_lmcache.cache_server.service import Service
from kserve_lmcache.compat.lmcache.storage import (
    Plugin,
    Storage,
    remove_left_over_segments,
)
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, PLUGINS, REMOTE_PLUGIN
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.reporter import Reporter
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.proof import WrongValueError

ROLE = "cache_server"
_ADAPTERS = {
    DISK_PLUGIN.name: tier_adapter.DiskAdapter,
    REMOTE_PLUGIN.name: tier_adapter.RemoteAdapter,
}
_STOP_SECONDS = 1.0  # that calls have which run at the end


class _Rate:
    """The engine's speed of prompts, as a tier's cost of a load asks for it."""

    tokens_per_second: float | None = None


@contextmanager
def serve(settings: Settings) -> Iterator[Service]:
    """Serve, and announce the server once it answers.

    Raises:
        OSError: the shared memory has no room.
        RuntimeError: the socket cannot be made.
    """
    remove_left_over_segments()
    directory, values = settings.directory, engine_file.read(settings.file)
    incarnation = uuid.uuid4().hex[:12]
    tiers = _tiers(values)
    with ExitStack() as stack:
        storage = stack.enter_context(closing(Storage(incarnation, settings.size, tiers)))
        adapters, rate = dict(tier_adapter.TIERS), _Rate()
        for adapter in adapters.values():
            adapter.tier.load_cost.prefill = rate
        welcome = Welcome(
            incarnation,
            storage.segment,
            storage.size,
            int(values["chunk_size"]),
            max((each.tier.fetch_seconds for each in adapters.values()), default=0.0),
        )
        service = Service(
            storage,
            welcome,
            tier_adapter.SOURCES.count,
            lambda tokens: setattr(rate, "tokens_per_second", tokens),
            functools.partial(_prove, adapters),
        )
        metric("local_cpu_capacity_bytes").set(storage.size)
        reporter = Reporter(lambda: directory)

        def state() -> dict[str, Any]:
            metric("local_cpu_used_bytes").set(storage.used())
            return {
                "incarnation": incarnation,
                "tiers": {name: each.tier.report() for name, each in adapters.items()},
                "moments": start_up_timing.moments(),
            }

        socket = f"{incarnation}.sock"
        server = rpc.serve(directory / socket, service.handlers)
        stack.callback(lambda: server.stop(_STOP_SECONDS).wait())
        reporter.add(ROLE, state)
        reporter.write()
        announce(directory, Announcement(incarnation, socket, os.getpid(), __version__))
        stack.callback(withdraw, directory)
        yield service


def _prove(adapters: Mapping[str, tier_adapter.TierAdapter]) -> Proofs:
    """Store random bytes in each tier, and read them."""
    found = {}
    for name, adapter in adapters.items():
        try:
            found[name] = adapter.prove()
        except WrongValueError as error:
            return Proofs(found, f"what was stored did not come back from the {name} tier: {error}")
    return Proofs(found)


def _tiers(values: Mapping[str, Any]) -> list[Plugin]:
    """The tiers below, in the order in which LMCache's in-process engine asks them."""
    extra, wanted = values.get("extra_config") or {}, values.get("remote_storage_plugins") or ()
    return [
        Plugin(
            tier_adapter.__name__,
            _ADAPTERS[plugin.name].__name__,
            {
                **{name: value for name, value in extra.items() if name.startswith(plugin.prefix)},
                tier_adapter.CHUNK_TOKENS: int(values["chunk_size"]),
            },
        )
        for plugin in PLUGINS
        if plugin.name in wanted
    ]
