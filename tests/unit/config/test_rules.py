"""Every rule, with the exact text of its problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_lmcache.config import keys, rules
from kserve_lmcache.config.rule import Context
from kserve_lmcache.config.settings import SETTINGS
from tests.support.configuration import problems, resolved

IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
DISK = "local_disk: /cache\nmax_local_disk_size: 5\n"
REDIS = "remote_url: redis://redis:6379\n"
TENANT = "tenant_header: X-Tenant-Id\n"
TLS = "remote_url: rediss://redis:6379\n"
SIZE = "must be a size in GB, for example 2.0 or 512Mi"
LISTS = "needs Redis or Valkey, and remote_connector=kserve: other stores list no chunks"
NO_LISTS = ("remote_url: lm://a:1", f"{REDIS}remote_connector: lmcache")
POSITIVE_SIZE = "must be a size in GB greater than 0, for example 2.0 or 512Mi"
TIMEOUT = "must be greater than 0 and at most 60 seconds"
GROUPS = (
    "cache, docs, lora, profile, reset-cache, sleep, collective-rpc, server-info, weights, "
    "elastic, fault-tolerance, repository"
)
USED = "fails to load is used all the same"

# A file, and the one problem of it: the line, the message and the fix.
FILES = {
    # Ranges
    "chunk_size: 0": "1: chunk_size is 0, but must be greater than 0. Correct chunk_size.",
    "max_local_cpu_size: 0": (
        f"1: max_local_cpu_size is 0.0, but {POSITIVE_SIZE}. Correct max_local_cpu_size."
    ),
    "max_local_cpu_size: .inf": (
        f"1: max_local_cpu_size is inf, but {POSITIVE_SIZE}. Correct max_local_cpu_size."
    ),
    "reserve_local_cpu_size: -1": (
        f"1: reserve_local_cpu_size is -1.0, but {SIZE}. Correct reserve_local_cpu_size."
    ),
    "max_concurrent_requests: 0": (
        "1: max_concurrent_requests is 0, but must be greater than 0. "
        "Correct max_concurrent_requests."
    ),
    "drain_timeout: -1": "1: drain_timeout is -1.0, but must be 0 or greater. "
    "Correct drain_timeout.",
    "drain_delay: -1": "1: drain_delay is -1.0, but must be 0 or greater. Correct drain_delay.",
    "termination_grace_period: 0": (
        "1: termination_grace_period is 0.0, but must be greater than 0. "
        "Correct termination_grace_period."
    ),
    f"{REDIS}remote_ttl: -1": "2: remote_ttl is -1, but must be 0 or greater. Correct remote_ttl.",
    f"{REDIS}remote_lookup_timeout: 0": (
        f"2: remote_lookup_timeout is 0.0, but {TIMEOUT}. Correct remote_lookup_timeout."
    ),
    f"{REDIS}remote_load_timeout: 600": (
        f"2: remote_load_timeout is 600.0, but {TIMEOUT}. Correct remote_load_timeout."
    ),
    "tenant_required: true": (
        "1: tenant_required has no effect without tenant_header. "
        "Set tenant_header, or remove tenant_required."
    ),
    "tenant_local_quota_size: 1": (
        "1: tenant_local_quota_size has no effect without tenant_header. "
        "Set tenant_header, or remove tenant_local_quota_size."
    ),
    f"{TENANT}tenant_local_quota_size: 0": (
        f"2: tenant_local_quota_size is 0.0, but {POSITIVE_SIZE}. Correct tenant_local_quota_size."
    ),
    f"{REDIS}tenant_remote_quota_size: 1": (
        "2: tenant_remote_quota_size has no effect without tenant_header. "
        "Set tenant_header, or remove tenant_remote_quota_size."
    ),
    f"{TENANT}tenant_remote_quota_size: 1": (
        "2: tenant_remote_quota_size has no effect without remote_url. "
        "Set remote_url, or remove tenant_remote_quota_size."
    ),
    **{
        f"{TENANT}tenant_remote_quota_size: 1\n{store}": (
            f"2: tenant_remote_quota_size {LISTS}. Remove tenant_remote_quota_size."
        )
        for store in NO_LISTS
    },
    **{
        f"enable_routes: cache\n{store}": (
            f"1: enable_routes has cache, which {LISTS}. Remove cache."
        )
        for store in NO_LISTS
    },
    "cache_server_directory: /run/cache": (
        "1: cache_server_directory has no effect with mode=in-process. "
        "Set mode=multiprocess, or remove cache_server_directory."
    ),
    "cache_admin_key_file: /nowhere": (
        "1: cache_admin_key_file has no effect without the routes of the group cache. "
        "Set enable_routes=cache, or remove cache_admin_key_file."
    ),
    "enable_routes: cache\nuse_layerwise: true\ncopy: lmcache": (
        "1: enable_routes has cache, which does not find the chunks of use_layerwise. "
        "Remove cache, or use_layerwise."
    ),
    "body_timeout: 0": "1: body_timeout is 0.0, but must be greater than 0. Correct body_timeout.",
    # Choices
    "enable_routes: sleep,walk": (
        f"1: enable_routes has 'walk', which is none of {GROUPS}. Remove walk."
    ),
    **{
        f"{setting.name}: other": (
            f"1: {setting.name} is 'other', which is none of {', '.join(setting.choices)}. "
            f"Use {setting.default} (the default)."
        )
        for setting in SETTINGS
        if setting.choices
    },
    "cache_policy: OLDEST": (
        "1: cache_policy is 'OLDEST', which LMCache does not know. Use one of LRU, LFU, FIFO, MRU."
    ),
    "pre_caching_hash_algorithm: md5": (
        "1: pre_caching_hash_algorithm is 'md5', which vLLM does not know: LMCache would use "
        "another hash. Use sha256_cbor (the default)."
    ),
    # Secrets and foreign code
    "remote_config_url: http://service": (
        "1: remote_config_url sends every environment variable to that address. "
        "Remove remote_config_url."
    ),
    "internal_api_server_enabled: true": (
        "1: internal_api_server_enabled shows every environment variable, passwords included, to "
        "any client. Remove internal_api_server_enabled."
    ),
    **{
        f"{name}: true": f"1: {name} runs the code that any client sends. Remove {name}."
        for name in ("run_script_api_enabled",)
        if name in keys.table()  # LMCache 0.5.1 has no such key
    },
    **{
        f"{name}: true": (
            f"1: {name} announces hashes of LMCache's, which no router computes. Remove {name}."
        )
        for name in ("enable_kv_events",)
        if name in keys.table()
    },
    # Wrong KV
    "pre_caching_hash_algorithm: builtin": (
        "1: pre_caching_hash_algorithm is builtin, for which collisions are easy to make: "
        "colliding texts share their KV. Use sha256_cbor (the default)."
    ),
    "remote_serde: cachegen": (
        "1: remote_serde is cachegen, but only naive keeps the KV of every model exact. "
        "Use naive (the default)."
    ),
    **{
        f"{key}: true\n{tier}\ncopy: lmcache": (
            f"1: {key} does not work together with {name}: a {unit} that {USED}. "
            f"Remove {key} or {name}."
        )
        for key, unit in (
            ("use_layerwise", "layer"),
            ("save_unfull_chunk", "chunk"),
            ("enable_blending", "chunk"),
        )
        for tier, name in ((REDIS, "remote_url"), (DISK, "local_disk"))
    },
    # No effect
    "local_disk: /cache": (
        "1: local_disk has no effect without max_local_disk_size. "
        "Set max_local_disk_size, or remove local_disk."
    ),
    "max_local_disk_size: 5": (
        "1: max_local_disk_size has no effect without local_disk. "
        "Set local_disk, or remove max_local_disk_size."
    ),
    f"{TLS}remote_cert_file: /cert.pem": (
        "2: remote_cert_file has no effect without remote_key_file. "
        "Set remote_key_file, or remove remote_cert_file."
    ),
    f"{TLS}remote_key_file: /key.pem": (
        "2: remote_key_file has no effect without remote_cert_file. "
        "Set remote_cert_file, or remove remote_key_file."
    ),
    "local_cpu: false": (
        "1: local_cpu is off and no other tier is set, so nothing is cached. "
        "Set a tier, or --offload=off."
    ),
    # The disk tier
    f"{DISK}local_disk_path_sharding: by_size": (
        "3: local_disk_path_sharding is 'by_size', but the disk tier knows by_gpu alone. "
        "Remove local_disk_path_sharding."
    ),
    **{
        f"{DISK}extra_config: {{{option}: 1}}": (
            f"3: extra_config has {option}, which the disk tier does not know. Remove {option}."
        )
        for option in ("use_odirect", "disk_io_threads")
    },
    # The remote store
    "remote_url: redis://redis:port": (
        "1: remote_url names a port that is no number up to 65535 (redis://…). Correct the port."
    ),
    "remote_url: redis-sentinel://redis:26379/main\nremote_connector: lmcache": (
        "1: remote_url is 'redis-sentinel://redis:26379/main', which LMCache's own connector "
        "cannot use. Remove remote_connector, or use redis:// or rediss://."
    ),
    # Taken, and then not done
    "local_disk: file://~/kv\nmax_local_disk_size: 5": (
        "1: local_disk is '~/kv': nothing expands ~ or a variable there, so a directory of that "
        "name would be made. Write the whole path, for example /cache."
    ),
    "local_disk: /a,$HOME/kv\nmax_local_disk_size: 5": (
        "1: local_disk is '/a,$HOME/kv': nothing expands ~ or a variable there, so a directory of "
        "that name would be made. Write the whole path, for example /cache."
    ),
    f"{REDIS}store_location: RemoteBackend": (
        "2: store_location is 'RemoteBackend', which is no tier of this configuration: nothing "
        "would be stored. Remove store_location."
    ),
    f"{REDIS}retrieve_locations: LocalCPUBackend,RemoteBackend": (
        "2: retrieve_locations is ['LocalCPUBackend', 'RemoteBackend'], and not every one is a "
        "tier of this configuration. Remove retrieve_locations."
    ),
    # LMCache's own check
    "enable_controller: true": (
        "1: LMCache refuses the configuration: controller_pull_url is required when "
        "enable_controller=True. Set what the feature needs, or remove the feature."
    ),
    "enable_p2p: true": (
        "1: LMCache refuses the configuration: assert self.enable_controller. "
        "Set what the feature needs, or remove the feature."
    ),
    "save_unfull_chunk: false\nenable_blending: true\ncopy: lmcache": (
        "1: save_unfull_chunk is False, but LMCache changes it to True because of another key. "
        "Remove save_unfull_chunk."
    ),
}
# Keys that work with LMCache's own copy alone.
LMCACHES_COPY = (
    "use_layerwise",
    "save_unfull_chunk",
    "enable_blending",
    "enable_scheduler_bypass_lookup",
)
TLS_FILES = ("remote_ca_file", "remote_cert_file", "remote_key_file")
SENTINELS = (
    "remote_sentinel_username",
    "remote_sentinel_password",
    "remote_sentinel_password_file",
)
CREDENTIALS = (
    "remote_username",
    "remote_password",
    "remote_password_file",
    *SENTINELS,
    *TLS_FILES,
)


@pytest.mark.parametrize("file", FILES)
def test_a_file_with_one_problem(tmp_path: Path, file: str) -> None:
    assert problems(tmp_path, file) == [f"/lmcache.yaml:{FILES[file]}"]


def test_nobody_takes_a_server_out_of_a_balancer_outside_of_kubernetes(tmp_path: Path) -> None:
    assert resolved(tmp_path).get("drain_delay") == 0
    assert resolved(tmp_path).source("drain_delay") == "default outside of Kubernetes"
    assert resolved(tmp_path, **IN_A_POD).get("drain_delay") == 5
    assert resolved(tmp_path, "drain_delay: 3").get("drain_delay") == 3


@pytest.mark.parametrize(
    ("file", "environ", "source"),
    [
        ("termination_grace_period: 25", IN_A_POD, "/lmcache.yaml:1"),
        (
            "drain_timeout: 25\ntermination_grace_period: 30",
            IN_A_POD,
            "/lmcache.yaml:1, /lmcache.yaml:2",
        ),
        (
            "termination_grace_period: 60",
            {"KSERVE_LMCACHE_DRAIN_DELAY": "45"},
            "KSERVE_LMCACHE_DRAIN_DELAY, /lmcache.yaml:1",
        ),
    ],
)
def test_a_shutdown_that_is_longer_than_the_pods_grace_period(
    tmp_path: Path, file: str, environ: dict[str, str], source: str
) -> None:
    (problem,) = problems(tmp_path, file, **environ)
    assert problem.startswith(f"{source}: drain_delay (")
    assert "together are not less than termination_grace_period (" in problem


def test_a_grace_period_that_nobody_names_is_kubernetes_default(tmp_path: Path) -> None:
    assert resolved(tmp_path).notes == []
    for file in ("drain_timeout: 25", "drain_delay: 10"):
        found = resolved(tmp_path, file, **IN_A_POD)
        assert found.problems == []
        assert "not less than the 30 s that Kubernetes gives a pod" in found.notes[0]
    longer = resolved(tmp_path, "drain_timeout: 50\ntermination_grace_period: 60")
    assert (longer.problems, longer.notes) == ([], [])


def test_a_key_that_does_not_work_on_a_cpu(tmp_path: Path) -> None:
    file = "gds_path: /gds\nuse_gds: true"
    expected = "/lmcache.yaml:2: use_gds does not work on a CPU. Remove use_gds."
    assert expected in problems(tmp_path, file, device="cpu")
    assert expected not in problems(tmp_path, file, device="cuda")


@pytest.mark.parametrize("name", LMCACHES_COPY)
def test_a_key_that_needs_lmcaches_own_copy(tmp_path: Path, name: str) -> None:
    expected = (
        f"/lmcache.yaml:1: {name} does not work with copy=blocks, which copies whole blocks of all "
        f"layers. Remove {name}."
    )
    for device in ("cpu", "cuda"):
        assert expected in problems(tmp_path, f"{name}: true", device=device)
    with_lmcaches = f"{name}: true\ncopy: lmcache"
    assert expected not in problems(tmp_path, with_lmcaches, device="cuda")


def test_lmcaches_own_copy_needs_an_accelerator(tmp_path: Path) -> None:
    assert problems(tmp_path, "copy: lmcache", device="cuda") == []
    assert problems(tmp_path, "copy: lmcache", device="cpu") == [
        "/lmcache.yaml:1: copy is lmcache, but LMCache has no kernels for a CPU. Remove copy."
    ]


def credential(tmp_path: Path, name: str, file: str | None = None) -> list[str]:
    """The problems of a credential alone. Both files of mutual TLS are set."""
    partner = {"remote_cert_file": "remote_key_file", "remote_key_file": "remote_cert_file"}
    names = (name, partner.get(name, name))
    variables = {keys.table()[each].variable: "/x" for each in names}
    found = problems(tmp_path, file, **variables)
    start = f"{keys.table()[name].variable}: {name} "
    return [problem.removeprefix(start) for problem in found if problem.startswith(start)]


@pytest.mark.parametrize("name", CREDENTIALS)
def test_credentials_need_a_store_that_takes_them(tmp_path: Path, name: str) -> None:
    assert credential(tmp_path, name) == [
        f"has no effect without remote_url. Set remote_url, or remove {name}."
    ]
    assert credential(tmp_path, name, "remote_url: lm://server:8080") == [
        f"is for Redis and Valkey, but remote_url names another store. Remove {name}."
    ]
    without_sentinels = [f"is for sentinels, but remote_url names none. Remove {name}."]
    without_tls = [
        "is for TLS, but remote_url has a scheme without TLS. Use rediss:// or valkeys://."
    ]
    assert credential(tmp_path, name, REDIS) == (
        without_tls if name in TLS_FILES else without_sentinels if name in SENTINELS else []
    )
    assert credential(tmp_path, name, TLS) == (without_sentinels if name in SENTINELS else [])
    assert credential(tmp_path, name, "remote_url: rediss-sentinel://a/main") == []


def test_every_row_of_the_table_has_a_test(tmp_path: Path) -> None:
    broken = set()
    stores = ("remote_url: lm://a:1", REDIS, "")
    variables = {keys.table()[name].variable: "/x" for name in CREDENTIALS}
    inputs = [
        *((file, "cuda", {}) for file in FILES),
        *((f"{name}: true", "cpu", {}) for name in (*LMCACHES_COPY, "use_gds")),
        ("copy: lmcache", "cpu", {}),
        *((store, "cuda", variables) for store in stores),
    ]
    for file, device, environ in inputs:
        configuration = resolved(tmp_path, file, device=device, **environ)
        context = Context(configuration, device)
        broken |= {rule for rule in rules.TABLE if rule.is_broken(context)}
    known = {rule for rule in rules.TABLE if rule.key in keys.table()}
    assert [(rule.key, rule.message) for rule in known - broken] == []


def test_an_unknown_scheme_lists_the_known_schemes(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "remote_url: redi://:hunter2@redis:6379")
    start, _, schemes = problem.rstrip(".").partition(" Use one of ")
    assert start == (
        "/lmcache.yaml:1: remote_url is 'redi://…', a scheme that LMCache does not "
        "know: LMCache would turn all tiers off."
    )
    assert {"audit://", "lm://", "redis://", "s3://", "valkeys://"} <= set(schemes.split(", "))


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis:6379",
        "rediss://redis:6379/1",
        "unix:///run/redis.sock?db=1",
        "redis-cluster://a:6379,b:6379",
        "valkey://valkey:6379",
        "lm://server:8080",
        "fs://host:0/path",
        "s3://bucket.s3.region.amazonaws.com",
    ],
)
def test_known_schemes(tmp_path: Path, url: str) -> None:
    assert problems(tmp_path, f"remote_url: {url}") == []
