"""What is refused although every value has the right type.

LMCache answers most of it by switching a tier, or everything, off, and serving on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from kserve_lmcache.compat import vllm
from kserve_lmcache.compat.lmcache import configuration as lmcache
from kserve_lmcache.config import keys
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.settings import (
    FINGERPRINTS,
    LOG_FORMATS,
    LOG_LEVELS,
    REMOTE_CONNECTORS,
    ROUTE_GROUPS,
    parse_route_groups,
)
from kserve_lmcache.config.stores import REDIS_SCHEMES, TLS_SCHEMES
from kserve_lmcache.config.values import is_size
from kserve_lmcache.errors import Problem
from kserve_lmcache.redaction import redact, redact_urls

Rule = Callable[[Configuration, str], Iterator[Problem]]

_TIMEOUTS = (
    "remote_connect_timeout",
    "remote_lookup_timeout",
    "remote_load_timeout",
    "remote_write_timeout",
)
_POSITIVE = (
    "chunk_size",
    "max_local_cpu_size",
    "blocking_timeout_secs",
    "lookup_timeout_ms",
    "remote_queue_size",
    "max_body_size",
    "max_concurrent_requests",
    "request_timeout",
    *_TIMEOUTS,
)
_LONGEST_TIMEOUT = 60.0  # seconds; more is no deadline
_SERDES = {
    "cachegen": "knows a few models only and changes what it stores",
    "kivi": "is not implemented in LMCache",
}
_NOT_ON_CPU = ("use_layerwise", "enable_blending", "use_gds", "save_unfull_chunk")
_TLS_SETTINGS = ("remote_ca_file", "remote_cert_file", "remote_key_file")
_CREDENTIALS = ("remote_username", "remote_password", "remote_password_file")
# LMCache's connector for sentinels stores nothing, and it has none for the others.
_OURS_ALONE = ("redis-sentinel", "redis-cluster", "unix")
_OF_LMCACHES_DISK = ("use_odirect", "disk_io_threads")
_DANGEROUS = {
    "remote_config_url": "would post the whole environment to that address",
    "internal_api_server_enabled": "shows every variable, passwords included, to whoever asks",
    "run_script_api_enabled": "runs whatever code it is sent",
}


def _problem(configuration: Configuration, name: str, what: str, fix: str) -> Problem:
    return Problem(f"{name} {what}", configuration.source(name), fix)


def _ranges(configuration: Configuration, device: str) -> Iterator[Problem]:
    for name in configuration.values:
        key, value = keys.table()[name], configuration.get(name)
        if value is None:
            continue
        if name in _POSITIVE and not value > 0:
            fix = f"Set {name} to more than 0."
            yield _problem(configuration, name, f"must be positive, got {value}", fix)
        elif name in _TIMEOUTS and value > _LONGEST_TIMEOUT:
            fix = f"Set {name} to at most {_LONGEST_TIMEOUT:g}."
            yield _problem(configuration, name, f"of {value:g} seconds is no deadline", fix)
        elif name in ("remote_ttl", "drain_timeout") and value < 0:
            what = "no time to live" if name == "remote_ttl" else "none"
            fix = f"Set {name} to seconds, or to 0 for {what}."
            yield _problem(configuration, name, f"must not be negative, got {value}", fix)
        elif is_size(key) and not (value >= 0 and math.isfinite(value)):
            fix = f"Set {name} to a size in GB, for example 2.0 or 512Mi."
            yield _problem(configuration, name, f"must be a size, got {value}", fix)


def _dangerous(configuration: Configuration, device: str) -> Iterator[Problem]:
    for name, reason in _DANGEROUS.items():
        if name in keys.table() and configuration.get(name):
            yield _problem(configuration, name, reason, "Leave it out.")


def _names(configuration: Configuration, device: str) -> Iterator[Problem]:
    policies = lmcache.cache_policies()
    policy = configuration.get("cache_policy")
    if policy.upper() not in policies:
        what = f"is {policy!r}, which LMCache does not know"
        fix = f"Use one of {', '.join(policies)}."
        yield _problem(configuration, "cache_policy", what, fix)
    algorithm = configuration.get("pre_caching_hash_algorithm")
    if algorithm != "builtin" and not vllm.knows_hash_algorithm(algorithm):
        what = f"is {algorithm!r}, which vLLM does not know: LMCache would use another, silently"
        yield _problem(
            configuration, "pre_caching_hash_algorithm", what, "Use sha256_cbor (the default)."
        )


def _own(configuration: Configuration, device: str) -> Iterator[Problem]:
    fingerprint = configuration.get("model_fingerprint")
    if fingerprint not in FINGERPRINTS:
        what = f"is {fingerprint!r}, which is none of {', '.join(FINGERPRINTS)}"
        yield _problem(configuration, "model_fingerprint", what, "Use sampled (the default).")
    who = configuration.get("remote_connector")
    if who not in REMOTE_CONNECTORS:
        what = f"is {who!r}, which is none of {', '.join(REMOTE_CONNECTORS)}"
        yield _problem(configuration, "remote_connector", what, "Use kserve (the default).")
    log_format = configuration.get("log_format")
    if log_format not in LOG_FORMATS:
        what = f"is {log_format!r}, which is none of {', '.join(LOG_FORMATS)}"
        yield _problem(configuration, "log_format", what, "Use text (the default).")
    log_level = configuration.get("log_level")
    if log_level not in LOG_LEVELS:
        what = f"is {log_level!r}, which is none of {', '.join(LOG_LEVELS)}"
        yield _problem(configuration, "log_level", what, "Use info (the default).")
    for group in parse_route_groups(configuration.get("enable_routes")):
        if group not in ROUTE_GROUPS:
            what = f"has {group!r}, which is none of {', '.join(ROUTE_GROUPS)}"
            yield _problem(configuration, "enable_routes", what, "Leave it out.")
    if configuration.get("pre_caching_hash_algorithm") == "builtin":
        what = "is builtin, which two texts can easily be made to share: a hit would be wrong"
        fix = "Use sha256_cbor (the default)."
        yield _problem(configuration, "pre_caching_hash_algorithm", what, fix)


def _tiers(configuration: Configuration, device: str) -> Iterator[Problem]:
    disk, size = configuration.get("local_disk"), configuration.get("max_local_disk_size")
    if disk and not size > 0:
        what = "is not used without max_local_disk_size"
        yield _problem(configuration, "local_disk", what, "Set max_local_disk_size too.")
    if size > 0 and not disk:
        what = "is not used without local_disk"
        yield _problem(configuration, "max_local_disk_size", what, "Set local_disk too.")
    others = ("remote_url", "remote_storage_plugins", "storage_plugins", "gds_path", "maru_path")
    if configuration.get("local_cpu") or disk or any(configuration.get(name) for name in others):
        return
    if configuration.get("enable_p2p") or configuration.get("enable_pd"):
        return
    extra = configuration.get("extra_config") or {}
    if not any(name.startswith("enable_") for name in extra):
        what = "is off and there is no other tier: nothing would ever be kept"
        yield _problem(configuration, "local_cpu", what, "Set another tier, or --offload=off.")


def _disk(configuration: Configuration, device: str) -> Iterator[Problem]:
    """What is for LMCache's own disk tier, in whose place ours is."""
    if not configuration.get("local_disk"):
        return
    sharding = configuration.get("local_disk_path_sharding")
    if sharding != "by_gpu":
        what = f"is {sharding!r}, and by_gpu is all there is"
        fix = "Leave out local_disk_path_sharding."
        yield _problem(configuration, "local_disk_path_sharding", what, fix)
    extra = configuration.get("extra_config") or {}
    for name in _OF_LMCACHES_DISK:
        if name in extra and not configuration.get("gds_path"):
            what = f"holds {name}, which the disk tier does not know"
            yield _problem(configuration, "extra_config", what, f"Leave out {name}.")


