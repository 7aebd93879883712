"""The settings of this runtime. LMCache's own keys are not among them: see :mod:`.keys`.

A setting takes its value from the first of these sources that has one: its flag, its key in the
YAML file, its variable, its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE_PREFIX = "KSERVE_LMCACHE_"
# Groups of routes that are off by default. The table in server/http/routes.py lists their routes.
ROUTE_GROUPS = (
    "cache",
    "docs",
    "lora",
    "profile",
    "reset-cache",
    "sleep",
    "collective-rpc",
    "server-info",
    "weights",
    "elastic",
    "fault-tolerance",
    "repository",
)

# Choices of the setting ``mode``.
IN_PROCESS, MULTIPROCESS = "in-process", "multiprocess"

# vLLM's variable that turns a group on, as the setting does.
_GROUP_VARIABLES = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lora"}


def parse_route_groups(text: str | None) -> tuple[str, ...]:
    """The groups of a comma-separated list."""
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))


def route_groups(text: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The groups that are on: those of the setting ``enable_routes``, and those of variables."""
    of_variables = (
        group
        for name, group in _GROUP_VARIABLES.items()
        if environ.get(name, "").strip().lower() in ("1", "true")
    )
    return tuple(dict.fromkeys((*parse_route_groups(text), *of_variables)))


@dataclass(frozen=True)
class Setting:
    """A setting of this runtime.

    Attributes:
        name: the key in the YAML file.
        type: ``bool``, ``int``, ``float`` or ``str``. A float that ends in ``_size`` is in GB.
        default: ``None`` for a setting that may be absent.
        help: the text of ``--help`` and of the reference.
        variable: the environment variable. By default the prefix and the name.
        secret: whether the value is never shown and comes from its variable alone. Every process
            of the machine sees a flag, and a file is often a ConfigMap.
        choices: the allowed values. Empty when every value of the type is allowed.
    """

    name: str
    type: type[Any]
    default: Any
    help: str
    variable: str = ""
    secret: bool = False
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """The flag, with dashes."""
        return "--" + self.name.replace("_", "-")

    @property
    def environment_variable(self) -> str:
        """The name of the variable."""
        return self.variable or VARIABLE_PREFIX + self.name.upper()


