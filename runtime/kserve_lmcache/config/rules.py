"""The rules of a configuration whose values all have the right type.

LMCache reacts to most of these mistakes by turning a tier, or all offloading, off while the server
runs on. Most rules are rows of :data:`TABLE`. A rule that needs more is a function below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kserve_lmcache.compat import vllm
from kserve_lmcache.compat.lmcache import configuration as lmcache
from kserve_lmcache.config import cache_rules, mode_rules, ranges, store_url
from kserve_lmcache.config.configuration import show
from kserve_lmcache.config.rule import (
    Check,
    Context,
    Rule,
    conflict,
    forbidden,
    needs,
    needs_lmcaches_copy,
    not_on_cpu,
    redis_only,
    sentinels_only,
    tls_only,
)
from kserve_lmcache.config.settings import (
    ROUTE_GROUPS,
    SETTINGS,
    parse_route_groups,
)
from kserve_lmcache.config.store_url import StoreURLError
from kserve_lmcache.config.stores import REDIS_SCHEMES, SENTINEL_SCHEMES
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, REMOTE_PLUGIN
from kserve_lmcache.errors import Problem
from kserve_lmcache.redaction import redact_text


def _not_for_disk(option: str) -> Rule:
    # An option of LMCache's own disk tier, which the disk tier of this runtime replaces.
    return Rule(
        "extra_config",
        lambda c: c["local_disk"] and option in (c["extra_config"] or {}) and not c["gds_path"],
        f"has {option}, which the disk tier does not know",
        f"Remove {option}.",
    )


def _locations(context: Context) -> set[str]:
    """LMCache's names of the tiers that exist: its own, and the plugins of the tiers of ours."""
    stock = context["remote_connector"] == "lmcache"
    remote = "RemoteBackend" if stock else f"RemoteBackend-{REMOTE_PLUGIN.name}"
    tiers = {
        "LocalCPUBackend": context["local_cpu"],
        f"RemoteBackend-{DISK_PLUGIN.name}": context["local_disk"],
        remote: context["remote_url"],
        "PDBackend": context["enable_pd"],
        "P2PBackend": context["enable_p2p"],
        "GdsBackend": context["gds_path"],
        "MaruBackend": context["maru_path"],
        **{f"RemoteBackend-{name}": True for name in context["remote_storage_plugins"] or ()},
        **{name: True for name in context["storage_plugins"] or ()},
    }
    return {name for name, exists in tiers.items() if exists}


# ~, $VARIABLE and ${VARIABLE} of a shell, and $(VARIABLE) of Kubernetes.
_UNEXPANDED = re.compile(r"^\s*(file://)?~|\$")
_TLS_FILES = ("remote_ca_file", "remote_cert_file", "remote_key_file")
_OF_SENTINELS = (
    "remote_sentinel_username",
    "remote_sentinel_password",
    "remote_sentinel_password_file",
)
_CREDENTIALS = (
    "remote_username",
    "remote_password",
    "remote_password_file",
    *_OF_SENTINELS,
    *_TLS_FILES,
)
_FROM_BELOW = ("remote_url", "local_disk")  # tiers whose loads can fail
_TIERS = (
    "local_cpu",
    "local_disk",
    "remote_url",
    "remote_storage_plugins",
    "storage_plugins",
    "gds_path",
    "maru_path",
    "enable_p2p",
    "enable_pd",
)

