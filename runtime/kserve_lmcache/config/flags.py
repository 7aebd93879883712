"""The flags of the configuration, for the parser of every command that takes them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from kserve_lmcache.config import kserve_offloading
from kserve_lmcache.config.resolve import Flags
from kserve_lmcache.config.settings import SETTINGS, Setting
from kserve_lmcache.config.sources import KEY_FLAG


def add_setting_flags(
    parser: argparse.ArgumentParser, settings: Iterable[Setting] = SETTINGS
) -> None:
    """Add the flags of settings, and the flag of LMCache's keys.

    The parsed values are texts. :mod:`.sources` converts them like the texts of variables.
    """
    group = parser.add_argument_group("KV-cache offloading")
    for setting in settings:
        if not setting.secret:
            group.add_argument(
                setting.flag,
                dest=f"setting_{setting.name}",
                metavar="VALUE",
                help=f"{setting.help} Also {setting.environment_variable}.",
            )
    group.add_argument(
        KEY_FLAG,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="Keys of LMCache's configuration. A flag wins over the file and the variables.",
    )


def flags_of(args: argparse.Namespace) -> Flags:
    """The flags of the configuration among all parsed flags."""
    transfer = getattr(args, "kv_transfer_config", None)
    connector = (transfer.kv_connector_extra_config or {}) if transfer is not None else {}
    is_field = transfer is not None and transfer.kv_connector == kserve_offloading.CONNECTOR
    return Flags(
        settings={
            setting.name: getattr(args, f"setting_{setting.name}", None) for setting in SETTINGS
        },
        lmcache_keys=args.lmcache,
        connector=connector,
        offloading=connector if is_field else None,
    )
