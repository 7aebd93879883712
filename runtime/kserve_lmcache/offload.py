"""Whether the KV cache is offloaded, and how: one decision, made before the engine starts."""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from kserve.logging import logger
from vllm.config import KVTransferConfig

from kserve_lmcache import lmcache_config, local_tier
from kserve_lmcache.engine_arguments import device
from kserve_lmcache.errors import KServeLMCacheError, OffloadUnavailableError, UsageError
from kserve_lmcache.lmcache_config import Setting
from kserve_lmcache.resources import memory_limit

CONNECTOR = "KServeLMCacheConnector"
CONNECTOR_MODULE = "kserve_lmcache.connector"
WORKER_EXTENSION = "kserve_lmcache.connector.report.OffloadReporter"
# The name in KServe's guide, which people have in their manifests.
_STOCK_CONNECTOR = "LMCacheConnectorV1"


@dataclasses.dataclass(frozen=True)
class Offload:
    """The decision.

    Attributes:
        enabled: our connector is configured in the engine.
        required: the server must not become ready without it.
        reason: why it is not enabled; empty when it is.
        settings: the LMCache configuration in force, by key.
    """

    enabled: bool
    required: bool
    reason: str = ""
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)


def plan_offload(args: Namespace, environ: MutableMapping[str, str]) -> Offload:
    """Decide, and put the connector into ``args`` and LMCache's configuration into ``environ``.

    Raises:
        ConfigurationError: the configuration has mistakes and offloading is required.
        UsageError: ``--worker-extension-cls`` is taken.
    """
    if args.offload == "off":
        return _without(args, "--offload=off")
    wanted = args.kv_transfer_config
    if wanted is not None and wanted.kv_connector != _STOCK_CONNECTOR:
        # Another connector (NIXL, multi-process LMCache, …) is the user's own business.
        reason = f"--kv-transfer-config asks for {wanted.kv_connector}"
        logger.warning("KV-cache offloading is not managed by this server: %s", reason)
        return Offload(enabled=False, required=False, reason=reason)
    if args.worker_extension_cls:
        raise UsageError(
            f"--worker-extension-cls={args.worker_extension_cls} cannot be used together with "
            "offloading, which reports its state by it. Add --offload=off, or leave it out."
        )
    try:
        settings = _settings(args, environ)
    except KServeLMCacheError as error:
        if args.offload_required:
            raise
        return _without(args, str(error))
    _configure_engine(args, settings, environ)
    return Offload(enabled=True, required=args.offload_required, settings=settings)


def give_up(args: Namespace, reason: str) -> Offload:
    """What remains after the engine could not start offloading.

    Raises:
        OffloadUnavailableError: it is required.
    """
    if args.offload_required:
        raise OffloadUnavailableError(reason)
    args.worker_extension_cls = ""
    return _without(args, reason)


def _without(args: Namespace, reason: str) -> Offload:
    args.kv_transfer_config = None
    logger.warning("Serving WITHOUT KV-cache offloading: %s", reason)
    return Offload(enabled=False, required=False, reason=reason)


def _settings(args: Namespace, environ: Mapping[str, str]) -> dict[str, Setting]:
    workers = args.tensor_parallel_size * args.pipeline_parallel_size
    memory = memory_limit()
    defaults = {
        "local_cpu": Setting(True, "default"),
        "chunk_size": Setting(256, "default"),
        "max_local_cpu_size": local_tier.default_size(memory, device(), workers),
        # Stable between processes and machines, which Python's own hash is not.
        "pre_caching_hash_algorithm": Setting("sha256_cbor", "default"),
    }
    settings, notes = lmcache_config.resolve(environ, defaults)
    local_tier.check_fits(settings["max_local_cpu_size"], memory, workers)
    for note in notes:
        logger.warning(note)
    logger.info(
        "LMCache: %s", lmcache_config.describe(settings, ("max_local_cpu_size", "chunk_size"))
    )
    return settings


def _configure_engine(
    args: Namespace, settings: Mapping[str, Setting], environ: MutableMapping[str, str]
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="kserve-lmcache-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / "lmcache.yaml"
    lmcache_config.write(settings, path)
    lmcache_config.hand_over(path, environ)
    wanted = args.kv_transfer_config or KVTransferConfig(kv_role="kv_both")
    args.kv_transfer_config = dataclasses.replace(
        wanted, kv_connector=CONNECTOR, kv_connector_module_path=CONNECTOR_MODULE
    )
    args.worker_extension_cls = WORKER_EXTENSION
