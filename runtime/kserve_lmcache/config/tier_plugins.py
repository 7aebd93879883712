"""The LMCache plugins of the disk tier and the remote tier, and their ``extra_config``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits

Store = TypeVar("Store", Remote, Disk)

_MODULE = "kserve_lmcache.tiers.plugin"
# The key of a store's values that names the file with its passwords.
_SECRETS_FILE = "secrets_in"


@dataclasses.dataclass(frozen=True)
class TierPlugin(Generic[Store]):
    """One plugin.

    Attributes:
        name: as LMCache's ``remote_storage_plugins`` lists the plugin.
        tier: the tier's name in metrics and reports.
        adapter: class of :mod:`kserve_lmcache.tiers.plugin` that makes the tier's connector.
        store: type of the tier's store.
    """

    name: str
    tier: str
    adapter: str
    store: type[Store]

    @property
    def prefix(self) -> str:
        """The start of the plugin's keys of ``extra_config``."""
        return f"remote_storage_plugin.{self.name}."

    def encode(
        self, store: Store, limits: TierLimits, secrets_file: Path | None = None
    ) -> dict[str, Any]:
        """Returns the plugin's entries of ``extra_config``.

        Args:
            store: the store.
            limits: of the tier.
            secrets_file: the file of :meth:`secrets`, if it was written. Without it, the entries
                have the passwords: LMCache logs them.
        """
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(store).items()
        }
        for name, hidden in self.secrets(store).items():
            if secrets_file is not None or hidden is None:
                values[name] = None
        if secrets_file is not None:
            values[_SECRETS_FILE] = str(secrets_file)
        return {
            f"{self.prefix}module_path": _MODULE,
            f"{self.prefix}class_name": self.adapter,
            f"{self.prefix}store": values,
            f"{self.prefix}limits": dataclasses.asdict(limits),
        }

    def secrets(self, store: Store) -> dict[str, str | None]:
        """Returns the store's passwords by the name of their field.

        ``None`` stands for a password whose file each connection reads, since it may change.
        """
        return {
            name: None if getattr(store, f"{name}_file") else getattr(store, name)
            for name in ("password", "sentinel_password")
            if getattr(store, name, None)
        }

    def decode(self, extra_config: Mapping[str, Any]) -> tuple[Store, TierLimits]:
        """Returns the store and the limits that :meth:`encode` put into ``extra_config``.

        Raises:
            KeyError, TypeError: ``extra_config`` does not hold them.
            OSError: the file with the passwords cannot be read.
        """
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in extra_config[f"{self.prefix}store"].items()
        }
        if path := values.pop(_SECRETS_FILE, None):
            values.update(json.loads(Path(path).read_text("utf-8")))
        return self.store(**values), TierLimits(**extra_config[f"{self.prefix}limits"])


DISK_PLUGIN = TierPlugin("kserve-disk", "disk", "DiskTierAdapter", Disk)
REMOTE_PLUGIN = TierPlugin("kserve", "remote", "RemoteTierAdapter", Remote)
PLUGINS: tuple[TierPlugin[Any], ...] = (DISK_PLUGIN, REMOTE_PLUGIN)


def without_tier_plugins(extra_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``extra_config`` without the entries of our plugins."""
    ours = tuple(plugin.prefix for plugin in PLUGINS)
    return {name: value for name, value in extra_config.items() if not name.startswith(ours)}
