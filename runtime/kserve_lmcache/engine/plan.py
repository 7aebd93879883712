"""Whether the KV cache is offloaded, and how: one decision, made before the engine starts."""

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
from kserve_lmcache.config import disk_tier, engine_file, local_tier, remote_tier
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.credentials import remote_of
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.flags import flags_of
from kserve_lmcache.config.resolve import resolve
from kserve_lmcache.config.resources import memory_limit
from kserve_lmcache.config.settings import VARIABLE_PREFIX
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.engine.arguments import create_engine_config, device
from kserve_lmcache.engine.shape import shape_of
from kserve_lmcache.engine.supported_models import check_supported
from kserve_lmcache.errors import (
    ConfigurationError,
    IdentityError,
    KServeLMCacheError,
    OffloadUnavailableError,
    UnsupportedModelError,
    UsageError,
)
from kserve_lmcache.identity.engine import EngineIdentity, identify
from kserve_lmcache.identity.namespace import NAMESPACE, hashing_of

logger = logging.getLogger(__name__)

CONNECTOR = "KServeLMCacheConnector"
CONNECTOR_MODULE = "kserve_lmcache.connector"
WORKER_EXTENSION = "kserve_lmcache.connector.report.OffloadReporter"
# The name in KServe's guide, which people have in their manifests.
_STOCK_CONNECTOR = "LMCacheConnectorV1"


@dataclasses.dataclass(frozen=True)
class Offload:
    """The decision.

    Attributes:
        configuration: what is in force.
        reason: why it is not enabled; empty when it is.
        engine_file: what LMCache reads it from; ``None`` when it is not enabled.
        remote: the remote store that is asked for.
        shape: the engine's sizes; ``None`` when it is not enabled.
        identity: whose the entries are; ``None`` when it is not enabled.
    """

    configuration: Configuration
    reason: str = ""
    engine_file: Path | None = None
    remote: Remote | None = None
    shape: EngineShape | None = None
    identity: EngineIdentity | None = None

    @property
    def enabled(self) -> bool:
        """Whether our connector is configured in the engine."""
        return self.engine_file is not None

    @property
    def required(self) -> bool:
        """Whether the server must not become ready without it."""
        return bool(self.configuration.get("offload_required"))

    @property
    def tenant_header(self) -> str | None:
        """Keeps the caches of tenants apart, with offloading and without."""
        header: str | None = self.configuration.get("tenant_header")
        return header


def plan_offload(
    args: Namespace, configuration: Configuration, environ: MutableMapping[str, str]
) -> tuple[Offload, VllmConfig]:
    """Decide; put the connector into the engine's configuration and LMCache's into ``environ``.

    Raises:
        ConfigurationError: the configuration has mistakes and offloading is required.
        IdentityError, UnsupportedModelError: this model cannot be offloaded, and it is required.
        UsageError: ``--worker-extension-cls`` is taken.
        KServeLMCacheError: vLLM refuses the engine's arguments.
    """
    _check_own_variables(configuration)
    if not configuration.get("offload"):
        for problem in configuration.problems:
            logger.warning("Not in force, nor needed now: %s", problem)
        reason = f"{configuration.source('offload')} is off"
        return _without(args, configuration, reason), create_engine_config(args)
    wanted = args.kv_transfer_config
    if wanted is not None and wanted.kv_connector != _STOCK_CONNECTOR:
        # Another connector (NIXL, multi-process LMCache, …) is the user's own business.
        reason = f"--kv-transfer-config asks for {wanted.kv_connector}"
        logger.warning("KV-cache offloading is not managed by this server: %s", reason)
        return Offload(configuration, reason), create_engine_config(args)
    if args.worker_extension_cls:
        raise UsageError(
            f"--worker-extension-cls={args.worker_extension_cls} cannot be used together with "
            "offloading, which reports its state by it. Add --offload=off, or leave it out."
        )
    try:
        engine_config = _configure_engine(args, configuration)
        check_supported(engine_config)
        shape = shape_of(engine_config)
        remote = complete(configuration, shape)
        configuration.raise_problems()
        identity = _name_entries(engine_config, configuration, environ)
    except (ConfigurationError, IdentityError, UnsupportedModelError) as error:
        if configuration.get("offload_required"):
            raise
        return _without(args, configuration, str(error)), create_engine_config(args)
    path = _write(configuration, remote)
    engine_file.hand_over(path, environ)
    for note in configuration.notes:
        logger.warning(note)
    offload = Offload(
        configuration, engine_file=path, remote=remote, shape=shape, identity=identity
    )
    return offload, engine_config