TABLE: tuple[Rule, ...] = (
    # LMCache gives secrets away, or runs the code of a stranger.
    forbidden("remote_config_url", "sends every environment variable to that address"),
    forbidden(
        "internal_api_server_enabled",
        "shows every environment variable, passwords included, to any client",
    ),
    forbidden("run_script_api_enabled", "runs the code that any client sends"),
    forbidden("enable_kv_events", "announces hashes of LMCache's, which no router computes"),
    # LMCache loads wrong KV.
    Rule(
        "pre_caching_hash_algorithm",
        lambda c: c["pre_caching_hash_algorithm"] == "builtin",
        "is builtin, for which collisions are easy to make: colliding texts share their KV",
        "Use sha256_cbor (the default).",
    ),
    Rule(
        "remote_serde",
        lambda c: c["remote_serde"] not in (None, "naive"),
        "is {value}, but only naive keeps the KV of every model exact",
        "Use naive (the default).",
    ),
    *(
        conflict("use_layerwise", tier, "a layer that fails to load is used all the same")
        for tier in _FROM_BELOW
    ),
    # LMCache counts the loaded tokens from the start of a chunk, and the expected tokens from the
    # end of vLLM's own. A missing chunk that is smaller than the difference goes unnoticed.
    # Blending stores such chunks too.
    *(
        conflict(key, tier, "a chunk that fails to load is used all the same")
        for key in ("save_unfull_chunk", "enable_blending")
        for tier in _FROM_BELOW
    ),
    # A key has no effect.
    needs("local_disk", "max_local_disk_size"),
    needs("max_local_disk_size", "local_disk"),
    needs("tenant_required", "tenant_header"),
    needs("tenant_local_quota_size", "tenant_header"),
    needs("tenant_remote_quota_size", "tenant_header"),
    needs("tenant_remote_quota_size", "remote_url"),
    *(needs(key, "remote_url") for key in _CREDENTIALS),
    needs("remote_cert_file", "remote_key_file"),
    needs("remote_key_file", "remote_cert_file"),
    Rule(
        "local_cpu",
        lambda c: (
            not any(c[name] for name in _TIERS)
            and not any(name.startswith("enable_") for name in c["extra_config"] or {})
        ),
        "is off and no other tier is set, so nothing is cached",
        "Set a tier, or --offload=off.",
    ),
    # A key does not fit the device, the disk tier or the remote store.
    not_on_cpu("use_gds"),
    Rule(
        "copy",
        lambda c: c.device == "cpu" and c["copy"] == "lmcache",
        "is lmcache, but LMCache has no kernels for a CPU",
    ),
    *(
        needs_lmcaches_copy(key)
        for key in (
            "use_layerwise",
            "enable_blending",
            "save_unfull_chunk",
            # The scheduler would make keys without the layout of the workers' KV.
            "enable_scheduler_bypass_lookup",
        )
    ),
    Rule(
        "local_disk_path_sharding",
        lambda c: c["local_disk"] and c["local_disk_path_sharding"] != "by_gpu",
        "is {value!r}, but the disk tier knows by_gpu alone",
    ),
    Rule(
        "local_disk",
        lambda c: any(_UNEXPANDED.search(part) for part in (c["local_disk"] or "").split(",")),
        "is {value!r}: nothing expands ~ or a variable there, so a directory of that name would "
        "be made",
        "Write the whole path, for example /cache.",
    ),
    Rule(
        "store_location",
        lambda c: c["store_location"] and c["store_location"] not in _locations(c),
        "is {value!r}, which is no tier of this configuration: nothing would be stored",
    ),
    Rule(
        "retrieve_locations",
        lambda c: not set(c["retrieve_locations"] or ()) <= _locations(c),
        "is {value!r}, and not every one is a tier of this configuration",
    ),
    *(_not_for_disk(option) for option in ("use_odirect", "disk_io_threads")),
    *(redis_only(key) for key in _CREDENTIALS),
    *(tls_only(key) for key in _TLS_FILES),
    *(sentinels_only(key) for key in _OF_SENTINELS),
)


_DEFAULT_GRACE = 30.0  # seconds; terminationGracePeriodSeconds of a pod that does not say


def _ranges(context: Context) -> Iterator[Problem]:
    """A number is in the range of its key."""
    for name in context.configuration.values:
        allowed = ranges.of(name)
        value = context[name]
        if allowed and value is not None and not allowed.contains(value):
            message = f"is {value}, but must be {allowed.text}"
            yield context.problem(name, message, f"Correct {name}.")


def _choices(context: Context) -> Iterator[Problem]:
    """A setting has one of its choices, and every group of routes exists."""
    for setting in SETTINGS:
        value = context[setting.name]
        if setting.choices and value not in setting.choices:
            message = f"is {value!r}, which is none of {', '.join(setting.choices)}"
            yield context.problem(setting.name, message, f"Use {setting.default} (the default).")
    for group in parse_route_groups(context["enable_routes"]):
        if group not in ROUTE_GROUPS:
            message = f"has {group!r}, which is none of {', '.join(ROUTE_GROUPS)}"
            yield context.problem("enable_routes", message, f"Remove {group}.")


