from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from kserve_lmcache.engine.connectors import children_of_lmcache
from kserve_lmcache.errors import ConfigurationError, KServeLMCacheError
from tests.support.plans import planned

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


@pytest.mark.parametrize("more", [(), ("--offload=off",)])
def test_another_connector_is_left_alone(more: tuple[str, ...]) -> None:
    args, offload, environ = planned(
        '--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}',
        *more,
        LMCACHE_CHUNK_SIZE="64",
    )
    assert args.kv_transfer_config.kv_connector == "NixlConnector"
    assert not offload.enabled
    assert offload.reason == "--kv-transfer-config asks for NixlConnector"
    assert environ["LMCACHE_CHUNK_SIZE"] == "64"


def test_a_connector_of_peers_is_told_apart_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    planned('--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}')
    assert "Requests pass kv_transfer_params to NixlConnector" in caplog.text
    assert "LMCACHE_MODE" not in caplog.text


def test_the_log_names_the_road_to_a_cache_server(caplog: pytest.LogCaptureFixture) -> None:
    # vLLM imports this one, which needs Debian's libibverbs1 where Mooncake is installed.
    with suppress(KServeLMCacheError):
        planned('--kv-transfer-config={"kv_connector":"LMCacheMPConnector","kv_role":"kv_both"}')
    assert "set LMCACHE_MODE=multiprocess" in caplog.text


def flag_of_several(*names: str) -> str:
    """vLLM's connector of several connectors."""
    wanted = {
        "kv_connector": MULTI,
        "kv_role": "kv_both",
        "kv_connector_extra_config": several(*names),
    }
    return f"--kv-transfer-config={json.dumps(wanted)}"


@pytest.mark.parametrize("more", [(), ("--offload=off",), ("--offload-required=false",)])
def test_lmcache_beside_another_connector_is_refused(more: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as error:
        planned(flag_of_several("NixlConnector", "LMCacheConnectorV1"), *more)
    (problem,) = error.value.problems
    assert problem.source == "--kv-transfer-config MultiConnector"
    assert problem.message.startswith("has LMCacheConnectorV1 among its connectors, which would")
    assert "leave LMCacheConnectorV1 out of it" in problem.fix


def test_several_connectors_without_lmcache_are_left_alone() -> None:
    args, offload, _ = planned(flag_of_several("ExampleConnector", "OffloadingConnector"))
    assert args.kv_transfer_config.kv_connector == "MultiConnector"
    assert offload.reason == "--kv-transfer-config asks for MultiConnector"
