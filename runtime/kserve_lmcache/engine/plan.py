"""The plan whether and how the KV cache is offloaded, made once, before the engine starts."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from vllm.config import KVTransferConfig, VllmConfig

from kserve_lmcache import redaction
from kserve_lmcache.config import engine_file, kserve_offloading, memory_budget, tenant_quotas
from kserve_lmcache.config.completion import complete, size_local_tier
from kserve_lmcache.config.configuration import Configuration, show
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import CacheServer, Needs
from kserve_lmcache.config.resources import memory_limit
from kserve_lmcache.config.settings import (
    MULTIPROCESS,
    SETTINGS,
    VARIABLE_PREFIX,
    parse_route_groups,
)
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.engine.arguments import create_engine_config, device, resolve_engine_arguments
from kserve_lmcache.engine.connectors import (
    CONNECTOR,
    CONNECTOR_MODULE,
    REMOVED_CONNECTOR,
    STOCK_CONNECTORS,
)
from kserve_lmcache.engine.memory import (
    log_memory,
    needs_of,
    refuse_what_cannot_fit,
    size_kv_cache,
)
from kserve_lmcache.engine.resolution import BESIDE_OTHERS, GRPC, has_model, resolve_arguments
from kserve_lmcache.engine.shape import shape_of
from kserve_lmcache.engine.shared_cache_server import shared_cache_server
from kserve_lmcache.engine.supported_models import check_supported
from kserve_lmcache.errors import (
    ConfigurationError,
    IdentityError,
    KServeLMCacheError,
    OffloadUnavailableError,
    UnsupportedModelError,
)
from kserve_lmcache.identity.engine import (
    EngineIdentity,
    check_load_format,
    identify,
    model_path,
)
from kserve_lmcache.identity.namespace import NAMESPACE, hashing_of

logger = logging.getLogger(__name__)

_REACHES_PEERS = (
    "Requests pass kv_transfer_params to %s, and can name engines, and what is read from them: let "
    "nobody but a router that sets kv_transfer_params itself reach this server"
)
_OTHER_ROAD = (
    "LMCacheMPConnector waits for an lmcache server of yours: for one that this server starts, "
    "watches and checks, leave --kv-transfer-config out and set LMCACHE_MODE=multiprocess"
)
# The start of the sources of settings that have nothing to do with LMCache.
_OF_THE_SERVER = (
    VARIABLE_PREFIX,
    GRPC,
    BESIDE_OTHERS,
    *(
        setting.flag
        for setting in SETTINGS
        if setting.environment_variable.startswith(VARIABLE_PREFIX)
    ),
)


@dataclasses.dataclass(frozen=True)
class OffloadPlan:
    """Whether and how the KV cache is offloaded.

    Attributes:
        configuration: the configuration in force.
        reason: why the KV cache is not offloaded; empty when it is.
        engine_file: the file from which LMCache reads its configuration in the engine's processes;
            ``None`` without offloading.
        remote: the remote store; ``None`` when there is none.
        shape: the sizes of the engine's KV cache; ``None`` without offloading.
        identity: the identity of the engine, from which the names of its cache entries are made;
            ``None`` without offloading.
        cache_server: the directory of a cache server that others use as well; ``None`` without one.
    """

    configuration: Configuration
    reason: str = ""
    engine_file: Path | None = None
    remote: Remote | None = None
    shape: EngineShape | None = None
    identity: EngineIdentity | None = None
    cache_server: Path | None = None

    @property
    def enabled(self) -> bool:
        """Whether the engine is configured with the connector of this package."""
        return self.engine_file is not None

    @property
    def cache_server_bytes(self) -> int:
        """The size of the memory of this server's own cache server; 0 without one."""
        is_multiprocess = self.configuration.get("mode") == MULTIPROCESS
        if not self.enabled or not is_multiprocess or self.cache_server is not None:
            return 0
        workers = self.shape.workers if self.shape is not None else 1
        return int(self.configuration.get("max_local_cpu_size") * workers * memory_budget.GIB)

    @property
    def required(self) -> bool:
        """Whether the server must not become ready without offloading."""
        return bool(self.configuration.get("offload_required"))


