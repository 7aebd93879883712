"""The runtime's own settings, beside LMCache's: one table for flags, variables, file and README.

Each is taken, strongest first, from its flag, from the YAML file, from its variable, else from
its default (see :mod:`kserve_lmcache.config`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VARIABLE_PREFIX = "KSERVE_LMCACHE_"
FINGERPRINTS = ("sampled", "full", "private")


@dataclass(frozen=True)
class Setting:
    """One setting of ours.

    Attributes:
        name: its key in the YAML file.
        type: ``bool`` or ``str``.
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
