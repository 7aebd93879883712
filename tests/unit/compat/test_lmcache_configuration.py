"""What config uses of LMCache's private tables is there, and behaves as config expects."""

from __future__ import annotations

import pytest

from kserve_lmcache.compat.lmcache import configuration


def test_every_row_of_the_table_has_a_type_and_a_converted_default() -> None:
    rows = configuration.definitions()
    assert rows["chunk_size"].type is int
    assert rows["chunk_size"].default == 256
    assert rows["local_disk"].convert is not None
    assert rows["local_disk"].convert("file:///a/") == "/a/"


def test_a_former_name_leads_to_a_key() -> None:
    aliases = configuration.aliases()
    assert aliases["external_backends"] == "storage_plugins"
    assert "storage_plugins" in configuration.definitions()


def test_variables_outside_the_table_are_in_the_source() -> None:
    found = configuration.variables_in_source()
    assert {"LMCACHE_LOG_LEVEL", "LMCACHE_TRACK_USAGE", "LMCACHE_EC_"} <= found


def test_effective_values_include_defaults_and_changes() -> None:
    values = configuration.effective_values({"chunk_size": 64, "enable_blending": True})
    assert (values["chunk_size"], values["local_cpu"]) == (64, True)
    assert values["save_unfull_chunk"] is True  # blending needs it


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"enable_controller": True}, "controller_pull_url is required"),
        ({"enable_p2p": True}, "assert self.enable_controller"),  # an assertion without a text
    ],
)
def test_refused_values_have_a_reason(values: dict[str, bool], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        configuration.effective_values(values)


def test_names_of_policies_and_schemes() -> None:
    assert "LRU" in configuration.cache_policies()
    assert {"lm://", "redis://", "s3://"} <= set(configuration.remote_schemes())
    assert configuration.takes_remote_url("lm://server:1")
    assert not configuration.takes_remote_url("nothing://server:1")