def _device(configuration: Configuration, device: str) -> Iterator[Problem]:
    for name in _NOT_ON_CPU:
        if device == "cpu" and name in configuration.values and configuration.get(name):
            yield _problem(configuration, name, "does not work on a CPU", f"Leave {name} out.")


def _layerwise(configuration: Configuration, device: str) -> Iterator[Problem]:
    if configuration.get("use_layerwise"):
        for name in ("remote_url", "local_disk"):
            if configuration.get(name):
                what = f"does not work together with {name}: a layer that fails to load is used"
                fix = f"Leave out use_layerwise or {name}."
                yield _problem(configuration, "use_layerwise", what, fix)


def _unfull_chunks(configuration: Configuration, device: str) -> Iterator[Problem]:
    # LMCache counts the tokens it loaded from the chunk's start, and those it should have from the
    # end of vLLM's own: a chunk that is smaller than the difference can be missing unnoticed.
    for asked in ("save_unfull_chunk", "enable_blending"):  # the second implies the first
        for name in ("remote_url", "local_disk"):
            if configuration.get(asked) and configuration.get(name):
                what = f"does not work together with {name}: a chunk that fails to load is used"
                yield _problem(configuration, asked, what, f"Leave out {asked} or {name}.")


def _serde(configuration: Configuration, device: str) -> Iterator[Problem]:
    serde = configuration.get("remote_serde")
    if serde not in (None, "naive"):
        what = f"is {serde}, which {_SERDES.get(serde, 'LMCache does not know')}"
        yield _problem(configuration, "remote_serde", what, "Use naive.")