def _shutdown(context: Context) -> Iterator[Problem]:
    """A server ends before Kubernetes kills it.

    The time of the pod is not told to its containers. Where nobody sets it, Kubernetes' default
    may be wrong, so a longer shutdown is a note and no problem.
    """
    names = ("drain_delay", "drain_timeout", "termination_grace_period")
    delay, timeout, known = (context[name] for name in names)
    grace = known or _DEFAULT_GRACE
    if not delay + timeout >= grace:
        return
    sum_is = f"drain_delay ({delay:g} s) and drain_timeout ({timeout:g} s) together are not less"
    if known:
        sources = dict.fromkeys(map(context.configuration.source, names))
        message = f"{sum_is} than termination_grace_period ({known:g} s): the pod would be killed"
        fix = "Lower one of them, or raise terminationGracePeriodSeconds and the setting."
        yield Problem(message, ", ".join(each for each in sources if each != "default"), fix)
        return
    context.configuration.notes.append(
        f"{sum_is} than the {grace:g} s that Kubernetes gives a pod by default. Set "
        "termination_grace_period to the pod's terminationGracePeriodSeconds"
    )


def _remote_url(context: Context) -> Iterator[Problem]:
    """A client of this runtime or of LMCache takes the URL."""
    url = context["remote_url"]
    if not url:
        return
    shown, scheme = show("remote_url", url), context.scheme()
    known = scheme in REDIS_SCHEMES or context["remote_storage_plugins"]
    if scheme and not (known or lmcache.takes_remote_url(f"{scheme}://")):
        schemes = sorted({*lmcache.remote_schemes(), *(f"{name}://" for name in REDIS_SCHEMES)})
        message = (
            f"is {shown!r}, a scheme that LMCache does not know: LMCache would turn all tiers off"
        )
        yield context.problem("remote_url", message, f"Use one of {', '.join(schemes)}.")
        return
    try:
        store_url.parse(url)
    except StoreURLError as error:
        for message, fix in error.faults:
            yield context.problem("remote_url", f"{message} ({shown})", fix)
        return
    stock = context["remote_connector"] == "lmcache"
    # LMCache's connector for sentinels stores nothing, and LMCache has none for the others.
    if stock and scheme in (*SENTINEL_SCHEMES, "redis-cluster", "unix"):
        message = f"is {shown!r}, which LMCache's own connector cannot use"
        fix = "Remove remote_connector, or use redis:// or rediss://."
        yield context.problem("remote_url", message, fix)
    elif not known and not lmcache.takes_remote_url(url):
        message = f"is {shown!r}, which LMCache's connector for {scheme}:// does not take"
        yield context.problem("remote_url", message, "Correct remote_url.")


def _lmcache_accepts(context: Context) -> Iterator[Problem]:
    """LMCache's own check accepts the configuration, and changes no value of it."""
    configuration = context.configuration
    values = configuration.lmcache_values()
    try:
        effective = lmcache.effective_values(values)
    except ValueError as error:
        features = {configuration.source(name) for name in values if name.startswith("enable_")}
        source = ", ".join(sorted(features)) or "the configuration"
        message = f"LMCache refuses the configuration: {redact_text(str(error))}"
        yield Problem(message, source, "Set what the feature needs, or remove the feature.")
        return
    for name, value in values.items():
        if effective[name] != value:
            message = (
                f"is {show(name, value)!r}, but LMCache changes it to "
                f"{show(name, effective[name])!r} because of another key"
            )
            yield context.problem(name, message, f"Remove {name}.")


def _engine_names(context: Context) -> Iterator[Problem]:
    """LMCache has the cache policy, and vLLM has the hash algorithm."""
    policies = lmcache.cache_policies()
    policy = context["cache_policy"]
    if policy.upper() not in policies:
        message = f"is {policy!r}, which LMCache does not know"
        yield context.problem("cache_policy", message, f"Use one of {', '.join(policies)}.")
    algorithm = context["pre_caching_hash_algorithm"]
    if algorithm != "builtin" and not vllm.knows_hash_algorithm(algorithm):
        message = f"is {algorithm!r}, which vLLM does not know: LMCache would use another hash"
        fix = "Use sha256_cbor (the default)."
        yield context.problem("pre_caching_hash_algorithm", message, fix)


FAST: tuple[Check, ...] = (
    _ranges,
    _choices,
    _shutdown,
    *TABLE,
    cache_rules.check,
    mode_rules.check,
    _remote_url,
    _lmcache_accepts,
)
# The last check reads files of the engine's packages.
ALL: tuple[Check, ...] = (*FAST, _engine_names)
