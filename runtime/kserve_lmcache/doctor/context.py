"""What the checks look at, read from the configuration in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.disk_tier import disk_of
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.settings import IN_PROCESS, parse_route_groups
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.doctor.check import one_line
from kserve_lmcache.redaction import hide
from kserve_lmcache.server.announcement import Replica

SHARED = "cache_server_directory"
# About the chunk of a model of a billion parameters.
_DEFAULT_CHUNK_BYTES = 4 * 2**20
# The largest chunk that a command beside a server stores and reads back, for the sake of its
# memory. Large models have chunks of some 100 MiB.
LARGEST_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Context:
    """What the checks look at."""

    environ: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold passwords
    remote: Remote | None = None
    remote_is_refused: bool = False  # remote_url is set, and cannot be used
    remote_listed_by: tuple[str, ...] = ()  # the settings whose features list the store's keys
    local_cpu_bytes: float = 0.0  # of the local CPU tier, all workers together
    disk: Disk | None = None
    compile_cache: Path | None = None  # that keeps compiled code
    mode: str = IN_PROCESS
    cache_server: Path | None = None  # the directory of one that several servers use
    chunk_bytes: int = _DEFAULT_CHUNK_BYTES  # of one chunk of the KV cache
    model: str | None = None  # directory, file or hub id
    revision: str | None = None  # of the hub id
    model_fingerprint: str = "sampled"  # or "full" or "private"
    replica: Replica | None = None  # None when the configuration has problems
    timeout: float = 3.0  # seconds to wait for one answer of another program or machine
    compiles: bool = True  # whether vLLM compiles code and loads it from its caches
    patience: float = 0.0  # seconds in which what fails on the way to the store is tried again
    root: Path = Path("/")  # the directory that holds dev, proc and sys

    def quote(self, text: object) -> str:
        """Returns the text of a library or a server on one line, without the remote's password.

        Servers repeat unknown commands, which may be AUTH and its arguments.
        """
        secrets = self.remote.secrets if self.remote is not None else ()
        return one_line(hide(str(text), secrets, in_quotes=True))


def context_of(
    configuration: Configuration, shape: EngineShape | None = None, **fields: Any
) -> Context:
    """Returns the context of a server with this configuration.

    Args:
        configuration: must have the size of the local CPU tier.
        shape: the engine's sizes, if they are known.
        fields: the fields that the configuration does not have.
    """
    workers, token_bytes = (shape.workers, shape.kv_bytes_per_token) if shape else (1, 0)
    is_refused = bool(configuration.get("remote_url")) and fields.get("remote") is None
    return Context(
        remote_is_refused=is_refused,
        remote_listed_by=_listed_by(configuration),
        local_cpu_bytes=configuration.get("max_local_cpu_size") * 2**30 * workers,
        disk=disk_of(configuration),
        compile_cache=Path(kept) if (kept := configuration.get("compile_cache_dir")) else None,
        mode=configuration.get("mode"),
        cache_server=Path(shared) if (shared := configuration.get(SHARED)) else None,
        chunk_bytes=token_bytes * configuration.get("chunk_size") or _DEFAULT_CHUNK_BYTES,
        model_fingerprint=configuration.get("model_fingerprint"),
        **fields,
    )


def _listed_by(configuration: Configuration) -> tuple[str, ...]:
    if configuration.get("remote_connector") == "lmcache":  # which cannot list
        return ()
    features = {
        "enable_routes=cache": "cache" in parse_route_groups(configuration.get("enable_routes")),
        "tenant_remote_quota_size": configuration.get("tenant_remote_quota_size") is not None,
    }
    return tuple(name for name, is_on in features.items() if is_on)