SETTINGS = (
    Setting(
        "offload",
        bool,
        True,
        "Offload the KV cache by LMCache (on or off).",
    ),
    Setting(
        "offload_required",
        bool,
        True,
        "Do not become ready when offloading cannot start. With false, the server serves "
        "without offloading.",
    ),
    Setting(
        "model_fingerprint",
        str,
        "sampled",
        "How the content of the model is identified: sampled reads pieces of every tensor, "
        "full reads every byte, private shares nothing with other servers.",
        choices=("sampled", "full", "private"),
    ),
    Setting(
        "copy",
        str,
        "blocks",
        "How KV is copied between vLLM and LMCache: blocks copies whole blocks as bytes, lmcache "
        "uses LMCache's own kernels, which a CPU does not have. The server proves either at its "
        "start.",
        choices=("blocks", "lmcache"),
    ),
    Setting(
        "mode",
        str,
        IN_PROCESS,
        "Where the local tier is: in-process keeps it in the memory of vLLM's workers, "
        "multiprocess in a cache server beside the engine.",
        variable="LMCACHE_MODE",
        choices=(IN_PROCESS, MULTIPROCESS),
    ),
    Setting(
        "cache_server_directory",
        str,
        None,
        "Directory in which a cache server of this machine announces itself (command "
        "cache-server), for mode=multiprocess. Where none does, this server starts its own.",
    ),
    Setting(
        "compile_cache_dir",
        str,
        None,
        "Directory that keeps the code that vLLM, torch and Triton compile, for the next start: a "
        "volume that outlives the server and that nobody else may write.",
    ),
    Setting(
        "tenant_header",
        str,
        None,
        "HTTP header that names the tenant of a request, for example X-Tenant-Id. Tenants "
        "share no cached KV.",
    ),
    Setting(
        "tenant_required",
        bool,
        False,
        "Answer 400 to a request for inference without the tenant header. Without this setting, "
        "all such requests are of one tenant.",
    ),
    Setting(
        "tenant_local_quota_size",
        float,
        None,
        "GB of each worker's local tier that one tenant may fill. Its oldest chunks make room for "
        "its new ones.",
    ),
    Setting(
        "tenant_remote_quota_size",
        float,
        None,
        "GB of the remote store that one tenant may fill with this model. Its oldest chunks are "
        "deleted when it has more.",
    ),
    Setting(
        "cache_admin_key_file",
        str,
        None,
        "File with the key that allows the routes of the group cache everything, for a mounted "
        "Secret. Without it, a client acts on its own tenant's cache alone.",
    ),
    Setting(
        "enable_routes",
        str,
        None,
        "Groups of routes to turn on, separated by commas. The table of routes names the groups.",
    ),
    Setting(
        "root_routes",
        bool,
        False,
        "Serve the routes that are below /openai at the root as well, as vLLM's own server does. "
        "The command vllm serve turns it on.",
    ),
    Setting(
        "usage_details",
        bool,
        True,
        "Say in the usage of completions and chat which tiers the cached tokens came from "
        "(prompt_tokens_details.cached_tokens_details).",
    ),
    Setting(
        "max_body_size",
        float,
        0.0625,
        "Largest body of a request, in GB (0.0625 is 64 MiB). A larger body is answered with 413.",
    ),
    Setting(
        "body_timeout",
        float,
        60.0,
        "Seconds that the body of a request may take to arrive. A slower body is answered with "
        "408. A request takes no place of max_concurrent_requests before its body has arrived.",
    ),
    Setting(
        "max_concurrent_requests",
        int,
        None,
        "Largest number of requests that run at a time. One more request is answered with 429 "
        "and does not wait.",
    ),
    Setting(
        "request_timeout",
        float,
        None,
        "Seconds that a request may take, its stream included. A longer request ends with 504.",
    ),
    Setting(
        "drain_delay",
        float,
        5.0,
        "Seconds after SIGTERM in which the server takes new requests, with readiness down: "
        "balancers take the pod out meanwhile. Outside of Kubernetes the default is 0.",
    ),
    Setting(
        "drain_timeout",
        float,
        20.0,
        "Seconds that running requests have to finish after drain_delay.",
    ),
    Setting(
        "termination_grace_period",
        float,
        None,
        "The pod's terminationGracePeriodSeconds. drain_delay and drain_timeout together must be "
        "less. Where it is not set, more than the 30 seconds of Kubernetes is a warning.",
    ),
    Setting(
        "ephemeral_storage",
        int,
        None,
        "Bytes of the container's request for ephemeral-storage. KServe requests the size of the "
        "emptyDir of kvCacheOffloading there, and tells the server the size nowhere else.",
    ),
    Setting(
        "exit_on_engine_death",
        bool,
        True,
        "End the server when its engine dies. With false, the liveness probe has to restart "
        "the server.",
    ),
    Setting(
        "log_format",
        str,
        "text",
        "Format of log records: text, or json with one object on each line.",
        choices=("text", "json"),
    ),
    Setting(
        "log_level",
        str,
        "info",
        "Lowest level that is logged: debug (this server and its libraries), info (warnings "
        "and errors of libraries only), warning or error.",
        choices=("debug", "info", "warning", "error"),
    ),
    Setting(
        "remote_connector",
        str,
        "kserve",
        "Client of the remote store: kserve has deadlines, checksums and reconnection, "
        "lmcache is LMCache's own connector.",
        variable="LMCACHE_REMOTE_CONNECTOR",
        choices=("kserve", "lmcache"),
    ),
    Setting(
        "remote_ttl",
        int,
        86400,
        "Seconds that a chunk stays in the remote store after its last use. With 0, the store "
        "decides.",
        variable="LMCACHE_REMOTE_TTL",
    ),
    Setting(
        "remote_connect_timeout",
        float,
        1.0,
        "Deadline of a connection to the remote store, in seconds. No request waits for a "
        "connection.",
        variable="LMCACHE_REMOTE_CONNECT_TIMEOUT",
    ),
    Setting(
        "remote_lookup_timeout",
        float,
        0.05,
        "Deadline of a lookup in the remote store, in seconds. A prompt has one lookup.",
        variable="LMCACHE_REMOTE_LOOKUP_TIMEOUT",
    ),
    Setting(
        "remote_load_timeout",
        float,
        2.0,
        "Deadline of a load from the remote store, in seconds. A prompt has one load. The "
        "deadline is shorter when computing the prompt takes less time.",
        variable="LMCACHE_REMOTE_LOAD_TIMEOUT",
    ),
    Setting(
        "remote_write_timeout",
        float,
        2.0,
        "Deadline of a write to the remote store, in seconds. A write is a batch of chunks. "
        "No request waits for a write.",
        variable="LMCACHE_REMOTE_WRITE_TIMEOUT",
    ),
    Setting(
        "remote_queue_size",
        float,
        None,
        "Size of the queue of chunks to write, in GB. The queue is in the local tier. The "
        "default is 0.25, or a quarter of the local tier if that is less.",
        variable="LMCACHE_REMOTE_QUEUE_SIZE",
    ),
    Setting(
        "remote_username",
        str,
        None,
        "User of the remote store (Redis ACL).",
        variable="LMCACHE_REMOTE_USERNAME",
    ),
    Setting(
        "remote_password",
        str,
        None,
        "Password of the remote store.",
        variable="LMCACHE_REMOTE_PASSWORD",
        secret=True,
    ),
    Setting(
        "remote_password_file",
        str,
        None,
        "File with the password of the remote store, for a mounted Secret.",
        variable="LMCACHE_REMOTE_PASSWORD_FILE",
    ),
    Setting(
        "remote_sentinel_username",
        str,
        None,
        "User of the sentinels (Redis ACL), where they have one of their own.",
        variable="LMCACHE_REMOTE_SENTINEL_USERNAME",
    ),
    Setting(
        "remote_sentinel_password",
        str,
        None,
        "Password of the sentinels. They are asked without a password by default.",
        variable="LMCACHE_REMOTE_SENTINEL_PASSWORD",
        secret=True,
    ),
    Setting(
        "remote_sentinel_password_file",
        str,
        None,
        "File with the password of the sentinels, for a mounted Secret.",
        variable="LMCACHE_REMOTE_SENTINEL_PASSWORD_FILE",
    ),
    Setting(
        "remote_ca_file",
        str,
        None,
        "PEM file of the certificate authorities that are trusted for the remote store.",
        variable="LMCACHE_REMOTE_CA_FILE",
    ),
    Setting(
        "remote_cert_file",
        str,
        None,
        "PEM file of this server's certificate, for mutual TLS.",
        variable="LMCACHE_REMOTE_CERT_FILE",
    ),
    Setting(
        "remote_key_file",
        str,
        None,
        "PEM file of the key of this server's certificate.",
        variable="LMCACHE_REMOTE_KEY_FILE",
    ),
)