def _check_own_variables(configuration: Configuration) -> None:
    """A mistake there may leave tenants together, whether anything is offloaded or not.

    Raises:
        ConfigurationError: one of our own variables is unknown, or has no such value.
    """
    if any(problem.source.startswith(VARIABLE_PREFIX) for problem in configuration.problems):
        configuration.raise_problems()


def resolve_configuration(args: Namespace, environ: Mapping[str, str]) -> Configuration:
    """The configuration as flags, file, variables and our defaults give it; not yet complete."""
    return resolve(flags_of(args), environ, device())


def complete(configuration: Configuration, shape: EngineShape | None) -> Remote | None:
    """Add what depends on the machine and the engine, and look for mistakes in it.

    Returns:
        The remote store that is asked for.
    """
    memory = memory_limit()
    if "max_local_cpu_size" not in configuration.values:
        configuration.values["max_local_cpu_size"] = local_tier.default_size(
            memory,
            device(),
            shape.workers if shape else 1,
            shape.request_bytes if shape else 0,
        )
    if shape:
        local_tier.check(configuration, memory, shape)
    remote_tier.complete(configuration)
    disk_tier.complete(configuration, shape)
    return remote_of(configuration)


def give_up(args: Namespace, offload: Offload, reason: str) -> tuple[Offload, VllmConfig]:
    """What remains after the engine could not start offloading.

    Raises:
        OffloadUnavailableError: it is required.
    """
    if offload.required:
        raise OffloadUnavailableError(reason)
    return _without(args, offload.configuration, reason), create_engine_config(args)


def _without(args: Namespace, configuration: Configuration, reason: str) -> Offload:
    args.kv_transfer_config = None
    if args.worker_extension_cls == WORKER_EXTENSION:
        args.worker_extension_cls = ""
    logger.warning("Serving WITHOUT KV-cache offloading: %s", reason)
    return Offload(configuration, reason)


def _name_entries(
    engine_config: VllmConfig, configuration: Configuration, environ: Mapping[str, str]
) -> EngineIdentity:
    """Tell the connector the namespace of this model's entries.

    Raises:
        IdentityError: the model's content cannot be told.
    """
    how = configuration.get("model_fingerprint")
    identity = identify(engine_config, how, hashing_of(configuration.get, environ), environ)
    extra = engine_config.kv_transfer_config.kv_connector_extra_config
    extra[NAMESPACE] = identity.namespace
    logger.info("Entries of this model are named %s (%s)", identity.namespace, identity.summary)
    return identity


def _configure_engine(args: Namespace, configuration: Configuration) -> VllmConfig:
    """Put our connector in.

    Raises:
        ConfigurationError: vLLM refuses the engine's arguments, and there were mistakes already.
        KServeLMCacheError: vLLM refuses them.
    """
    wanted = args.kv_transfer_config or KVTransferConfig(kv_role="kv_both")
    extra = wanted.kv_connector_extra_config or {}
    args.kv_transfer_config = dataclasses.replace(
        wanted,
        kv_connector=CONNECTOR,
        kv_connector_module_path=CONNECTOR_MODULE,
        # A load that fails is computed, never an error to the client.
        kv_load_failure_policy="recompute",
        # Merged into the configuration; LMCache would put them over everything again.
        kv_connector_extra_config={
            name: value for name, value in extra.items() if not name.startswith("lmcache.")
        },
    )
    args.worker_extension_cls = WORKER_EXTENSION
    try:
        return create_engine_config(args)
    except KServeLMCacheError:
        configuration.raise_problems()
        raise


def _write(configuration: Configuration, remote: Remote | None) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="kserve-lmcache-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / "lmcache.yaml"
    limits = remote_tier.limits_of(configuration)
    disk = disk_tier.disk_of(configuration)
    told_of_disk = None if disk is None else (disk, disk_tier.limits_of(configuration))
    engine_file.write(configuration.lmcache_values(), remote, path, limits, told_of_disk)
    redaction.redact_logs(redaction.secrets_in(engine_file.read(path)))
    return path


def differences(path: Path, used: Mapping[str, Any]) -> list[str]:
    """Where LMCache uses something else than it was told.

    Args:
        path: the file that it was told to read.
        used: its own configuration, read back from a worker.
    """
    return [
        f"{name} is {redaction.redact(used.get(name), name)!r} where "
        f"{redaction.redact(value, name)!r} was asked for"
        for name, value in engine_file.read(path).items()
        if used.get(name) != value
    ]