def plan_offload(
    args: Namespace, configuration: Configuration, environ: MutableMapping[str, str]
) -> tuple[OffloadPlan, VllmConfig]:
    """The plan, and the engine's configuration, which has the connector when the plan offloads.

    Args:
        args: the server's arguments. Their ``kv_transfer_config`` is set in place.
        configuration: as resolved from its sources. The values that depend on the machine and the
            engine are added in place.
        environ: gets the variable that names LMCache's configuration file.

    Raises:
        ConfigurationError: the configuration has problems, and offloading is required.
        IdentityError, UnsupportedModelError: this model's KV cache cannot be offloaded, and
            offloading is required.
        KServeLMCacheError: vLLM refuses the engine's arguments.
    """
    _raise_problems_of_the_server(configuration)
    refuse_what_cannot_fit(_needs(args, configuration, environ))
    wanted = args.kv_transfer_config
    is_ours = wanted is None or wanted.kv_connector in (*STOCK_CONNECTORS, REMOVED_CONNECTOR)
    if wanted is not None and wanted.kv_connector == kserve_offloading.CONNECTOR:
        is_ours = bool(configuration.get("offload"))
    if is_ours and not configuration.get("offload"):
        for problem in configuration.problems:
            logger.warning("Ignored, because offloading is off: %s", problem)
        for note in configuration.notes:
            logger.warning(note)
        log_memory(_needs(args, configuration, environ))
        reason = f"{configuration.source('offload')} is off"
        return _disabled(args, configuration, reason), create_engine_config(args)
    if wanted is not None and wanted.kv_connector == REMOVED_CONNECTOR:
        configuration.raise_problems()
    if not is_ours:
        # The user asks for another connector (NIXL, multi-process LMCache, …).
        reason = f"--kv-transfer-config asks for {wanted.kv_connector}"
        logger.warning("KV-cache offloading is not managed by this server: %s", reason)
        if wanted.kv_connector == "LMCacheMPConnector":
            logger.warning(_OTHER_ROAD)
        logger.warning(_REACHES_PEERS, wanted.kv_connector)
        return OffloadPlan(configuration, reason), create_engine_config(args)
    try:
        engine_config = _engine_config(args, configuration)
        check_supported(engine_config)
        shape = shape_of(engine_config)
        cache_server = shared_cache_server(engine_config, configuration, shape)
        needs = _needs(args, configuration, environ)
        remote = complete(configuration, shape, needs)
        configuration.raise_problems()
        identity = _identity(engine_config, configuration, environ)
        needs = _sized_anew(args, engine_config, configuration, shape, environ) or needs
    except (ConfigurationError, IdentityError, UnsupportedModelError) as error:
        if configuration.get("offload_required"):
            raise
        return _disabled(args, configuration, str(error)), create_engine_config(args)
    extra = engine_config.kv_transfer_config.kv_connector_extra_config
    extra[engine_file.QUOTAS] = tenant_quotas.of_worker(configuration, shape.workers)
    log_memory(needs, configuration.get("max_local_cpu_size"))
    path = _written_engine_file(configuration, remote)
    engine_file.hand_over(path, environ)
    for note in configuration.notes:
        logger.warning(note)
    offload = OffloadPlan(
        configuration,
        engine_file=path,
        remote=remote,
        shape=shape,
        identity=identity,
        cache_server=cache_server,
    )
    return offload, engine_config


def _raise_problems_of_the_server(configuration: Configuration) -> None:
    """Refuse mistakes in settings of the server itself, with offloading and without.

    Such a mistake may turn the separation of tenants off.

    Raises:
        ConfigurationError: a variable of this package is unknown, or the value of a variable or of
            a flag cannot be used.
    """
    if any(problem.source.startswith(_OF_THE_SERVER) for problem in configuration.problems):
        configuration.raise_problems()


def resolve_configuration(args: Namespace, environ: Mapping[str, str]) -> Configuration:
    """The configuration from flags, file, variables and defaults, for vLLM's device."""
    return resolve_arguments(args, environ, device())


def examine(
    args: Namespace,
    configuration: Configuration,
    environ: Mapping[str, str],
    model_is_here: bool = True,
) -> tuple[EngineShape | None, Remote | None]:
    """Everything of :func:`plan_offload` that needs no download and loads no weights.

    The problems are added to the configuration.

    Args:
        args: the server's arguments; changed in place.
        configuration: as resolved from its sources.
        environ: the environment.
        model_is_here: whether the model may be read. A model of the hub needs the network.

    Returns:
        The sizes of the engine's KV cache, if there are offloading and a model; and the remote
        store, if there is one.

    Raises:
        IdentityError, UnsupportedModelError: this model's KV cache cannot be offloaded.
        KServeLMCacheError: vLLM refuses the engine's arguments.
    """
    shape = None
    if model_is_here and configuration.get("offload") and has_model(args):
        resolve_engine_arguments(args, dict(environ))
        engine_config = _engine_config(args, configuration)
        check_supported(engine_config)
        if configuration.get("model_fingerprint") != "private":
            check_load_format(engine_config)
        shape = shape_of(engine_config)
    needs = _needs(args, configuration, environ) if shape else Needs(device())
    return shape, complete(configuration, shape, needs)