def _remote(configuration: Configuration, device: str) -> Iterator[Problem]:
    url = configuration.get("remote_url")
    scheme = ""
    if url:
        try:
            split = urlsplit(url)
            scheme, _ = split.scheme, split.port if "," not in split.netloc else None
        except ValueError as error:
            what = f"is {redact_urls(url)!r}, which is no URL ({error})"
            yield _problem(configuration, "remote_url", what, "Write SCHEME://HOST:PORT.")
            return
        yield from _scheme(configuration, url, scheme)
    for name in (*_CREDENTIALS, *_TLS_SETTINGS):
        if not configuration.get(name):
            continue
        if not url:
            what = "is set and remote_url is not"
            yield _problem(configuration, name, what, f"Set remote_url, or leave {name} out.")
        elif scheme not in REDIS_SCHEMES:
            what = f"is for Redis and Valkey, and remote_url is {scheme}://"
            yield _problem(configuration, name, what, f"Leave {name} out.")
        elif name in _TLS_SETTINGS and scheme not in TLS_SCHEMES:
            what = f"is for TLS, and remote_url is {scheme}://, which is not encrypted"
            yield _problem(configuration, name, what, "Use rediss:// or valkeys://.")
    if bool(configuration.get("remote_cert_file")) != bool(configuration.get("remote_key_file")):
        missing, present = ("remote_key_file", "remote_cert_file")
        if configuration.get("remote_key_file"):
            missing, present = present, missing
        yield _problem(configuration, present, f"needs {missing} as well", f"Set {missing}.")


def _scheme(configuration: Configuration, url: str, scheme: str) -> Iterator[Problem]:
    shown = redact_urls(url)
    if configuration.get("remote_connector") == "lmcache" and scheme in _OURS_ALONE:
        what = f"is {shown!r}, which LMCache's own connector cannot use"
        fix = "Leave out remote_connector, or use redis:// or rediss://."
        yield _problem(configuration, "remote_url", what, fix)
    elif not (
        scheme in REDIS_SCHEMES
        or configuration.get("remote_storage_plugins")
        or lmcache.takes_remote_url(url)
    ):
        what = f"is {shown!r}, a scheme that LMCache does not know: it would turn every tier off"
        schemes = sorted({*lmcache.remote_schemes(), *(f"{s}://" for s in REDIS_SCHEMES)})
        yield _problem(configuration, "remote_url", what, f"Use one of {', '.join(schemes)}.")


def _lmcache(configuration: Configuration, device: str) -> Iterator[Problem]:
    """LMCache's own check of features that need each other."""
    values = configuration.lmcache_values()
    try:
        used = lmcache.effective_values(values)
    except ValueError as error:
        what = f"LMCache refuses it: {redact(str(error))}"
        where = ", ".join(
            sorted({configuration.source(n) for n in values if n.startswith("enable_")})
        )
        yield Problem(what, where or "the configuration", "Set what it needs, or leave it out.")
        return
    for name, value in values.items():
        if used[name] != value:
            shown = redact(used[name], name)
            what = f"is {redact(value, name)!r}, and LMCache makes it {shown!r} for another setting"
            yield _problem(configuration, name, what, f"Leave {name} out.")


# Without those that import parts of the engine, which takes seconds.
FAST: tuple[Rule, ...] = (
    _ranges,
    _dangerous,
    _own,
    _tiers,
    _disk,
    _device,
    _layerwise,
    _unfull_chunks,
    _serde,
    _remote,
    _lmcache,
)
ALL: tuple[Rule, ...] = (*FAST, _names)
