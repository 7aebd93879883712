from __future__ import annotations

from typing import Any

import pytest

from kserve_lmcache.engine.connectors import children_of_lmcache

MULTI = "MultiConnector"


def several(*names: str) -> dict[str, Any]:
    return {"connectors": [{"kv_connector": name, "kv_role": "kv_both"} for name in names]}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("NixlConnector", "LMCacheConnectorV1"), ["LMCacheConnectorV1"]),
        (("LMCacheConnectorV1Dynamic", "MooncakeConnector"), ["LMCacheConnectorV1Dynamic"]),
        (
            ("LMCacheConnector", "KServeLMCacheConnector"),
            ["LMCacheConnector", "KServeLMCacheConnector"],
        ),
        (("LMCacheConnectorV1", "LMCacheConnectorV1"), ["LMCacheConnectorV1"]),
        (("NixlConnector", "OffloadingConnector", "LMCacheMPConnector"), []),
        ((), []),
    ],
)
def test_lmcache_is_found_below_several_connectors(
    names: tuple[str, ...], found: list[str]
) -> None:
    assert children_of_lmcache(MULTI, several(*names)) == found


def test_lmcache_is_found_below_several_in_several() -> None:
    inner = {"kv_connector": MULTI, "kv_connector_extra_config": several("LMCacheConnectorV1")}
    assert children_of_lmcache(MULTI, {"connectors": [inner]}) == ["LMCacheConnectorV1"]


@pytest.mark.parametrize(
    ("name", "extra_config"),
    [
        (None, None),
        ("LMCacheConnectorV1", {}),
        ("Other", several("LMCacheConnectorV1")),
        (MULTI, None),
        (MULTI, []),
        (MULTI, {"connectors": "LMCacheConnectorV1"}),
        (MULTI, {"connectors": ["LMCacheConnectorV1", None, {"kv_connector": ["x"]}, {}]}),
    ],
)
def test_other_configurations_have_none(name: str | None, extra_config: Any) -> None:
    assert children_of_lmcache(name, extra_config) == []
