"""Our own flags, declared on the parser of every command that takes the configuration."""

from __future__ import annotations

import argparse

from kserve_lmcache.config.resolve import Flags
from kserve_lmcache.config.settings import SETTINGS
from kserve_lmcache.config.sources import KEY_FLAG


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Their values are texts here: they are parsed where those of the other sources are."""
    group = parser.add_argument_group("KV-cache offloading")
    for setting in SETTINGS:
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
        help="Keys of LMCache's configuration, stronger than its file and variables.",
    )


def flags_of(args: argparse.Namespace) -> Flags:
    """What they and the connector's JSON say."""
    wanted = getattr(args, "kv_transfer_config", None)
    return Flags(
        settings={
            setting.name: getattr(args, f"setting_{setting.name}", None) for setting in SETTINGS
        },
        assignments=args.lmcache,
        connector=(wanted.kv_connector_extra_config or {}) if wanted is not None else {},
    )
