"""The names of vLLM's connectors in ``--kv-transfer-config``, and which of them offload here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CONNECTOR = "KServeLMCacheConnector"
CONNECTOR_MODULE = "kserve_lmcache.connector"
# LMCache's connectors in a worker. The first is in KServe's guide, and both are in manifests.
STOCK_CONNECTORS = ("LMCacheConnectorV1", "LMCacheConnectorV1Dynamic")
# LMCache's connector of former versions, which vLLM has no longer.
REMOVED_CONNECTOR = "LMCacheConnector"
# vLLM's connector of several others, its children. The first that finds a prompt loads it, and all
# store it.
MULTI_CONNECTOR = "MultiConnector"


def children_of_lmcache(name: str | None, extra_config: Any) -> list[str]:
    """The connectors below a ``MultiConnector`` that have LMCache in a worker; each once.

    Args:
        name: ``kv_connector``.
        extra_config: ``kv_connector_extra_config``, of any form: vLLM has not checked it.
    """
    ours = {CONNECTOR, *STOCK_CONNECTORS, REMOVED_CONNECTOR}
    return [each for each in dict.fromkeys(_children(name, extra_config)) if each in ours]


def _children(name: Any, extra_config: Any) -> Iterator[str]:
    children = extra_config.get("connectors") if isinstance(extra_config, dict) else None
    if name != MULTI_CONNECTOR or not isinstance(children, list):
        return
    for child in children:
        if isinstance(child, dict):
            yield str(child.get("kv_connector"))
            yield from _children(child.get("kv_connector"), child.get("kv_connector_extra_config"))
