"""The checks of the arguments that ``serve``, ``config`` and ``doctor`` share.

They run before a model is loaded, and leave nothing to be refused later that can be known now. What
vLLM alone knows is asked of vLLM: its parsers, its templates, its variables.
"""

from __future__ import annotations

import importlib.util
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from kserve_lmcache.compat import vllm
from kserve_lmcache.config import kserve_offloading
from kserve_lmcache.errors import UsageError

# Formats of weights whose reader is in a package of its own.
_READERS = {
    "runai_streamer": "runai_model_streamer",
    "runai_streamer_sharded": "runai_model_streamer",
    "fastsafetensors": "fastsafetensors",
    "tensorizer": "tensorizer",
}
# Variables of vLLM's own HTTP server, which does not run here, and what to do instead.
_WITHOUT_EFFECT = {
    "VLLM_SERVER_DEV_MODE": "unset it, and turn on the groups of routes that you need by "
    "--enable-routes, for example --enable-routes=reset-cache,sleep",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "unset it, and set --exit-on-engine-death=false",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "unset it, and set --timeout_keep_alive",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "unset it; it would log the answers of some routes alone",
    "VLLM_USE_RUST_FRONTEND": "unset it: KServe's server answers here",
    "VLLM_RUST_FRONTEND_PATH": "unset it: KServe's server answers here",
}
_ROUTE_PREFIX = "KSERVE_OPENAI_ROUTE_PREFIX"
_GOOD_PREFIX = re.compile(r"(/?[\w.~-]+(/[\w.~-]+)*)?", re.ASCII)
_REPLACED = ("", "V1", "V1Dynamic")  # LMCacheConnector, LMCacheConnectorV1, …
_OFF = ("", "0", "false")


def check_arguments(args: Namespace, environ: Mapping[str, str], asks_vllm: bool = True) -> None:
    """Refuse arguments and variables with which a server would not start.

    Args:
        args: the server's arguments.
        environ: the environment.
        asks_vllm: whether vLLM is imported for what it alone knows.

    Raises:
        UsageError: with every mistake.
    """
    checks = (check for check in _CHECKS if asks_vllm or check not in _ASK_VLLM)
    found = [problem for check in checks for problem in check(args, environ)]
    if found:
        raise UsageError("; ".join(found))


def _files(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "kserve_log_config_file"):
        path = getattr(args, name, None)
        if path and not Path(path).is_file():
            flag = name.removeprefix("kserve_")
            yield f"--{flag}={path} is no file: mount it, or correct the path"
    if bool(args.ssl_certfile) != bool(args.ssl_keyfile):
        given, other = ("ssl_certfile", "ssl_keyfile")[:: 1 if args.ssl_certfile else -1]
        yield f"--{given} has no effect without --{other}: give both, or none"


def _parsers(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    reasoning = getattr(args.structured_outputs_config, "reasoning_parser", None)
    wanted = {"tool": args.tool_call_parser, "reasoning": args.reasoning_parser or reasoning}
    for kind, name in wanted.items():
        plugin = getattr(args, f"{kind}_parser_plugin", None)
        flag = "--tool-call-parser" if kind == "tool" else "--reasoning-parser"
        if not (name or plugin):
            continue
        if plugin and not Path(plugin).is_file():
            yield f"--{kind}-parser-plugin={plugin} is no file: mount it, or correct the path"
            continue
        try:
            before, known = vllm.register_parsers(kind, None), vllm.register_parsers(kind, plugin)
        except Exception as error:
            yield f"--{kind}-parser-plugin={plugin} cannot be imported: {error}"
            continue
        if plugin and set(before) == set(known) and name not in known:
            yield f"--{kind}-parser-plugin={plugin} registers no parser: vLLM could not import it"
        elif name and name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
            yield f"{flag}={name} is no parser of vLLM's: {hint}"


def _vllms_own_check(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    try:
        vllm.validate_parsed_serve_args(args)
    except Exception as error:
        yield f"vLLM refuses the arguments: {str(error).removeprefix('Error: ')}"


def _connector(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    wanted = args.kv_transfer_config
    # Those of LMCache are replaced by this server's, or refused with the configuration.
    if wanted is None or (wanted.kv_connector or "").removeprefix("LMCacheConnector") in _REPLACED:
        return
    if wanted.kv_connector == kserve_offloading.CONNECTOR:  # KServe's field
        return
    try:
        vllm.connector_class(wanted)
    except Exception as error:
        yield (
            f"--kv-transfer-config names {wanted.kv_connector}, which vLLM cannot load "
            f"({' '.join(str(error).split())}): leave the flag out, since this server offloads by "
            "LMCache without it, or install what the connector needs"
        )


def _route_prefix(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    prefix = environ.get(_ROUTE_PREFIX, "")
    if not _GOOD_PREFIX.fullmatch(prefix):
        parts = (part for part in prefix.split("/") if _GOOD_PREFIX.fullmatch(part) and part)
        better = "/".join(("", *parts))
        fix = f"write {better}" if better else f"set {_ROUTE_PREFIX}= for no prefix"
        yield f"{_ROUTE_PREFIX}={prefix!r} is no prefix of a path: {fix}"


def _variables(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    for name, reason in vllm.refused_variables(environ).items():
        fix = f"unset {name}"
        if "://" in environ[name]:  # Kubernetes' variable of a Service with vLLM's name
            fix += ", or set enableServiceLinks: false in the pod"
        yield f"vLLM cannot read {name}: {reason}; {fix}"


def _variables_without_effect(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    for name, fix in _WITHOUT_EFFECT.items():
        if environ.get(name, "").strip().lower() not in _OFF:
            yield f"{name} has no effect here: {fix}"


def _load_format(args: Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    package = _READERS.get(str(args.load_format))
    if package and importlib.util.find_spec(package) is None:
        yield f"--load-format={args.load_format} needs the Python package {package}: install it"


_Check = Callable[[Namespace, Mapping[str, str]], Iterator[str]]
_CHECKS: tuple[_Check, ...] = (
    _files,
    _vllms_own_check,
    _parsers,
    _connector,
    _route_prefix,
    _variables,
    _variables_without_effect,
    _load_format,
)
_ASK_VLLM: tuple[_Check, ...] = (_vllms_own_check, _parsers, _connector, _variables)
