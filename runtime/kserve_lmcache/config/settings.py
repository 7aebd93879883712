"""The runtime's own settings, beside LMCache's: one table for flags, variables, file and README.

Each is taken, strongest first, from its flag, from the YAML file, from its variable, else from
its default (see :mod:`kserve_lmcache.config`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VARIABLE_PREFIX = "KSERVE_LMCACHE_"
FINGERPRINTS = ("sampled", "full", "private")
REMOTE_CONNECTORS = ("kserve", "lmcache")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
# Groups of routes that are off until they are asked for; server/http/routes.py lists the routes.
ROUTE_GROUPS = (
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


def parse_route_groups(text: str | None) -> tuple[str, ...]:
    """The groups of a comma-separated list."""
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))


@dataclass(frozen=True)
class Setting:
    """One setting of ours.

    Attributes:
        name: its key in the YAML file.
        type: ``bool``, ``int``, ``float`` or ``str``; a float that ends in ``_size`` is in GB.
        default: ``None`` where it may be left out.
        help: one sentence, for ``--help`` and the README.
        variable: its environment variable; by default the prefix and the name.
        secret: never shown, and taken from its variable alone: a flag is seen by every process
            of the machine, and a file is often a ConfigMap.
    """

    name: str
    type: type[Any]
    default: Any
    help: str
    variable: str = ""
    secret: bool = False

    @property
    def flag(self) -> str:
        """Its flag, with dashes."""
        return "--" + self.name.replace("_", "-")

    @property
    def environment_variable(self) -> str:
        """The name of its variable."""
        return self.variable or VARIABLE_PREFIX + self.name.upper()


SETTINGS = (
    Setting("offload", bool, True, "Offload the KV cache by LMCache (on or off)."),
    Setting(
        "offload_required",
        bool,
        True,
        "Do not become ready when offloading cannot start; false serves on without it.",
    ),
    Setting(
        "model_fingerprint",
        str,
        "sampled",
        "How the model's content is told: sampled, full (every byte is read), or private "
        "(nothing is shared with other servers).",
    ),
    Setting(
        "tenant_header",
        str,
        None,
        "HTTP header whose value keeps the caches of tenants apart, for example X-Tenant-Id.",
    ),
    Setting(
        "enable_routes",
        str,
        None,
        "Groups of routes to turn on, comma-separated, as the table of routes names them.",
    ),
    Setting(
        "max_body_size",
        float,
        0.0625,
        "Size of the largest body of a request, in GB (64 MiB); a larger one is answered with 413.",
    ),
    Setting(
        "max_concurrent_requests",
        int,
        None,
        "How many requests are answered at a time; one more gets 429, not a place in a queue.",
    ),
    Setting(
        "request_timeout",
        float,
        None,
        "Seconds that a request may take, its stream included; then it ends, with 504.",
    ),
    Setting(
        "drain_timeout",
        float,
        25.0,
        "Seconds for running requests to finish after SIGTERM; less than the pod's grace period.",
    ),
    Setting(
        "exit_on_engine_death",
        bool,
        True,
        "End the server when its engine has died; false leaves that to the liveness probe.",
    ),
    Setting("log_format", str, "text", "How log records are written: text, or json, one a line."),
    Setting(
        "log_level",
        str,
        "info",
        "Lowest level that is logged: debug (this server and its libraries), info (libraries log "
        "warnings and errors only), warning or error.",
    ),
    Setting(
        "remote_connector",
        str,
        "kserve",
        "Who talks to the remote store: kserve (with deadlines, checksums and reconnection), or "
        "lmcache (its own connector as it is).",
        variable="LMCACHE_REMOTE_CONNECTOR",
    ),
    Setting(
        "remote_ttl",
        int,
        86400,
        "Seconds that a chunk stays in the remote store after its last use; 0 for as long as "
        "the store keeps it.",
        variable="LMCACHE_REMOTE_TTL",
    ),
    Setting(
        "remote_connect_timeout",
        float,
        1.0,
        "Seconds for a connection to the remote store; nobody waits for it.",
        variable="LMCACHE_REMOTE_CONNECT_TIMEOUT",
    ),
    Setting(
        "remote_lookup_timeout",
        float,
        0.05,
        "Seconds in which the remote store must say what it has of a prompt.",
        variable="LMCACHE_REMOTE_LOOKUP_TIMEOUT",
    ),
    Setting(
        "remote_load_timeout",
        float,
        2.0,
        "Seconds for reading all chunks of a prompt; less where computing them takes less.",
        variable="LMCACHE_REMOTE_LOAD_TIMEOUT",
    ),
    Setting(
        "remote_write_timeout",
        float,
        2.0,
        "Seconds for writing a batch of chunks; nobody waits for it.",
        variable="LMCACHE_REMOTE_WRITE_TIMEOUT",
    ),
    Setting(
        "remote_queue_size",
        float,
        None,
        "Size of what may wait to be written, in GB; by default 0.25, and no more than a "
        "quarter of the local tier, where it waits.",
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
        "File that holds the password, for a mounted Secret.",
        variable="LMCACHE_REMOTE_PASSWORD_FILE",
    ),
    Setting(
        "remote_ca_file",
        str,
        None,
        "PEM file of the authorities that may sign the remote store's certificate.",
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
        "PEM file of that certificate's key.",
        variable="LMCACHE_REMOTE_KEY_FILE",
    ),
)