def _sized_anew(
    args: Namespace,
    engine_config: VllmConfig,
    configuration: Configuration,
    shape: EngineShape,
    environ: Mapping[str, str],
) -> Needs | None:
    """Size what has its default size once more, now that a hub's weights are on this machine.

    Returns:
        What the server needs; None where nothing new is known.

    Raises:
        ConfigurationError: the server cannot fit into the memory.
    """
    if device() != "cpu" or Path(str(args.model)).exists():
        return None
    if configuration.get("model_fingerprint") == "private":  # nothing has been downloaded yet
        return None
    needs = _needs(args, configuration, environ, model_path(engine_config))
    needs = size_kv_cache(args, memory_limit(), needs, environ)
    engine_config.cache_config.kv_cache_memory_bytes = args.kv_cache_memory_bytes
    size_local_tier(configuration, shape, needs)
    configuration.raise_problems()
    return needs


def _needs(
    args: Namespace,
    configuration: Configuration,
    environ: Mapping[str, str],
    model: Path | None = None,
) -> Needs:
    """What the server needs: the engine, and a cache server where the configuration has one."""
    needs = needs_of(args, device(), environ, model)
    if not configuration.get("offload") or configuration.get("mode") != MULTIPROCESS:
        return needs
    is_shared = configuration.get("cache_server_directory") is not None
    return dataclasses.replace(
        needs, cache_server=CacheServer.SHARED if is_shared else CacheServer.OWN
    )


def disabled_plan(
    args: Namespace, offload: OffloadPlan, reason: str
) -> tuple[OffloadPlan, VllmConfig]:
    """The plan and the engine's configuration after offloading could not start in the engine.

    Args:
        args: the server's arguments; changed in place.
        offload: the plan that failed.
        reason: why it failed.

    Raises:
        OffloadUnavailableError: offloading is required.
    """
    if offload.required:
        raise OffloadUnavailableError(reason)
    return _disabled(args, offload.configuration, reason), create_engine_config(args)


def _disabled(args: Namespace, configuration: Configuration, reason: str) -> OffloadPlan:
    """The plan not to offload; takes the connector out of ``args``."""
    args.kv_transfer_config = None
    logger.warning("Serving WITHOUT KV-cache offloading: %s", reason)
    return OffloadPlan(configuration, reason)


def _identity(
    engine_config: VllmConfig, configuration: Configuration, environ: Mapping[str, str]
) -> EngineIdentity:
    """The engine's identity; writes its namespace into the connector's configuration.

    Raises:
        IdentityError: the model's files cannot be fingerprinted.
    """
    how = configuration.get("model_fingerprint")
    identity = identify(engine_config, how, hashing_of(configuration.get, environ), environ)
    extra = engine_config.kv_transfer_config.kv_connector_extra_config
    extra[NAMESPACE] = identity.namespace
    logger.info(
        "The namespace of the cache entries is %s (%s)", identity.namespace, identity.summary
    )
    return identity


def _engine_config(args: Namespace, configuration: Configuration) -> VllmConfig:
    """vLLM's configuration of the engine with the connector of this package.

    Raises:
        ConfigurationError: vLLM refuses the arguments, and the configuration has problems.
        KServeLMCacheError: vLLM refuses the arguments.
    """
    wanted = args.kv_transfer_config or KVTransferConfig(kv_role="kv_both")
    # KServe's field is part of the configuration; our connector reads none of it.
    is_field = wanted.kv_connector == kserve_offloading.CONNECTOR
    extra = {} if is_field else wanted.kv_connector_extra_config or {}
    args.kv_transfer_config = dataclasses.replace(
        wanted,
        kv_connector=CONNECTOR,
        kv_connector_module_path=CONNECTOR_MODULE,
        # The engine computes what cannot be loaded; the request does not fail.
        kv_load_failure_policy="recompute",
        # Already merged into the configuration. LMCache would let them override it.
        kv_connector_extra_config={
            **{name: value for name, value in extra.items() if not name.startswith("lmcache.")},
            engine_file.STATS_ARE_RECEIVED: not args.disable_log_stats,
            engine_file.COPY: configuration.get("copy"),
            engine_file.MODE: configuration.get("mode"),
            engine_file.STEERED: "cache" in parse_route_groups(configuration.get("enable_routes")),
        },
    )
    try:
        return create_engine_config(args)
    except KServeLMCacheError:
        configuration.raise_problems()
        raise


def _written_engine_file(configuration: Configuration, remote: Remote | None) -> Path:
    """Write LMCache's configuration file, and keep its secrets out of the log; returns its path."""
    directory = Path(tempfile.mkdtemp(prefix="kserve-lmcache-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / engine_file.NAME
    engine_file.write_for(configuration, remote, path)
    redaction.redact_logs(engine_file.secrets_in(path))
    return path


def differing_values(path: Path, used: Mapping[str, Any]) -> list[str]:
    """The values that LMCache uses in a worker and that are not those of its file.

    Args:
        path: the file that LMCache reads.
        used: the configuration of LMCache, read back from the worker.

    Returns:
        A sentence for each value.
    """
    return [
        f"{name} is {show(name, used.get(name))!r} where {show(name, value)!r} was asked for"
        for name, value in engine_file.read(path).items()
        if used.get(name) != value
    ]
