"""The configuration from all sources, and the flags that contradict it. Nothing here asks vLLM."""

from __future__ import annotations

import ssl
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.flags import flags_of
from kserve_lmcache.config.resolve import resolve
from kserve_lmcache.config.settings import MULTIPROCESS, route_groups
from kserve_lmcache.engine.connectors import (
    MULTI_CONNECTOR,
    REMOVED_CONNECTOR,
    children_of_lmcache,
)
from kserve_lmcache.errors import Problem

GRPC = "--enable_grpc"
# The source of the problem that LMCache's connector is not alone.
BESIDE_OTHERS = f"--kv-transfer-config {MULTI_CONNECTOR}"


def resolve_arguments(args: Namespace, environ: Mapping[str, str], device: str) -> Configuration:
    """The configuration from flags, file, variables and defaults.

    :func:`kserve_lmcache.config.completion.complete` adds the values that depend on the machine and
    the engine.

    Args:
        args: the server's arguments.
        environ: the environment.
        device: the type of the device on which the engine computes.
    """
    configuration = resolve(flags_of(args), environ, device)
    configuration.problems += _open_doors(args, configuration, environ)
    configuration.problems += _beside_others(args)
    if configuration.get("offload"):
        configuration.problems += _contradictions(args)
        configuration.problems += _events(args, configuration)
    return configuration


def _open_doors(
    args: Namespace, configuration: Configuration, environ: Mapping[str, str]
) -> Iterator[Problem]:
    """A port that lets anybody do what another port lets only the holder of a key do."""
    groups = route_groups(configuration.get("enable_routes"), environ)
    if not args.enable_grpc or "repository" not in groups:
        return
    guards = {
        "API keys": bool(args.api_key or environ.get("VLLM_API_KEY")),
        "certificates of clients": args.ssl_cert_reqs == ssl.CERT_REQUIRED,
    }
    if asked := " and ".join(name for name, is_asked in guards.items() if is_asked):
        yield Problem(
            f"opens a port that asks for no {asked}, by which anybody could unload the model",
            GRPC,
            "Leave --enable_grpc out, or the group repository of --enable-routes.",
        )


def _beside_others(args: Namespace) -> Iterator[Problem]:
    """LMCache's connector below vLLM's ``MultiConnector``, with offloading and without.

    ``docs/design/transfer-parameters.md`` has the reasons.
    """
    wanted = args.kv_transfer_config
    if wanted is None:
        return
    for name in children_of_lmcache(wanted.kv_connector, wanted.kv_connector_extra_config):
        yield Problem(
            f"has {name} among its connectors, which would store and share what the others read "
            "from peers or fail to load",
            BESIDE_OTHERS,
            f"Leave the flag out to offload by LMCache, or leave {name} out of it: vLLM runs the "
            "other connectors without LMCache.",
        )


def _contradictions(args: Namespace) -> Iterator[Problem]:
    """Flags of vLLM that would take the place of this server's offloading."""
    if getattr(args, "kv_offloading_size", None) is not None:
        yield Problem(
            "turns vLLM's own offloading on, in the place of this server's",
            "--kv-offloading-size",
            "Use --lmcache max_local_cpu_size=SIZE, or --offload=off.",
        )
    wanted = args.kv_transfer_config
    if wanted is not None and wanted.kv_connector == REMOVED_CONNECTOR:
        yield Problem(
            f"names {REMOVED_CONNECTOR}, which vLLM has no longer",
            "--kv-transfer-config",
            "Leave the flag out: offloading needs none.",
        )


def _events(args: Namespace, configuration: Configuration) -> Iterator[Problem]:
    """KV-cache events where the tiers cannot take part in them."""
    events = getattr(args, "kv_events_config", None)
    if events is None or not events.enable_kv_cache_events or events.publisher == "null":
        return
    for name, value in (("mode", MULTIPROCESS), ("use_layerwise", True)):
        if configuration.get(name) == value:
            yield Problem(
                f"asks for KV-cache events, which do not have the tiers with {name}={value}",
                "--kv-events-config",
                f"Leave the flag or {name} out.",
            )


def has_model(args: Namespace) -> bool:
    """Whether the flags name a model, or one is mounted."""
    mounted = Path(args.model_dir)
    is_mounted = mounted.is_dir() and any(mounted.iterdir())
    return bool(args.model_id or args.model_tag or args.model or is_mounted)
